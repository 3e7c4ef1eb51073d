// Package supervise tests what the daemon promises of tasks, against the real
// daemon as it is shipped, real shims and the real OCI runtime: exit statuses
// with daemon and shim dead in any order, shims that hang among others, a
// restart over many containers, and that nothing leaks.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/record"
	"github.com/berthd/berth/runtime/spec"
	"github.com/berthd/berth/test/harness"
)

// patience bounds every wait for something that has to come about.
const patience = 60 * time.Second

// programs are built once, by TestMain.
var programs *harness.Programs

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers, so they have to run as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs, err = harness.BuildShipped(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// namespace is where the tests make their containers.
const namespace = "supervise"

// world is a daemon with the test image, and a client of it.
type world struct {
	*testing.T
	daemon *harness.Daemon
	client *client.Client
	mark   string // begins the id of every container
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, daemon: d, mark: "sv-" + strings.TrimPrefix(d.Dir, "/tmp/berth-t-") + "-"}
	t.Cleanup(func() {
		if t.Failed() {
			log := d.Log()
			t.Logf("the daemon's log, its end:\n%s", log[max(0, len(log)-16<<10):])
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if groups, err := harness.Cgroups(w.mark); err != nil || len(groups) > 0 {
			t.Errorf("control groups left: %v, %v", groups, err)
		}
	})
	d.Args = []string{"--log-level", "info"}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if w.client, err = client.Dial(t.Context(), d.Address, client.Options{Namespace: namespace}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	archive, err := os.Open(programs.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if _, err := w.client.Import(t.Context(), archive, &images.ImportOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	return w
}

// id is the full id of a container.
func (w *world) id(name string) string { return w.mark + name }

// run makes and starts a container.
func (w *world) run(name string, args ...string) {
	w.Helper()
	if err := w.tryRun(w.Context(), name, args...); err != nil {
		w.Fatal(err)
	}
}

func (w *world) tryRun(ctx context.Context, name string, args ...string) error {
	leased, end, err := w.client.Lease(ctx, time.Hour)
	if err != nil {
		return err
	}
	c, err := leased.NewContainer(ctx, client.ContainerOptions{
		ID: w.id(name), Image: harness.ImageName, Spec: spec.Options{Args: args},
	})
	if err := errors.Join(err, end()); err != nil {
		return err
	}
	p, err := c.NewTask(ctx, client.TaskOptions{})
	if err != nil {
		return err
	}
	_, err = p.Start(ctx)
	return err
}

// wait waits for a container's end.
func (w *world) wait(name string) client.Exit {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	exit, err := w.client.Process(w.id(name), "").Wait(ctx)
	if err != nil {
		w.Fatalf("wait for %s: %v", name, err)
	}
	return exit
}

// remove removes a container whatever it does.
func (w *world) remove(name string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.client.Remove(ctx, w.id(name), true); err != nil {
		w.Errorf("remove %s: %v", name, err)
	}
}

// bundle is a container's bundle.
func (w *world) bundle(name string) string {
	return filepath.Join(w.daemon.State, "io.containerd.runtime.v2.task", namespace, w.id(name))
}

// shim is the process of a container's shim.
func (w *world) shim(name string) int {
	w.Helper()
	var r record.Shim
	if err := record.Read(w.bundle(name), record.ShimFile, &r); err != nil {
		w.Fatal(err)
	}
	return r.PID
}

// init is a container's first process.
func (w *world) init(name string) int {
	w.Helper()
	var r record.Started
	if err := record.Read(w.bundle(name), record.StartedFile, &r); err != nil {
		w.Fatal(err)
	}
	return r.PID
}

func (w *world) kill(pid int, signal unix.Signal) {
	w.Helper()
	if err := unix.Kill(pid, signal); err != nil {
		w.Fatalf("kill %d: %v", pid, err)
	}
}

// eventually waits for a condition, whose error says what is amiss.
func (w *world) eventually(what string, condition func() error) {
	w.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// ended waits until a process is a zombie or gone.
func (w *world) ended(pid int) {
	w.Helper()
	w.eventually(fmt.Sprintf("end of %d", pid), func() error {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		return fmt.Errorf("it runs: %s", stat)
	})
}

// number is a setting of the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
