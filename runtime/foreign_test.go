package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/runtime/bootstrap/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/runtime/record"
)

// TestParseContact reads the three forms of what a shim's start prints.
func TestParseContact(t *testing.T) {
	packed := func(r *bootstrap.BootstrapResult) string {
		data, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for output, want := range map[string]contact{
		packed(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///run/s/1", Protocol: "ttrpc"}): {3, "unix:///run/s/1", "ttrpc"},
		packed(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///run/s/1"}):                    {3, "unix:///run/s/1", "ttrpc"},
		packed(&bootstrap.BootstrapResult{Version: 2, Address: "unix:///s", Protocol: "ttrpc"}):       {2, "unix:///s", "ttrpc"},
		packed(&bootstrap.BootstrapResult{Version: 3, Address: "vsock://3:1024", Protocol: "grpc"}):   {3, "vsock://3:1024", "grpc"},
		` {"version":3,"address":"unix:///run/s/1","protocol":"ttrpc"}` + "\n":                        {3, "unix:///run/s/1", "ttrpc"},
		`{"version":2,"address":"unix:///run/s/1"}`:                                                   {2, "unix:///run/s/1", "ttrpc"},
		"unix:///run/containerd/s/0123456789\n":                                                       {2, "unix:///run/containerd/s/0123456789", "ttrpc"},
		"abstract-name":                                                                               {2, "abstract-name", "ttrpc"},
		"hvsock:///run/vm.sock:1024":                                                                  {2, "hvsock:///run/vm.sock:1024", "ttrpc"},
	} {
		if got, err := parseContact([]byte(output)); got != want || err != nil {
			t.Errorf("%q: %+v, %v, want %+v", output, got, err, want)
		}
	}
	for output, want := range map[string]string{
		"":                                    "no address",
		"  \n":                                "no address",
		"two words":                           "no address",
		"\x00\x01":                            "no address",
		strings.Repeat("x", 5000):             "longer than",
		`{"version":4,"address":"unix:///s"}`: "version 4",
		packed(&bootstrap.BootstrapResult{Version: 9, Address: "unix:///s"}):                   "version 9",
		packed(&bootstrap.BootstrapResult{Version: 3, Address: "unix:///s", Protocol: "soap"}): `protocol "soap"`,
		`{"version":2,"address":"unix:///s","protocol":"grpc"}`:                                "version 2",
		"http://example.test/": "scheme",
		"vsock://x:y":          "CID:PORT",
		"hvsock://relative:1":  "PATH:PORT",
		"hvsock:///run/x":      "PATH:PORT",
	} {
		if got, err := parseContact([]byte(output)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", output, got, err, want)
		}
	}
}

// FuzzParseContact feeds it anything.
func FuzzParseContact(f *testing.F) {
	f.Add([]byte("unix:///run/s/1"))
	f.Add([]byte(`{"version":3,"address":"unix:///s","protocol":"grpc"}`))
	f.Add([]byte("\x08\x03\x12\x04unix"))
	f.Fuzz(func(t *testing.T, output []byte) {
		at, err := parseContact(output)
		if err == nil && (at.Address == "" || at.Version < 2 || at.Version > 3) {
			t.Errorf("%q: %+v", output, at)
		}
	})
}

// TestHybridSocket connects through a unix socket that is asked for a port.
func TestHybridSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := make(chan string, 2)
	go func() {
		for answer := range answers {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line := make([]byte, 13)
			_, _ = conn.Read(line)
			_, _ = conn.Write([]byte(string(bytes.TrimRight(line, "\x00"))[:0] + answer))
			_ = conn.Close()
		}
	}()
	defer close(answers)
	for answer, want := range map[string]string{"OK 99\nhello": "", "no such port\n": "no such port", "": "EOF"} {
		answers <- answer
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := dialHybrid(ctx, path, 1024)
		cancel()
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v", answer, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%q: %v", answer, err)
		}
		rest := make([]byte, 16)
		n, _ := conn.Read(rest)
		if string(rest[:n]) != "hello" {
			t.Errorf("after the answer: %q", rest[:n])
		}
		_ = conn.Close()
	}
}

// foreignMachine is a machine with another project's shim of runc.
func foreignMachine(t *testing.T) (m *machine, shim string) {
	m = newRealMachine(t)
	return m, needed.Program(t, "containerd-shim-runc-v2")
}

// createForeign creates a container under another project's shim.
func (d *daemon) createForeign(id, shim string, argv ...string) error {
	c := d.m.realContainer(id, argv...)
	c.Runtime.Name = shim
	_, err := d.Create(d.m.t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: id, Rootfs: d.m.rootfs(id)})
	return err
}

