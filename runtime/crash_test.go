package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/fault"
)

// crashDaemon is a daemon in a process of its own, which lives the life of one
// task and is killed somewhere in it. The steps that it has got answers to go to
// standard output.
func crashDaemon(dir, mode string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	self, err := os.Executable()
	fail(err)
	ctx := context.Background()
	table, err := Open(Config{
		Root: filepath.Join(dir, "root"), State: dir, Shim: self, TTRPCAddress: filepath.Join(dir, "ttrpc.sock"),
		BootID:  func() (string, error) { return "boot-1", nil },
		Publish: func(context.Context, string, string, proto.Message) {},
	})
	fail(err)
	step := func(name string, err error) {
		fail(err)
		fmt.Println(name)
		if name == mode {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	s := script{Args: []string{"sh", "-c", "exit 7"}}
	step("create", second(table.Create(ctx, testNS, containerOf("a", s), &tasks.CreateTaskRequest{ContainerId: "a"})))
	step("start", second(table.Start(ctx, testNS, &tasks.StartRequest{ContainerId: "a"})))
	step("wait", second(table.Wait(ctx, testNS, &tasks.WaitRequest{ContainerId: "a"})))
	step("delete", second(table.Delete(ctx, testNS, &tasks.DeleteTaskRequest{ContainerId: "a"})))
	step("close", table.Close())
}

// TestCrash kills a daemon after each step of a task's life, and with the build
// tag faults also at each durable step within. The next daemon finds the task as
// it was left, with its true status, or nothing at all.
func TestCrash(t *testing.T) {
	crashes := []string{"create", "start", "wait", "delete", "close"}
	if fault.Enabled {
		for _, point := range []string{"bundle.rename", "intent.write", "intent.rename", "shim.write", "shim.rename", "status.write", "status.rename", "remove.rename"} {
			crashes = append(crashes, "runtime."+point+"=crash-before", "runtime."+point+"=crash-after")
		}
	}
	for _, crash := range crashes {
		t.Run(crash, func(t *testing.T) {
			m := newMachine(t)
			cmd := exec.Command(m.shim, "daemon", m.dir, crash)
			cmd.Env = append(os.Environ(), "BERTH_FAULTS=")
			if strings.Contains(crash, "=") {
				cmd.Env = append(cmd.Env, "BERTH_FAULTS="+crash)
			}
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if status, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ok || !status.Signaled() && crash != "close" {
				t.Fatalf("the daemon was not killed: %v, %q", err, out)
			}
			m.recover(strings.Fields(string(out)))
		})
	}
}

// recover starts a daemon after a crash and brings the task to its end. done are
// the steps that had an answer.
func (m *machine) recover(done []string) {
	t := m.t
	d := m.start()
	m.eventually("settled", func() error {
		for _, s := range d.Report() {
			if s.Verdict == "adopting" {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	there := len(d.Report()) != 0
	if created := slices.Contains(done, "create"); created && !there && !slices.Contains(done, "wait") {
		t.Fatal("the task is lost")
	}
	if there {
		if slices.Contains(done, "delete") {
			t.Errorf("deleted, but there: %+v", d.Report())
		}
		if got := d.state("a"); got == "CREATED 0" {
			if slices.Contains(done, "start") {
				t.Error("started, but ", got)
			}
			d.runStarted("a")
		}
		d.end("a", 7)
	}
	m.noLeftovers()
	d.run("a", script{Args: []string{"sh", "-c", "exit 3"}})
	d.end("a", 3)
	m.eventually("events", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if n := len(m.events); n < 4 || !strings.HasPrefix(m.events[n-1], "/tasks/delete a 3") {
			return fmt.Errorf("%q", m.events)
		}
		return nil
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, event := range []string{"/tasks/exit a 7", "/tasks/exit a 3", "/tasks/delete a 7", "/tasks/delete a 3"} {
		seen := 0
		for _, e := range m.events {
			if e == event {
				seen++
			}
		}
		if seen > 1 || seen == 0 && there {
			t.Errorf("%s published %d times: %q", event, seen, m.events)
		}
	}
}
