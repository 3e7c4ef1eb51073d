package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/sys"
)

func TestLife(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	if err := d.create("a", script{Args: []string{"sh", "-c", "exit 7"}}); err != nil {
		t.Fatal(err)
	}
	if err := d.create("a", script{}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("create again: %v", err)
	}
	if got := d.listed(); got != "a CREATED" {
		t.Fatal(got)
	}
	waited := make(chan uint32)
	for range 5 {
		go func() {
			status, err := d.wait("a", "")
			if err != nil {
				t.Error(err)
			}
			waited <- status
		}()
	}
	if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a"}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if status := <-waited; status != 7 {
			t.Errorf("status %d", status)
		}
	}
	if got := d.state("a"); got != "STOPPED 7" {
		t.Fatal(got)
	}
	d.end("a", 7)
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 7", "/tasks/delete a 7")
	for what, err := range map[string]error{
		"wait":   second(d.wait("a", "")),
		"delete": second(d.delete("a")),
		"kill":   d.kill("a", 9),
		"get":    second(d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: "a"})),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s after delete: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestDeleteCreated(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	if err := d.create("a", script{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.delete("a"); err != nil {
		t.Fatal(err)
	}
	m.expect("/tasks/create a", "/tasks/delete a 137")
}

func TestExec(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{})
	spec := &anypb.Any{TypeUrl: "x", Value: []byte(`{"Args":["sh","-c","exit 3"]}`)}
	for _, bad := range []string{"", "a b", "a..b"} {
		err := d.Exec(t.Context(), testNS, &tasks.ExecProcessRequest{ContainerId: "a", ExecId: bad, Spec: spec})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("exec id %q: %v", bad, err)
		}
	}
	if _, err := d.wait("a", "none"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if err := d.Exec(t.Context(), testNS, &tasks.ExecProcessRequest{ContainerId: "a", ExecId: "e", Spec: spec}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		status, err := d.wait("a", "e")
		if err == nil && status != 3 {
			err = fmt.Errorf("status %d", status)
		}
		done <- err
	}()
	if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a", ExecId: "e"}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exec-added e", "/tasks/exec-started e", "/tasks/exit e 3")
	r, err := d.DeleteProcess(t.Context(), testNS, &tasks.DeleteProcessRequest{ContainerId: "a", ExecId: "e"})
	if err != nil || r.ExitStatus != 3 || r.Id != "e" {
		t.Fatal(r, err)
	}
	if _, err := d.wait("a", "e"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if k := d.find(testNS, "a"); len(k.execs) != 0 || len(k.seen.exits) != 0 {
		t.Errorf("a deleted exec is remembered: %v %v", k.execs, k.seen)
	}
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
	m.expect("/tasks/exit a 137", "/tasks/delete a 137")
}

// TestCreateFails makes a create fail in every way: the error says why, nothing
// is left, and the same create succeeds afterwards.
func TestCreateFails(t *testing.T) {
	for mode, want := range map[string]string{
		"crash": "crashing as told",
		"fail":  "failing as told",
		"hang":  "did not create the container within",
		"die":   "the shim has gone before it could create the container",
	} {
		t.Run(mode, func(t *testing.T) {
			m := newMachine(t)
			if mode == "hang" {
				m.deadlines.Create = 300 * time.Millisecond
			}
			d := m.start()
			err := d.create("a", script{Mode: mode})
			if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), `create task "a": `) {
				t.Fatalf("error %v, want %q", err, want)
			}
			if len(d.Report()) != 0 {
				t.Fatal(d.Report())
			}
			m.noLeftovers()
			m.mu.Lock()
			m.events = nil
			m.mu.Unlock()
			d.Tasks.cfg.Deadlines.Create = patience
			d.run("a", script{Args: []string{"true"}})
			d.end("a", 0)
			m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 0", "/tasks/delete a 0")
		})
	}
}

