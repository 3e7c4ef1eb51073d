package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
)

// On an empty machine, without a configuration file, berthd starts, and stops
// again without a trace but its data.
func TestFirstStartAndStop(t *testing.T) {
	p := newPlace(t)
	r := p.start(t)
	v, err := versiongrpc.NewVersionClient(r).Version(t.Context(), &emptypb.Empty{})
	if err != nil || !strings.HasPrefix(v.GetVersion(), "2.3.4+berth.") {
		t.Errorf("version %v, error %v", v, err)
	}
	id := r.uuid(t)
	if file, err := os.ReadFile(filepath.Join(p.root, "uuid")); err != nil || strings.TrimSpace(string(file)) != id || !uuidForm.MatchString(id) {
		t.Errorf("uuid %q, in the file %q, error %v", id, file, err)
	}
	for path, want := range map[string]string{
		p.root: "0700", p.state: "0711", p.socket: "0660", p.socket + ".ttrpc": "0660",
		filepath.Join(p.root, "meta.db"): "0600", filepath.Join(p.root, "logs"): "0700",
	} {
		if got := mode(t, path); got != want {
			t.Errorf("%s has mode %s, want %s", path, got, want)
		}
	}
	t.Logf("ready %v after the start", r.took)
	if err := r.stop(syscall.SIGTERM); err != nil {
		t.Errorf("it ended with %v: %s", err, r.out.String())
	}
	r.awaitNotice(t, "STOPPING=1")
	for _, path := range []string{p.socket, p.socket + ".ttrpc"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	again := p.start(t)
	if got := again.uuid(t); got != id {
		t.Errorf("after a restart the uuid is %q, was %q", got, id)
	}
}

func TestStartAfterKill(t *testing.T) {
	p := newPlace(t)
	r := p.start(t)
	id := r.uuid(t)
	if err := r.stop(syscall.SIGKILL); err == nil {
		t.Fatal("it survived SIGKILL")
	}
	if _, err := os.Lstat(p.socket); err != nil {
		t.Errorf("the test wants a stale socket: %v", err)
	}
	if got := p.start(t).uuid(t); got != id {
		t.Errorf("uuid %q, was %q", got, id)
	}
}

func TestTwoDaemons(t *testing.T) {
	p := newPlace(t)
	r := p.start(t)
	other := filepath.Join(filepath.Dir(p.root), "other")
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"one root", []string{"--root", p.root, "--state", other + "-s"}, []string{"another berthd (pid ", ") uses root " + p.root}},
		{"one state", []string{"--root", other + "-r", "--state", p.state}, []string{"another berthd (pid ", ") uses state " + p.state}},
		{"one socket", []string{"--root", other + "-r", "--state", other + "-s", "--address", p.socket}, []string{p.socket, "another process listens there"}},
	} {
		said := fails(t, command(t.Context(), t, c.args...))
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: it said %q, want %q", c.name, said, want)
			}
		}
		if strings.Contains(said, "(pid") && !strings.Contains(said, "(pid "+itoa(r.Process.Pid)+")") {
			t.Errorf("%s: the wrong pid: %s", c.name, said)
		}
	}
	r.uuid(t) // the first is not disturbed
}

func TestReload(t *testing.T) {
	p := newPlace(t)
	file := filepath.Join(filepath.Dir(p.root), "config.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hup := func(r *running) {
		t.Helper()
		if err := r.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		r.awaitNotice(t, "RELOADING=1")
		r.awaitNotice(t, "READY=1")
	}
	write("[log]\nlevel = 'info'\n")
	r := p.start(t, "--config", file)
	r.uuid(t)
	if strings.Contains(r.out.String(), "call ended") {
		t.Error("calls are logged at level info")
	}
	write("[log]\nlevel = 'debug'\n[gc]\nschedule_delay = '7s'\n")
	hup(r)
	r.out.await(t, "keys=[gc.schedule_delay]", 0)
	r.uuid(t)
	r.out.await(t, "call ended", 0)

	write("[log]\nlevle = 'info'\n")
	hup(r)
	r.out.await(t, "configuration not reloaded; the old one stays", 0)
	r.out.await(t, `unknown key`, 0)
	before := len(r.out.String())
	r.uuid(t)
	r.out.await(t, "call ended", before) // still debug

	if err := r.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	r.out.await(t, ".(*parts).run(", before)
	r.uuid(t)
}

