package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/client"
)

// TestRestartAtScale kills the daemon over BERTH_SCALE (50) running containers,
// ends some of them meanwhile, and starts it again: how soon it answers, lists
// and has adopted all, and that every status is right. The figures are printed;
// the bounds that fail the test are wide, since it runs on busy machines.
func TestRestartAtScale(t *testing.T) {
	n := number(t, "BERTH_SCALE", 50)
	w := newWorld(t)
	w.fill(n)
	defer w.drain(n)
	pids := make([]int, n)
	for i := range n {
		pids[i] = w.init(itoa(i))
	}
	w.eventually("all ready", func() error { return allReady(pids) })
	if err := w.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	ends := n / 5
	for i := range ends {
		w.kill(pids[i], unix.SIGTERM)
		w.recorded(itoa(i))
	}

	answered, listed, adopted := w.start(n, ends)
	t.Logf("restart over %d containers: answers after %s, all listed after %s, all adopted after %s", n, answered, listed, adopted)
	const wide = 5
	if bound := wide * 100 * time.Millisecond; answered > bound {
		t.Errorf("the API answered after %s, not %s", answered, bound)
	}
	if bound := wide * 2 * time.Second; adopted > bound {
		t.Errorf("all were adopted after %s, not %s", adopted, bound)
	}
	for i := range ends {
		if exit := w.wait(itoa(i)); exit.Status != uint32(code) {
			t.Errorf("%d: status %d, want %d", i, exit.Status, code)
		}
	}
}

// fill runs many containers, some at once.
func (w *world) fill(n int) {
	w.Helper()
	var wg sync.WaitGroup
	turn := make(chan struct{}, 4)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			err := w.tryRun(w.Context(), itoa(i), "sh", "-c", "trap 'exit 9' TERM; : >/ready; sleep 3600 & wait")
			if err != nil {
				w.Error(err)
			}
		})
	}
	wg.Wait()
	if w.Failed() {
		w.FailNow()
	}
}

func allReady(pids []int) error {
	for _, pid := range pids {
		if _, err := os.Stat(filepath.Join("/proc", itoa(pid), "root/ready")); err != nil {
			return err
		}
	}
	return nil
}

// drain removes them all, whatever became of them.
func (w *world) drain(n int) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, 4)
	for i := range n {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			w.remove(itoa(i))
		})
	}
	wg.Wait()
}

// start starts the daemon over n tasks, of which some have ended, and tells when
// from the start of its process it answered a call, listed every task right, and
// had adopted all.
func (w *world) start(n, ends int) (answered, listed, adopted time.Duration) {
	w.Helper()
	begin := time.Now()
	started := make(chan error, 1)
	go func() { started <- w.daemon.Start() }()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	for { // until it listens
		c, err := net.Dial("unix", w.daemon.Address)
		if err == nil {
			c.Close()
			break
		}
		if ctx.Err() != nil {
			w.Fatal(errors.Join(err, ctx.Err()))
		}
		<-time.After(time.Millisecond)
	}
	c, err := client.Dial(ctx, w.daemon.Address, client.Options{Namespace: namespace})
	if err != nil {
		w.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Version().Version(ctx, &emptypb.Empty{}); err != nil {
		w.Fatal(err)
	}
	answered = time.Since(begin)
	list, err := c.Tasks().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		w.Fatal(err)
	}
	listed = time.Since(begin)
	running, stopped := 0, 0
	for _, p := range list.GetTasks() {
		switch p.GetStatus().String() {
		case "RUNNING":
			running++
		case "STOPPED":
			stopped++
		}
	}
	if running != n-ends || stopped != ends {
		w.Errorf("listed at once: %d running and %d stopped, want %d and %d", running, stopped, n-ends, ends)
	}
	w.eventually("all adopted", func() error {
		r, err := c.Maintenance().Tasks(ctx, &maintenance.TasksRequest{})
		if err != nil {
			return err
		}
		for _, t := range r.GetTasks() {
			if t.GetVerdict() != "connected" {
				return fmt.Errorf("%s is %s: %s", t.GetId(), t.GetVerdict(), t.GetReason())
			}
		}
		return nil
	})
	adopted = time.Since(begin)
	if err := <-started; err != nil {
		w.Fatal(err)
	}
	return answered, listed, adopted
}
