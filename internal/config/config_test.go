package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestDefaultIsValidAndPrintsBackToItself(t *testing.T) {
	want := Default()
	var text bytes.Buffer
	if err := want.Write(&text); err != nil {
		t.Fatal(err)
	}
	got, err := Parse("printed", text.Bytes())
	if err != nil {
		t.Fatalf("the printed default does not read back: %v\n%s", err, text.String())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the printed default reads back as %+v, want %+v", got, want)
	}
	got.Complete()
	if err := got.Check(); err != nil {
		t.Errorf("the default is not valid: %v", err)
	}
	for _, line := range strings.Split(text.String(), "\n") {
		if strings.Contains(line, " = ") && line[0] == ' ' {
			t.Errorf("indented key: %q", line)
		}
	}
}

func TestParseOverridesDefaults(t *testing.T) {
	c, err := Parse("f", []byte("state = '/run/b'\n[gc]\nschedule_delay = '1m30s'\n[grpc]\ngid = 7\n"))
	if err != nil {
		t.Fatal(err)
	}
	c.Complete()
	want := Default()
	want.State, want.GC.ScheduleDelay = "/run/b", Duration{90 * time.Second}
	want.GRPC = GRPC{Address: "/run/b/berth.sock", GID: 7}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
	if c.TTRPCAddress() != "/run/b/berth.sock.ttrpc" {
		t.Errorf("ttrpc address %q", c.TTRPCAddress())
	}
}

func TestParseErrorsSayWhereAndWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"top", "root = '/a'\nroott = 1\n", []string{"f:2:", `unknown key "roott"`, "known at the top:", "snapshotter", "berthd config default"}},
		{"nested", "[gc]\n\npause = 1\n", []string{"f:3:", `unknown key "gc.pause"`, "known in [gc]: pause_threshold, schedule_delay, startup_delay"}},
		{"table", "[gcc]\npause = 1\n", []string{"f:", `"gcc`}},
		{"proxy", "[proxy_snapshotters.far]\naddres = '/s'\n", []string{"f:2:", "known in [proxy_snapshotters.far]: address, capabilities, timeout"}},
		{"two", "a = 1\nb = 2\n", []string{`f:1: unknown key "a"`, `f:2: unknown key "b"`}},
		{"type", "root = 5\n", []string{"f:1:"}},
		{"no unit", "[gc]\nschedule_delay = 5\n", []string{"configuration f:", `missing unit in duration "5"`}},
		{"duration", "[gc]\nschedule_delay = 'soon'\n", []string{"f:2:", "soon"}},
		{"syntax", "root = \n", []string{"f:1:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.text))
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("error %v, want an invalid argument", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestCheckNamesTheKey(t *testing.T) {
	long := "/" + strings.Repeat("x", 100)
	for _, c := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"relative root", "root: ", func(c *Config) { c.Root = "var" }},
		{"machine's root", "state: ", func(c *Config) { c.State = "//" }},
		{"same", "state: ", func(c *Config) { c.State = c.Root + "/" }},
		{"sharing", "content_sharing: ", func(c *Config) { c.Sharing = "some" }},
		{"socket too long with suffix", "at most 104", func(c *Config) { c.GRPC.Address = long }},
		{"socket relative", "grpc.address: ", func(c *Config) { c.GRPC.Address = "berth.sock" }},
		{"debug too long", "debug.address: ", func(c *Config) { c.Debug.Address = long + "/long" }},
		{"metrics", "metrics.address: ", func(c *Config) { c.Metrics.Address = "here" }},
		{"level", "log.level: ", func(c *Config) { c.Log.Level = "loud" }},
		{"format", "log.format: ", func(c *Config) { c.Log.Format = "xml" }},
		{"gid", "grpc.gid: ", func(c *Config) { c.GRPC.GID = -1 }},
		{"pause", "gc.pause_threshold: ", func(c *Config) { c.GC.PauseThreshold = 0.6 }},
		{"delay", "gc.schedule_delay: ", func(c *Config) { c.GC.ScheduleDelay.Duration = -1 }},
		{"journal", "events.max_bytes: ", func(c *Config) { c.Events.MaxBytes = 3 }},
		{"drain", "deadlines.drain: ", func(c *Config) { c.Deadlines.Drain.Duration = 0 }},
		{"shim", "shim: ", func(c *Config) { c.Shim = "bin/berth-shim" }},
		{"proxy without a socket", "proxy_snapshotters.far.address: ", func(c *Config) { c.Proxies = map[string]Proxy{"far": {}} }},
		{"proxy with our name", "proxy_snapshotters.native: ", func(c *Config) { c.Proxies = map[string]Proxy{"native": {Address: "/s"}} }},
		{"proxy with a bad name", "proxy_snapshotters.a b: ", func(c *Config) { c.Proxies = map[string]Proxy{"a b": {Address: "/s"}} }},
		{"processor by name", "stream_processors.p.path: ", func(c *Config) {
			c.Processors = map[string]Processor{"p": {Accepts: []string{"a"}, Returns: "b", Path: "gunzip"}}
		}},
		{"processor in a ring", "stream_processors.p.returns: ", func(c *Config) {
			c.Processors = map[string]Processor{"p": {Accepts: []string{"a"}, Returns: "a", Path: "/p"}}
		}},
		{"environment", "stream_processors.p.env: ", func(c *Config) {
			c.Processors = map[string]Processor{"p": {Accepts: []string{"a"}, Returns: "b", Path: "/p", Env: []string{"X"}}}
		}},
		{"userxattr", "overlay.userxattr: ", func(c *Config) { c.Overlay.UserXattr = "maybe" }},
		{"quota", "overlay.quota: ", func(c *Config) { c.Overlay.Quota = "ten" }},
		{"verifiers", "image_verifiers.dir: ", func(c *Config) { c.Verifiers.Dir = "bin" }},
		{"no verifier", "image_verifiers.max: ", func(c *Config) { c.Verifiers.Max = 0 }},
		{"layer", "images.max_layer_bytes: ", func(c *Config) { c.Images.MaxLayer = 0 }},
		{"runtime", "runtime.binary: ", func(c *Config) { c.Runtime.Binary = "" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Default()
			c.change(&cfg)
			cfg.Complete()
			err := cfg.Check()
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want an invalid argument with %q", err, c.want)
			}
		})
	}
	ok := Default()
	ok.GRPC.Address = "/" + strings.Repeat("x", MaxSocketPath-1-len(TTRPCSuffix))
	ok.Metrics.Address, ok.Debug.Address, ok.Shim = "127.0.0.1:0", "/run/berth/debug.sock", "berth-shim"
	if err := ok.Check(); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
	path := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(path, []byte("[log]\nlevel = 'warn'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil || c.Log.Level != "warn" {
		t.Errorf("level %q, error %v", c.Log.Level, err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("#"), maxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("an endless file: %v", err)
	}
}

// TestExtensions reads the tables that have names of the user's own.
func TestExtensions(t *testing.T) {
	c, err := Parse("f", []byte(`
[proxy_snapshotters.far]
address = '/run/far.sock'
[stream_processors."io.example.gz"]
accepts = ['a+gz']
returns = 'a'
path = '/bin/gunzip'
args = ['-c']
timeout = '1m'
[overlay]
quota = '10GiB'
`))
	if err != nil {
		t.Fatal(err)
	}
	c.Complete()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
	want := Processor{Accepts: []string{"a+gz"}, Returns: "a", Path: "/bin/gunzip", Args: []string{"-c"}, Timeout: Duration{time.Minute}}
	if c.Proxies["far"].Address != "/run/far.sock" || !reflect.DeepEqual(c.Processors["io.example.gz"], want) {
		t.Errorf("%+v", c)
	}
	if fixed := Fixed(Default(), c); !reflect.DeepEqual(fixed, []string{"grpc.address", "overlay.quota", "proxy_snapshotters", "stream_processors"}) {
		t.Errorf("%v", fixed)
	}
}

func TestFixed(t *testing.T) {
	a, b := Default(), Default()
	b.Log.Level, b.Root, b.GC.ScheduleDelay.Duration = "debug", "/elsewhere", 1
	got := strings.Join(Fixed(a, b), " ")
	if got != "root gc.schedule_delay" {
		t.Errorf("got %q", got)
	}
}