func TestWhatKeepsItFromStarting(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Dir(p.root)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noShim := command(t.Context(), t, p.args()...)
	noShim.Env = append(noShim.Env, "PATH=/nonexistent")
	nobody := command(t.Context(), t, p.args()...)
	nobody.SysProcAttr, nobody.Path = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, forAll(t, dir)
	long := "/" + strings.Repeat("x", 110)
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		want string
	}{
		{"unknown key", command(t.Context(), t, p.args("--config", file("bad.toml", "[gc]\n\npause = 1\n"))...), `bad.toml:3: unknown key "gc.pause"`},
		{"no such file", command(t.Context(), t, p.args("--config", filepath.Join(dir, "none"))...), "no such file"},
		{"no flag", command(t.Context(), t, "--rot", "/x"), "flag provided but not defined: -rot; berthd -help lists the flags"},
		{"no command", command(t.Context(), t, "sevre"), `"sevre" is not a command of berthd`},
		{"long socket", command(t.Context(), t, p.args("--address", long)...), "at most 104"},
		{"file for a root", command(t.Context(), t, "--root", file("f", ""), "--state", p.state), "root " + filepath.Join(dir, "f") + " can't be made"},
		{"root that can't be made", command(t.Context(), t, "--root", "/proc/berth", "--state", p.state), "root /proc/berth can't be made"},
		{"no shim", noShim, "berth-shim is neither at"},
		{"not root", nobody, "has to run as root, not as user 65534"},
		{"unknown snapshotter", command(t.Context(), t, p.args("--config", file("s.toml", "snapshotter = 'zfs'\n"))...), `there is no "zfs"`},
	} {
		if said := fails(t, c.cmd); !strings.Contains(said, c.want) {
			t.Errorf("%s: it said %q, want %q", c.name, said, c.want)
		}
	}
}

// forAll copies this test binary to where every user may run it.
func forAll(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "berthd-for-all")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Without overlay berthd runs with native, and says why.
func TestWithoutOverlay(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Dir(p.root)
	for _, d := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel doesn't take an overlay as the upper layer of another.
	o := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	if err := unix.Mount("overlay", p.root, "overlay", 0, o); err != nil {
		t.Skipf("this machine has no overlay at all: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(p.root, 0); err != nil {
			t.Error(err)
		}
	})
	r := p.start(t)
	r.out.await(t, "snapshotter overlayfs can't be used", 0)
	if err := r.stop(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	wants := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(wants, []byte("snapshotter = 'overlayfs'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := fails(t, command(t.Context(), t, p.args("--config", wants)...)); !strings.Contains(said, `configuration key snapshotter: "overlayfs"`) {
		t.Errorf("it said %q", said)
	}
}

func TestEndpoints(t *testing.T) {
	p := newPlace(t)
	debug, metrics := filepath.Join(p.state, "debug.sock"), filepath.Join(p.state, "metrics.sock")
	file := filepath.Join(filepath.Dir(p.root), "c.toml")
	if err := os.WriteFile(file, []byte("[debug]\naddress = '"+debug+"'\n[metrics]\naddress = '"+metrics+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := p.start(t, "--config", file)
	r.uuid(t)
	get := func(socket, path string) string {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		resp, err := c.Get("http://berthd" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Status + "\n" + string(body)
	}
	if got := get(metrics, "/v1/metrics"); !strings.Contains(got, `berth_calls_total{code="OK",method="/containerd.services.introspection.v1.Introspection/Server"} 1`) {
		t.Errorf("metrics: %s", got)
	}
	if got := get(debug, "/debug/pprof/goroutine?debug=1"); !strings.Contains(got, "goroutine profile:") {
		t.Errorf("debug: %s", got)
	}
	for _, socket := range []string{debug, metrics} {
		if got := mode(t, socket); got != "0600" {
			t.Errorf("%s has mode %s", socket, got)
		}
	}
}

func TestPublish(t *testing.T) {
	p := newPlace(t)
	r := p.start(t)
	s, err := eventsgrpc.NewEventsClient(r).Subscribe(t.Context(), &events.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatal(err)
	}
	event, err := proto.Marshal(&anypb.Any{TypeUrl: "some.Event", Value: []byte{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(in []byte, args ...string) (string, error) {
		cmd := command(t.Context(), t, append([]string{"--address", p.socket, "publish"}, args...)...)
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := publish(event, "--topic", "/x/y", "--namespace", "ns"); err != nil || out != "" {
		t.Fatalf("publish: %v, it said %q", err, out)
	}
	e, err := s.Recv()
	if err != nil || e.GetTopic() != "/x/y" || e.GetNamespace() != "ns" || e.GetEvent().GetTypeUrl() != "some.Event" || !e.GetTimestamp().IsValid() {
		t.Errorf("got %v, error %v", e, err)
	}
	for _, c := range []struct {
		in   []byte
		args []string
		want string
	}{
		{event, []string{"--topic", "x", "--namespace", "ns"}, "invalid argument"},
		{event, []string{"--topic", "/x"}, "usage:"},
		{[]byte{0xff, 0xff}, []string{"--topic", "/x", "--namespace", "ns"}, "is no google.protobuf.Any"},
	} {
		if out, err := publish(c.in, c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("publish %v: %v, it said %q, want %q", c.args, err, out, c.want)
		}
	}
}

// A log that nobody reads any more ends neither the daemon nor, by what they
// inherit, any process in a container.
func TestLogReaderGone(t *testing.T) {
	p := newPlace(t)
	r := p.start(t, "--log-level", "debug")
	r.uuid(t)
	if err := r.logPipe.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.uuid(t) // each call writes a line
	}
	status, err := os.ReadFile("/proc/" + itoa(r.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:")
	ignored, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 16, 64)
	if err != nil || ignored&(1<<(uint(syscall.SIGPIPE)-1)) != 0 {
		t.Errorf("SIGPIPE is ignored (%x, error %v), and containers would inherit that", ignored, err)
	}
}
