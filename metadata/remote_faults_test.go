//go:build faults

package metadata

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/internal/fault"
)

// TestRemoteTwoFates fails the transaction after a remote snapshotter has done what
// it was asked, in both ways, and that of a removal: the snapshotter ends up with
// what rows name, and nothing else, in this process and the next.
func TestRemoteTwoFates(t *testing.T) {
	for _, op := range []string{"prepare", "commit", "remove"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/restart=%v", op, fate, restart), func(t *testing.T) {
					testRemoteTwoFates(t, op, fate, restart)
				})
			}
		}
	}
}

func testRemoteTwoFates(t *testing.T, op string, fate fault.Fate, restart bool) {
	f := newFarWorld(t, 20*time.Second)
	f.must(second(f.Prepare(bg, "other", "", nil)), second(f.Prepare(bg, "key", "", nil)))
	f.must(f.Remove(bg, "key"))
	f.soon("key is removed", func() bool { return len(f.server.Keys()) == 1 && f.nothingPending() })
	done := make(chan error, 1)
	var disarm func()
	// The program is asked between two transactions; the second one fails.
	between := func(call string, do func() error) {
		f.server.Calls()
		f.server.Only(call)
		f.server.Hang(false)
		go func() { done <- do() }()
		f.soon("the program is asked", func() bool { return strings.Contains(strings.Join(f.server.Calls(), " "), call) })
		disarm = fault.Set(commitPoint, fate)
		f.server.Release()
	}
	switch op {
	case "prepare":
		between("prepare", func() error { return second(f.Prepare(bg, "key", "", nil)) })
	case "commit":
		f.must(second(f.Prepare(bg, "making", "", nil)))
		between("commit", func() error { return f.Commit(bg, "key", "making", "", nil) })
	case "remove":
		f.must(second(f.Prepare(bg, "key", "", nil)))
		disarm = fault.Set(commitPoint, fate)
		done <- f.Remove(bg, "key")
	}
	err := <-done
	disarm()
	if !errors.Is(err, fault.ErrInjected) {
		t.Errorf("answered %v", err)
	}
	if restart {
		f.reopened()
	}
	f.remotes["far"].remote.signal()
	has := (op != "remove") == (fate == fault.FailAfter) // the row is there
	want := 1
	if has {
		want = 2
	}
	f.soon("the program has what rows name", func() bool { return len(f.server.Keys()) == want })
	f.soon("no row names what is gone", func() bool { _, err := f.Stat(bg, "making"); return result(err) == "not_found" })
	f.soon("a commit that was cut off has left no row", func() bool { return len(f.rowKeys()) == want })
	if _, err := f.Stat(bg, "key"); (err == nil) != has {
		t.Errorf("the row is there: %v, want %v", err, has)
	}
	f.mustBeClean()
}
