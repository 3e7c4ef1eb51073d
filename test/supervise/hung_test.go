package supervise

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
)

func itoa(n int) string { return strconv.Itoa(n) }

// freeze stops a process, all threads of it.
func (w *world) freeze(pid int) {
	w.Helper()
	w.kill(pid, unix.SIGSTOP)
	w.eventually("process stopped", func() error {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, path := range threads {
			if stat, err := os.ReadFile(path); err == nil && !strings.Contains(string(stat), ") T ") {
				return fmt.Errorf("%s", stat)
			}
		}
		return nil
	})
}

// TestHungAmongMany stops the process of one shim among several. What is asked
// about its container ends in time and says what it waited for. What is asked
// about all, and all about the others, goes on as if nothing were.
func TestHungAmongMany(t *testing.T) {
	w := newWorld(t)
	const n = 6
	for i := range n {
		w.run(itoa(i), "sleep", "600")
		defer w.remove(itoa(i))
	}
	var events atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for range w.client.Subscribe(ctx, `topic=="/tasks/exit"`) {
			events.Add(1)
		}
	}()
	shim := w.shim("0")
	w.freeze(shim)
	defer w.kill(shim, unix.SIGCONT)

	// Each call's bound is its deadline and some room for a busy machine.
	const room = 2 * time.Second
	within := func(what string, bound time.Duration, do func() error) {
		t.Helper()
		begin := time.Now()
		err := do()
		if took := time.Since(begin); took > bound {
			t.Errorf("%s took %s", what, took)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	list := func() error {
		r, err := w.client.Tasks().List(t.Context(), &tasks.ListTasksRequest{})
		if err == nil && len(r.GetTasks()) < n {
			err = fmt.Errorf("%d tasks", len(r.GetTasks()))
		}
		return err
	}
	metrics := func() error {
		r, err := w.client.Tasks().Metrics(t.Context(), &tasks.MetricsRequest{})
		if err == nil && len(r.GetMetrics()) < n { // the daemon reads those of the hung one's container
			err = fmt.Errorf("%d metrics", len(r.GetMetrics()))
		}
		return err
	}
	within("the first list", 2*time.Second+room, list)
	for range 5 {
		within("a list", room, list)
		within("metrics", room, metrics)
	}
	within("the life of another", 3*room, func() error {
		if err := w.tryRun(t.Context(), "new", "sh", "-c", "exit 3"); err != nil {
			return err
		}
		if exit := w.wait("new"); exit.Status != 3 {
			return fmt.Errorf("status %d", exit.Status)
		}
		return w.client.Remove(t.Context(), w.id("new"), true)
	})
	within("its event", room, func() error {
		for events.Load() == 0 {
			if t.Context().Err() != nil {
				return t.Context().Err()
			}
			<-time.After(5 * time.Millisecond)
		}
		return nil
	})
	if _, err := w.client.Process(w.id("0"), "").State(t.Context()); err == nil || !strings.Contains(err.Error(), "the shim did not tell its state within 2s") {
		t.Errorf("state of the hung one: %v", err)
	}

	// SIGKILL does not need the shim; how it ended is told once the shim wakes.
	init := w.init("0")
	within("SIGKILL", 2*time.Second+room, func() error { return w.client.Process(w.id("0"), "").Signal(t.Context(), unix.SIGKILL) })
	w.ended(init)
	w.kill(shim, unix.SIGCONT)
	if exit := w.wait("0"); exit.Status != 137 {
		t.Errorf("status %d", exit.Status)
	}
}

// TestKillAllWithoutShim kills all of a container that shares the host's pids,
// after its shim: no process of its cgroup is left.
func TestKillAllWithoutShim(t *testing.T) {
	w := newWorld(t)
	w.run("a", "sh", "-c", "for i in 1 2 3; do sleep 600 & done; while :; do sleep 0.1; done")
	defer w.remove("a")
	pids := func() []int {
		r, err := w.client.Tasks().ListPids(t.Context(), &tasks.ListPidsRequest{ContainerId: w.id("a")})
		if err != nil {
			t.Fatal(err)
		}
		var list []int
		for _, p := range r.GetProcesses() {
			list = append(list, int(p.GetPid()))
		}
		return list
	}
	var all []int
	w.eventually("processes", func() error {
		if all = pids(); len(all) < 4 {
			return fmt.Errorf("%v", all)
		}
		return nil
	})
	shim := w.shim("a")
	w.kill(shim, unix.SIGKILL)
	w.ended(shim)
	if r, err := w.client.Tasks().Metrics(t.Context(), &tasks.MetricsRequest{}); err != nil || len(r.GetMetrics()) != 1 {
		t.Errorf("metrics without the shim: %v, %v", r, err)
	}
	for _, signal := range []unix.Signal{unix.SIGUSR2, unix.SIGKILL} { // init ignores the first, the others don't
		_, err := w.client.Tasks().Kill(t.Context(), &tasks.KillRequest{ContainerId: w.id("a"), Signal: uint32(signal), All: true})
		if err != nil {
			t.Fatal(err)
		}
		if signal == unix.SIGUSR2 {
			for _, pid := range all {
				if pid != w.init("a") {
					w.ended(pid)
				}
			}
		}
	}
	for _, pid := range all {
		w.ended(pid)
	}
	if exit := w.wait("a"); exit.Status != 137 {
		t.Errorf("status %d", exit.Status)
	}
}