// TestForeignLife leads a container through its life under a shim that is not
// our own.
func TestForeignLife(t *testing.T) {
	m, shim := foreignMachine(t)
	d := m.start()
	if err := d.createForeign("a", shim, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	if err := d.createForeign("a", shim, "true"); err == nil {
		t.Error("created twice")
	}
	for _, file := range []string{"work", "log", "bootstrap.json", "shim-binary-path", "init.json", "shim.json"} {
		if _, err := os.Lstat(filepath.Join(m.bundle("a"), file)); err != nil {
			t.Error(err)
		}
	}
	d.startTask("a")
	if err := d.Pause(t.Context(), testNS, &tasks.PauseTaskRequest{ContainerId: "a"}); err != nil {
		t.Error(err)
	}
	if got := d.state("a"); !strings.Contains(got, "PAUSED") {
		t.Error(got)
	}
	if err := d.Resume(t.Context(), testNS, &tasks.ResumeTaskRequest{ContainerId: "a"}); err != nil {
		t.Error(err)
	}
	metrics, err := d.Metrics(t.Context(), testNS, &tasks.MetricsRequest{})
	if err != nil || len(metrics.GetMetrics()) != 1 {
		t.Errorf("metrics: %v, %v", metrics, err)
	}
	if pids, err := d.ListPids(t.Context(), testNS, &tasks.ListPidsRequest{ContainerId: "a"}); err != nil || len(pids.GetProcesses()) == 0 {
		t.Errorf("pids: %v, %v", pids, err)
	}
	m.eventually("SIGTERM to end it", func() error {
		_ = d.kill("a", int(unix.SIGTERM)) // the first may come before the trap
		if got := d.state("a"); !strings.Contains(got, "STOPPED") {
			return errors.New(got)
		}
		return nil
	})
	if status, err := d.wait("a", ""); status != 7 || err != nil {
		t.Errorf("wait: %d, %v", status, err)
	}
	if status, err := d.delete("a"); status != 7 || err != nil {
		t.Errorf("delete: %d, %v", status, err)
	}
	m.goneForeign("a")
}

// TestForeignRestart kills the daemon above a foreign shim: what ends meanwhile is
// known afterwards, what runs is adopted.
func TestForeignRestart(t *testing.T) {
	m, shim := foreignMachine(t)
	d := m.start()
	for id, script := range map[string]string{"ends": "sleep 0.5; exit 3", "runs": "sleep 1000"} {
		if err := d.createForeign(id, shim, "sh", "-c", script); err != nil {
			t.Fatal(err)
		}
		d.startTask(id)
	}
	pid := d.initPID("ends")
	d.stop()
	m.eventually("the container to end", func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.New("it runs")
	})
	d = m.start()
	d.verdict("runs", "connected")
	if status, err := d.wait("ends", ""); status != 3 || err != nil {
		t.Errorf("ended while the daemon was away: %d, %v", status, err)
	}
	if err := d.kill("runs", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	for id, want := range map[string]uint32{"ends": 3, "runs": 137} {
		d.end(id, want)
		m.goneForeign(id)
	}
}

// TestForeignShimKilled kills a foreign shim: its container runs on, is
// supervised, and its status comes from the kernel.
func TestForeignShimKilled(t *testing.T) {
	m, shim := foreignMachine(t)
	d := m.start()
	if err := d.createForeign("a", shim, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done"); err != nil {
		t.Fatal(err)
	}
	d.startTask("a")
	var s record.Shim
	if err := record.Read(m.bundle("a"), record.ShimFile, &s); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "shim-lost")
	m.eventually("SIGTERM to end it", func() error {
		_ = d.kill("a", int(unix.SIGTERM))
		if got := d.state("a"); !strings.Contains(got, "STOPPED") {
			return errors.New(got)
		}
		return nil
	})
	d.end("a", 9)
	m.goneForeign("a")
}

// startTask starts a created task.
func (d *daemon) startTask(id string) {
	d.m.t.Helper()
	if _, err := d.Start(d.m.t.Context(), testNS, &tasks.StartRequest{ContainerId: id}); err != nil {
		d.m.t.Fatal(err)
	}
}

// bundle is where the bundle of a task is.
func (m *machine) bundle(id string) string { return filepath.Join(m.dir, bundlesDir, testNS, id) }

// initPID reads the pid of a task's init.
func (d *daemon) initPID(id string) int {
	d.m.t.Helper()
	var started record.Started
	if err := record.Read(d.m.bundle(id), record.StartedFile, &started); err != nil {
		d.m.t.Fatal(err)
	}
	return started.PID
}

// goneForeign waits until nothing is left of a foreign shim's task.
func (m *machine) goneForeign(id string) {
	m.t.Helper()
	m.eventually("all of "+id+" to be gone", func() error {
		for _, path := range []string{m.bundle(id), filepath.Join(m.dir, "root", bundlesDir, testNS, id)} {
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %v", path, err)
			}
		}
		return nil
	})
}

// scripted makes a shim of a shell script, which gets the command as $cmd.
func (m *machine) scripted(name, script string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, "containerd-shim-"+name+"-v2")
	text := "#!/bin/sh\nfor cmd; do :; done\n" + script + "\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// TestForeignStartFails has shims that fail to start in every way: the create
