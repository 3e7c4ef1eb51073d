package leak

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leaks makes one thing of each sort; undo takes it back.
var leaks = map[string]func(t *testing.T) (undo func()){
	"goroutine": func(t *testing.T) func() {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			<-stop
		}()
		return func() { close(stop); <-stopped }
	},
	"child process": func(t *testing.T) func() {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() { cmd.Process.Kill(); cmd.Wait() }
	},
	"mount": func(t *testing.T) func() {
		dir := t.TempDir()
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Skipf("mount: %v", err)
		}
		return func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		}
	},
	"open file": func(t *testing.T) func() {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		return func() { f.Close() }
	},
}

func TestEachSortIsSeen(t *testing.T) {
	for name, leak := range leaks {
		t.Run(name, func(t *testing.T) {
			look := func() (snapshot, error) { return look(t.Name()) }
			before, err := look()
			if err != nil {
				t.Fatal(err)
			}
			if report := wait(before, look, 0); report != "" {
				t.Fatalf("before: %s", report)
			}
			undo := leak(t)
			report := wait(before, look, 10*time.Millisecond)
			if !strings.HasPrefix(report, "leaked "+name) {
				t.Errorf("report: %q", report)
			}
			undo()
			if report := wait(before, look, patience); report != "" {
				t.Errorf("afterwards: %s", report)
			}
		})
	}
}

// recorder is a test that notes what Check does to it.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
	failed   bool
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool     { return r.failed }
func (r *recorder) Error(args ...any) {
	for _, arg := range args {
		r.errors = append(r.errors, arg.(string))
	}
}

func TestCheck(t *testing.T) {
	clean := &recorder{TB: t}
	Check(clean)
	clean.cleanups[0]()
	if len(clean.errors) != 0 {
		t.Errorf("clean: %q", clean.errors)
	}

	// Goes away only while Check waits.
	late := &recorder{TB: t}
	Check(late)
	undo := leaks["goroutine"](t)
	time.AfterFunc(20*time.Millisecond, undo)
	late.cleanups[0]()
	if len(late.errors) != 0 {
		t.Errorf("late: %q", late.errors)
	}

	failed := &recorder{TB: t, failed: true}
	Check(failed)
	undo = leaks["goroutine"](t)
	failed.cleanups[0]()
	undo()
	if len(failed.errors) != 0 {
		t.Errorf("a failed test: %q", failed.errors)
	}
}

func TestMountsOfOtherTests(t *testing.T) {
	tmp := os.TempDir()
	own := placesOf("TestThis/sub", []string{"/run/mine"})
	for path, want := range map[string]bool{
		tmp + "/TestThat123/001":      false,
		tmp + "/TestThis123/001/x":    true,
		tmp + "/TestThissub123/001/x": true,
		tmp + "/FuzzThat1/001":        false,
		tmp + "/berth-mount-1":        true,
		"/mnt/TestThis":               false,
		"/run/mine/a/b":               true,
		"/run/mine":                   false,
		"/run/mineral":                false,
		tmp:                           false,
	} {
		if got := own.hold(path); got != want {
			t.Errorf("%s: own %v, want %v", path, got, want)
		}
	}
	// What appears after the test has ended is not the test's.
	looks := 0
	report := wait(snapshot{}, func() (snapshot, error) {
		looks++
		return snapshot{mountSort: {fmt.Sprint(looks): "one"}}, nil
	}, patience)
	if report != "" || looks != 2 {
		t.Errorf("after %d looks: %s", looks, report)
	}
}

func TestParse(t *testing.T) {
	line := "12 (a) b (c)) S 7 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 998877 1 2 3"
	name, state, parent, start, ok := parseStat(line)
	if !ok || name != "a) b (c)" || state != "S" || parent != "7" || start != "998877" {
		t.Errorf("%q %q %q %q %v", name, state, parent, start, ok)
	}
	for _, bad := range []string{"", "12", "12 (a", "12 )(", "12 (a) S 7"} {
		if _, _, _, _, ok := parseStat(bad); ok {
			t.Errorf("%q is accepted", bad)
		}
	}
}
