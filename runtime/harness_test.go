package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/containers/v1"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/sys"
)

func TestMain(m *testing.M) {
	fakeMain()
	if os.Getenv("BERTH_TEST_SUBREAPER") != "" { // as berthd is; see test/vm/suites
		if err := sys.SetSubreaper(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	for _, dir := range built {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// reapOrphans takes what ended below shims that are dead from the kernel, where that
// comes to the test, with nobody else there who waits for a process.
func reapOrphans() {
	if os.Getenv("BERTH_TEST_SUBREAPER") == "" {
		return
	}
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

const (
	testNS   = "test"
	patience = 20 * time.Second
)

// machine is what outlives daemons: directories, and the log of events.
type machine struct {
	t         *testing.T
	dir       string
	shim      string
	daemon    string // what shims run to publish
	deadlines Deadlines
	bootID    string
	mounter   Rootfs          // what mounts for tasks; nil: nothing does
	refuse    bool            // Forward answers with an error
	watch     time.Duration   // between rounds of the watchdog
	cpu       []time.Duration // see TestLatency
	shims     []int           // of daemons that have ended: they stay children of the test, which reaps them

	expected string // the last event that expect has seen

	mu     sync.Mutex
	events []string
	taken  map[string]bool // events that were forwarded
	bell   chan struct{}   // closed and replaced at each event
	log    bytes.Buffer
}

// daemon is one life of Tasks.
type daemon struct {
	*Tasks
	m    *machine
	stop func()
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	base := "/tmp/runtime"
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(base, "t")
	if err != nil {
		t.Fatal(err)
	}
	leak.Check(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, shim: self, bell: make(chan struct{}), taken: map[string]bool{}, bootID: "boot-1"}
	m.deadlines = Deadlines{
		Create: 20 * time.Second, State: 500 * time.Millisecond, Connect: time.Second, Shutdown: 3 * time.Second,
		Events: 300 * time.Millisecond, Retry: 20 * time.Millisecond,
	}
	t.Cleanup(func() {
		if !t.Failed() {
			m.soon("nothing left", m.leftovers)
		}
		if t.Failed() {
			t.Log(m.log.String())
			m.wreck()
		}
		for _, pid := range m.shims {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
		reapOrphans()
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// noLeftovers fails the test over bundles, sockets and processes that are left.
func (m *machine) noLeftovers() {
	m.t.Helper()
	m.eventually("nothing left", m.leftovers)
}

func (m *machine) leftovers() error {
	for _, pattern := range []string{bundlesDir + "/*/*", bundlesDir + "/*/.*", socketsDir + "/*", ociDir + "/*/*"} {
		found, _ := filepath.Glob(filepath.Join(m.dir, pattern))
		for _, path := range found {
			if base := filepath.Base(path); base != "." && base != ".." {
				return fmt.Errorf("left behind: %s", path)
			}
		}
	}
	for _, pid := range m.processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return fmt.Errorf("left behind: %d %q", pid, cmd)
	}
	return nil
}

// wreck removes what a failed test has left, so that the next one is not misled.
func (m *machine) wreck() {
	for _, pid := range m.processes() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		found, _ := filepath.Glob(pattern + filepath.Base(m.dir) + "/*/cgroup.procs")
		for _, path := range found {
			data, _ := os.ReadFile(path)
			for field := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
	}
	points, _ := filepath.Glob(filepath.Join(m.dir, bundlesDir, "*", "*"))
	for _, dir := range points {
		_ = mount.UnmountAll(dir)
		_ = removeTree(dir)
	}
}

// processes lists the shims of the machine and what they started: they have its
// directory in their environment.
func (m *machine) processes() (pids []int) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range environs {
		if env, err := os.ReadFile(path); err == nil && bytes.Contains(env, []byte(m.dir)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// eventually waits for a condition, whose error says what is amiss.
func (m *machine) eventually(what string, condition func() error) {
	m.t.Helper()
	if !m.soon(what, condition) {
		m.t.FailNow()
	}
}

// soon is eventually for clean-up, which goes on.
func (m *machine) soon(what string, condition func() error) bool {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return true
		}
		if time.Now().After(deadline) {
			m.t.Errorf("%s: %v", what, err)
			return false
		}
		<-time.After(5 * time.Millisecond)
	}
}

// freeze stops a process, all threads of it.
func (m *machine) freeze(pid int) {
	m.t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("process stopped", func() error {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, path := range threads {
			if stat, err := os.ReadFile(path); err == nil && !bytes.Contains(stat, []byte(") T ")) {
				return fmt.Errorf("%s", stat)
			}
		}
		return nil
	})
}

// lockedWriter serialises a daemon's log.
type lockedWriter struct{ m *machine }

func (w lockedWriter) Write(p []byte) (int, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.m.log.Write(p)
}

// open opens the table without running it.
func (m *machine) open() *Tasks {
	m.t.Helper()
	tasks, err := Open(Config{
		Root: filepath.Join(m.dir, "root"), State: m.dir, Shim: m.shim, Daemon: m.daemon,
		TTRPCAddress: filepath.Join(m.dir, "ttrpc.sock"),
		Publish:      m.publish, Forward: m.forward, Deadlines: m.deadlines, Watch: m.watch,
		GRPC: otherClient, Rootfs: m.mounter,
		BootID: func() (string, error) { return m.bootID, nil },
		Log:    slog.New(slog.NewTextHandler(lockedWriter{m}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return tasks
}

type forwarder struct{ tasks *Tasks }

func (f forwarder) Forward(ctx context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, f.tasks.Forwarded(ctx, r.GetEnvelope())
}

// start starts a daemon: the table, and the socket for events.
func (m *machine) start() *daemon {
	m.t.Helper()
	table := m.open()
	path := filepath.Join(m.dir, "ttrpc.sock")
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		m.t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		m.t.Fatal(err)
	}
	forwardttrpc.RegisterEventsService(server, forwarder{table})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, l) })
	wg.Go(func() {
		if err := table.Run(ctx); err != nil {
			m.t.Error(err)
		}
	})
	d := &daemon{Tasks: table, m: m}
	d.stop = sync.OnceFunc(func() {
		// A shim that is leaving would be reaped by pid 1 after a real daemon.
		m.eventually("no shim leaving", func() error {
			table.mu.Lock()
			defer table.mu.Unlock()
			for n, k := range table.tasks {
				if k.view().stand == leaving {
					return fmt.Errorf("%v is", n)
				}
			}
			return nil
		})
		_ = server.Close()
		cancel()
		wg.Wait()
		all := table.list("")
		for _, b := range table.boxes {
			all = append(all, b.task)
		}
		for _, k := range all {
			m.shims = append(m.shims, k.view().shimPID) // who started it may be gone, and the pod not
		}
	})
	m.t.Cleanup(d.stop)
	return d
}

func containerOf(id string, s script) *containers.Container {
	spec, _ := json.Marshal(s)
	return &containers.Container{
		Id: id, Runtime: &containers.Container_Runtime{Name: RuntimeRunc},
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: spec},
	}
}

// create makes a task with the fake shim.
func (d *daemon) create(id string, s script) error {
	_, err := d.Create(d.m.t.Context(), testNS, containerOf(id, s), &tasks.CreateTaskRequest{ContainerId: id})
	return err
}

// run makes and starts a task.
func (d *daemon) run(id string, s script) (pid int) {
	d.m.t.Helper()
	if err := d.create(id, s); err != nil {
		d.m.t.Fatal(err)
	}
	r, err := d.Start(d.m.t.Context(), testNS, &tasks.StartRequest{ContainerId: id})
	if err != nil {
		d.m.t.Fatal(err)
	}
	return int(r.Pid)
}

func (d *daemon) kill(id string, sig int) error {
	return d.Kill(d.m.t.Context(), testNS, &tasks.KillRequest{ContainerId: id, Signal: uint32(sig)})
}

func (d *daemon) wait(id, exec string) (uint32, error) {
	ctx, cancel := context.WithTimeout(d.m.t.Context(), patience)
	defer cancel()
	r, err := d.Wait(ctx, testNS, &tasks.WaitRequest{ContainerId: id, ExecId: exec})
	return r.GetExitStatus(), err
}

func (d *daemon) delete(id string) (uint32, error) {
	r, err := d.Delete(d.m.t.Context(), testNS, &tasks.DeleteTaskRequest{ContainerId: id})
	return r.GetExitStatus(), err
}

// end waits for a task's end and deletes it; both have to tell the status.
func (d *daemon) end(id string, status uint32) {
	d.m.t.Helper()
	if got, err := d.wait(id, ""); err != nil || got != status {
		d.m.t.Fatalf("wait: %d, %v; want %d", got, err, status)
	}
	if got, err := d.delete(id); err != nil || got != status {
		d.m.t.Fatalf("delete: %d, %v; want %d", got, err, status)
	}
}

// verdict waits until a task is reported as such.
func (d *daemon) verdict(id, verdict string) Supervision {
	d.m.t.Helper()
	var found Supervision
	d.m.eventually("task "+id, func() error {
		for _, s := range d.Report() {
			if s.ID == id {
				if found = s; s.Verdict == verdict {
					return nil
				}
			}
		}
		return fmt.Errorf("%+v, want %s", found, verdict)
	})
	return found
}

func (d *daemon) state(id string) string {
	r, err := d.Get(d.m.t.Context(), testNS, &tasks.GetRequest{ContainerId: id})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %d", r.Process.Status, r.Process.ExitStatus)
}

func (d *daemon) shimPID(id string) int {
	return d.find(testNS, id).view().shimPID
}

func (d *daemon) listed() string {
	d.m.t.Helper()
	r, err := d.List(d.m.t.Context(), testNS, &tasks.ListTasksRequest{})
	if err != nil {
		d.m.t.Fatal(err)
	}
	var out []string
	for _, p := range r.Tasks {
		out = append(out, p.Id+" "+p.Status.String())
	}
	return strings.Join(out, ", ")
}

func bind(source string) []*types.Mount {
	return []*types.Mount{{Type: "bind", Source: source, Options: []string{"rbind", "rw"}}}
}

func (d *daemon) runStarted(id string) {
	d.m.t.Helper()
	if _, err := d.Start(d.m.t.Context(), testNS, &tasks.StartRequest{ContainerId: id}); err != nil {
		d.m.t.Fatal(err)
	}
}