// fails with an error that says so, and leaves nothing.
func TestForeignStartFails(t *testing.T) {
	m := newMachine(t)
	m.deadlines.ShimStart = 2 * time.Second
	d := m.start()
	for name, c := range map[string]struct{ script, want string }{
		"refuses": {`[ $cmd != start ] || { echo no kernel module >&2; exit 3; }`, `start: exit status 3: "no kernel module"`},
		"garbage": {`[ $cmd != start ] || printf 'level=info msg=hello there'`, "is no address"},
		"silent":  {`true`, "printed no address"},
		"floods":  {`[ $cmd != start ] || head -c 10000000 /dev/zero | tr '\0' x`, "more than 65536 bytes of output"},
		"hangs":   {`[ $cmd != start ] || exec sleep 1000`, "did not end within 2s"},
		"too-new": {`[ $cmd != start ] || echo '{"version":4,"address":"unix:///s"}'`, "version 4 of the task API"},
		"nobody":  {`[ $cmd != start ] || echo unix:///nobody/listens`, "connect to the shim at unix:///nobody/listens"},
		"holds":   {`[ $cmd != start ] || { sleep 1000 & echo $! > ../held; echo two words; }`, "is no address"},
	} {
		shim := m.scripted(name, c.script)
		con := containerOf(name, script{})
		con.Runtime.Name = shim
		began := time.Now()
		_, err := d.Create(t.Context(), testNS, con, &tasks.CreateTaskRequest{ContainerId: name})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
		if d.listed() != "" {
			t.Errorf("%s: left %s", name, d.listed())
		}
		m.goneForeign(name)
	}
	if data, err := os.ReadFile(filepath.Join(m.dir, bundlesDir, testNS, "held")); err == nil {
		var pid int
		_, _ = fmt.Sscan(string(data), &pid)
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = os.Remove(filepath.Join(m.dir, bundlesDir, testNS, "held"))
	} else {
		t.Error(err)
	}
}

// TestForeignStartCall looks at how a shim is started: arguments, environment,
// working directory, standard input.
func TestForeignStartCall(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	out := filepath.Join(m.dir, "call")
	shim := m.scripted("looks", `[ $cmd = start ] || exit 0; { pwd; echo "$@"; env; } > `+out+`; cat > `+out+`.in; exit 1`)
	con := containerOf("a", script{})
	con.Runtime.Name = shim
	if _, err := d.Create(t.Context(), testNS, con, &tasks.CreateTaskRequest{ContainerId: "a"}); err == nil {
		t.Fatal("created")
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		m.bundle("a") + "\n", "-namespace " + testNS + " -address ", "-publish-binary ", "-id a -debug start\n",
		"\nMAX_SHIM_VERSION=2\n", "\nGOMAXPROCS=2\n", "\nNAMESPACE=" + testNS + "\n", "\nTTRPC_ADDRESS=" + filepath.Join(m.dir, "ttrpc.sock") + "\n", "\nGRPC_ADDRESS=",
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("no %q in:\n%s", want, data)
		}
	}
	in, err := os.ReadFile(out + ".in")
	if err != nil {
		t.Fatal(err)
	}
	var params bootstrap.BootstrapParams
	if err := proto.Unmarshal(in, &params); err != nil || params.InstanceId != "a" || params.Namespace != testNS {
		t.Errorf("standard input: %v, %v", &params, err)
	}
}

// TestForeignLog passes what a shim writes to its log on, within bounds.
func TestForeignLog(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	shim := m.scripted("talks", `[ $cmd = start ] || exit 0; echo "hello from the shim" > log; head -c 100000 /dev/zero | tr '\0' x > log; echo > log; echo later > log; exit 1`)
	con := containerOf("a", script{})
	con.Runtime.Name = shim
	if _, err := d.Create(t.Context(), testNS, con, &tasks.CreateTaskRequest{ContainerId: "a"}); err == nil {
		t.Fatal("created")
	}
	m.eventually("the shim's words in the daemon's log", func() error {
		if log := m.logText(); !strings.Contains(log, "hello from the shim") || strings.Contains(log, strings.Repeat("x", shimLogLine+1)) {
			return errors.New("not there")
		}
		return nil
	})
}

// TestContactFile reads where a shim listens from any file that may tell.
func TestContactFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := readContact(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, addressFile), []byte("unix:///old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if at, err := readContact(dir); err != nil || at != (contact{2, "unix:///old", "ttrpc"}) {
		t.Errorf("%+v, %v", at, err)
	}
	want := contact{3, "unix:///new", "ttrpc"}
	if err := writeContact(dir, want); err != nil {
		t.Fatal(err)
	}
	if at, err := readContact(dir); err != nil || at != want {
		t.Errorf("%+v, %v", at, err)
	}
	var asJSON map[string]any
	data, err := os.ReadFile(filepath.Join(dir, record.BootstrapFile))
	if err == nil {
		err = json.Unmarshal(data, &asJSON)
	}
	if err != nil || len(asJSON) != 3 || asJSON["address"] != "unix:///new" {
		t.Errorf("%s: %v", data, err)
	}
}

// logText is what the daemons have logged so far.
func (m *machine) logText() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}
