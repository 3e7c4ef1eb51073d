// Package soak repeats what production does all day, many execs in one container
// and many short containers, and compares what daemon, shim and machine hold
// before and after: processes, zombies, descriptors, goroutines, threads,
// mounts, control groups and memory.
//
// BERTH_SOAK_EXECS (60) and BERTH_SOAK_CYCLES (30) say how many.
package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/record"
	"github.com/berthd/berth/runtime/spec"
	"github.com/berthd/berth/test/harness"
)

// Bounds. Memory is in KiB.
const (
	callTime = time.Minute
	quiet    = 20 * time.Second // for what is on its way out
	look     = 100 * time.Millisecond

	shimGrowth   = 1536 // a shim's private anonymous memory
	daemonGrowth = 16 << 10
	warmUp       = 20 // of each sort, before the first count
)

func TestSoak(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test runs containers, so it has to run as root")
	}
	execs, cycles := number(t, "BERTH_SOAK_EXECS", 60), number(t, "BERTH_SOAK_CYCLES", 30)
	s := newSoak(t)
	long := s.start("long", "sleep", "100000")
	for n := range warmUp {
		s.exec(long, n)
		s.cycle(n)
	}
	before := s.count(long)
	began := time.Now()
	for n := range execs {
		s.exec(long, warmUp+n)
	}
	t.Logf("%d execs: %s each", execs, time.Since(began)/time.Duration(max(execs, 1)))
	s.compare(fmt.Sprintf("%d execs", execs), before, long)

	before = s.count(long)
	began = time.Now()
	for n := range cycles {
		s.cycle(warmUp + n)
	}
	t.Logf("%d containers from making to removal: %s each", cycles, time.Since(began)/time.Duration(max(cycles, 1)))
	s.compare(fmt.Sprintf("%d containers", cycles), before, long)
	s.remove(long)
}

func number(t *testing.T, name string, otherwise int) int {
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

// soak is a daemon with the test image in it, and a client.
type soak struct {
	t      *testing.T
	daemon *harness.Daemon
	client *client.Client
	mark   string
}

func newSoak(t *testing.T) *soak {
	programs, err := harness.BuildShipped(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	d.Args = []string{"--log-level", "info"}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, daemon: d, mark: "soak-" + strings.TrimPrefix(filepath.Base(d.Dir), "berth-t-") + "-"}
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	if s.client, err = client.Dial(ctx, d.Address, client.Options{Namespace: "soak"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Close() })
	archive, err := os.Open(programs.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if _, err := s.client.Import(ctx, archive, &images.ImportOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *soak) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.t.Context(), callTime)
}

// start runs a container and gives its id.
func (s *soak) start(name string, args ...string) string {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	id := s.mark + name
	leased, end, err := s.client.Lease(ctx, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	container, err := leased.NewContainer(ctx, client.ContainerOptions{
		ID: id, Image: harness.ImageName, Snapshotter: "overlayfs", Runtime: client.DefaultRuntime,
		Spec: spec.Options{Args: args},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := end(); err != nil {
		s.t.Fatal(err)
	}
	p, err := container.NewTask(ctx, client.TaskOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := p.Start(ctx); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// exec runs a further process to its end.
func (s *soak) exec(id string, n int) {
	ctx, cancel := s.ctx()
	defer cancel()
	exec, code := fmt.Sprintf("x%d", n), uint32(n%100)
	p, err := s.client.Exec(ctx, id, exec, &specs.Process{
		Cwd: "/", Env: []string{"PATH=/bin"}, Args: []string{"sh", "-c", fmt.Sprintf("exit %d", code)},
	}, client.TaskOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	exits, err := p.Launch(ctx, ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	if exit := <-exits; exit.Err != nil || exit.Status != code {
		s.t.Fatalf("exec %d: %v", n, exit)
	}
	if _, err := s.client.Tasks().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerId: id, ExecId: exec}); err != nil {
		s.t.Fatal(err)
	}
}

// cycle is a short container from its making to its removal.
func (s *soak) cycle(n int) {
	id := s.start(fmt.Sprintf("c%d", n), "true")
	ctx, cancel := s.ctx()
	defer cancel()
	exit, err := s.client.Process(id, "").Wait(ctx)
	if err != nil || exit.Status != 0 {
		s.t.Fatalf("container %d: %v, %v", n, exit, err)
	}
	if err := s.client.Remove(ctx, id, false); err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) remove(id string) {
	ctx, cancel := s.ctx()
	defer cancel()
	if err := s.client.Remove(ctx, id, true); err != nil {
		s.t.Error(err)
	}
}

// shim gives the pid of a container's shim.
func (s *soak) shim(id string) int {
	var r record.Shim
	bundle := filepath.Join(s.daemon.State, "io.containerd.runtime.v2.task", "soak", id)
	if err := record.Read(bundle, record.ShimFile, &r); err != nil {
		s.t.Fatal(err)
	}
	return r.PID
}

// goroutines counts those of the daemon by a dump of their stacks in its log.
func (s *soak) goroutines() int {
	start := len(s.daemon.Log())
	if err := syscall.Kill(s.daemon.PID(), syscall.SIGUSR1); err != nil {
		s.t.Fatal(err)
	}
	for deadline, last := time.Now().Add(callTime), -1; time.Now().Before(deadline); time.Sleep(look) {
		n := strings.Count(s.daemon.Log()[start:], "goroutine ")
		if n > 0 && n == last {
			return n
		}
		last = n
	}
	s.t.Fatal("the daemon writes no stacks")
	return 0
}
