package runtime

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/tasks/v1"
)

// TestUnnamed takes names out of errors, and nothing else.
func TestUnnamed(t *testing.T) {
	for text, want := range map[string]string{
		`task "a": runc create: exit status 1`:             `runc create: exit status 1`,
		`exec "e" of task "a": runc exec: exit status 255`: `exec "e": runc exec: exit status 255`,
		`exec "e" of task "b": runc exec: exit status 255`: `exec "e" of task "b": runc exec: exit status 255`,
		`task "ab": no`:             `task "ab": no`,
		`task "a" is being created`: `task "a" is being created`,
		`the shim did not delete the container of task "a": no`: `the shim did not delete the container of task "a": no`,
	} {
		err := unnamed("a", fmt.Errorf("%s: %w", text, errdefs.ErrNotFound))
		if got := err.Error(); got != want+": not found" || !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %s", text, got)
		}
	}
}

// TestErrorsNameTheTaskOnce has a real shim refuse what it is asked.
func TestErrorsNameTheTaskOnce(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	err := d.createReal("a", nil, "/no/such/program")
	if err == nil {
		_, err = d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a"})
	}
	once(t, err)
	d.runReal("b", "sleep", "1000")
	_, err = d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "b"})
	once(t, err)
	_, err = d.delete("b")
	once(t, err)
	if err := d.kill("b", 9); err != nil {
		t.Fatal(err)
	}
	d.end("b", 137)
	if d.find(testNS, "a") != nil {
		if _, err := d.delete("a"); err != nil {
			t.Error(err)
		}
	}
}

func once(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if n := strings.Count(err.Error(), "task \""); n != 1 {
		t.Errorf("the task is named %d times: %v", n, err)
	}
	t.Log(err)
}