func TestCreateCancelled(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := d.Create(ctx, testNS, containerOf("a", script{Mode: "hang"}), &tasks.CreateTaskRequest{ContainerId: "a"})
		done <- err
	}()
	m.eventually("shim started", func() error {
		if k := d.find(testNS, "a"); k == nil || k.view().shimPID == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if _, err := d.delete("a"); !errdefs.IsNotFound(err) {
		t.Errorf("a task that is being created is seen: %v", err)
	}
	if err := d.create("a", script{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	m.noLeftovers()
}

func TestCreateWithoutShim(t *testing.T) {
	m := newMachine(t)
	m.shim = "/nonexistent/berth-shim"
	d := m.start()
	if err := d.create("a", script{}); err == nil || !strings.Contains(err.Error(), "/nonexistent/berth-shim") || errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}

// TestConcurrentDelete has many delete at once: each gets the status, and the
// work is done once.
func TestConcurrentDelete(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{Args: []string{"sh", "-c", "exit 5"}})
	if _, err := d.wait("a", ""); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			status, err := d.delete("a")
			if err == nil && status != 5 || err != nil && !errdefs.IsNotFound(err) {
				t.Errorf("%d, %v", status, err)
			}
		})
	}
	wg.Wait()
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 5", "/tasks/delete a 5")
}

// TestDeleteRetried loses the shim's answer to Delete, and has a shim that does
// not leave: the next Delete finishes the work with the true status.
func TestDeleteRetried(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{Args: []string{"sh", "-c", "exit 5"}, Mode: "forget"})
	if _, err := d.wait("a", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := d.delete("a"); err == nil || !strings.Contains(err.Error(), "not telling") {
		t.Fatal(err)
	}
	d.end("a", 5)
	m.expect("/tasks/create a", "/tasks/start a", "/tasks/exit a 5", "/tasks/delete a 5")

	m.deadlines.Shutdown = 100 * time.Millisecond
	d.stop()
	d = m.start()
	d.run("b", script{Args: []string{"true"}, Mode: "stay"})
	shim := d.shimPID("b")
	d.end("b", 0)
	m.eventually("shim ended", func() error {
		if s, err := sys.ReadStat(shim); err == nil && !s.Dead() {
			return errors.New("it lives")
		}
		return nil
	})
	m.expect("/tasks/create b", "/tasks/start b", "/tasks/exit b 0", "/tasks/delete b 0")
}

func TestDeleteRunning(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{})
	_, err := d.delete("a")
	if err == nil || !strings.Contains(err.Error(), "cannot delete a running process") {
		t.Fatal(err)
	}
	if err := d.kill("a", 9); err != nil {
		t.Fatal(err)
	}
	d.end("a", 137)
}

// TestHungShim stops a shim's process: its calls end with what they waited for,
// and nobody else's are delayed.
func TestHungShim(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{})
	d.run("b", script{})
	shim := d.shimPID("a")
	m.freeze(shim)
	_, err := d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: "a"})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the shim did not tell its state within 500ms") {
		t.Errorf("get: %v", err)
	}
	start := time.Now()
	if got := d.listed(); got != "a RUNNING, b RUNNING" {
		t.Error(got)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("list took %s", took)
	}
	metrics, err := d.Metrics(t.Context(), testNS, &tasks.MetricsRequest{})
	if err != nil || len(metrics.Metrics) != 1 || metrics.Metrics[0].Id != "b" {
		t.Error(metrics, err)
	}

	// A daemon that finds it hung keeps it, and adopts it once it answers.
	d.stop()
	d = m.start()
	d.verdict("b", "connected")
	m.eventually("judged", func() error {
		if s := d.Report()[0]; !strings.Contains(s.Reason, "does not answer") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if got := d.listed(); got != "a RUNNING, b RUNNING" {
		t.Error(got)
	}
	if err := d.kill("a", 15); !errdefs.IsUnavailable(err) {
		t.Errorf("signal: %v", err)
	}
	if _, err := d.delete("a"); !errdefs.IsUnavailable(err) {
		t.Errorf("delete: %v", err)
	}
	if err := unix.Kill(shim, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "connected")
	for _, id := range []string{"a", "b"} {
		if err := d.kill(id, 9); err != nil {
			t.Fatal(err)
		}
		d.end(id, 137)
	}
}

func TestMounts(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	source := t.TempDir()
	if err := os.WriteFile(source+"/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	request := &tasks.CreateTaskRequest{ContainerId: "a", Rootfs: bind(source)}
	if _, err := d.Create(t.Context(), testNS, containerOf("a", script{}), request); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.find(testNS, "a").dir + "/rootfs/precious"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a"}); err != nil {
		t.Fatal(err)
	}
	// The shim dies with the file system mounted.
	pid := int(d.Report()[0].PID)
	if err := unix.Kill(d.shimPID("a"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "shim-lost")
	_ = unix.Kill(pid, unix.SIGKILL)
	d.end("a", 137)
	if _, err := os.Stat(source + "/precious"); err != nil {
		t.Fatal(err)
	}
}
