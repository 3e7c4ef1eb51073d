//go:build faults

package snapshottest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/internal/fault"
	"github.com/berthd/berth/snapshots"
)

// crashRoot tells a process that RunFaults started where to work.
const crashRoot = "SNAPSHOTTEST_CRASH_ROOT"

// life prepares, writes, commits and removes; it stops at the first error.
func life(s *Store) error {
	for _, step := range []func() error{
		func() error { _, err := s.Create(snapshots.Active, "base-making", "", nil); return err },
		func() error {
			mounts, err := s.Mounts("base-making")
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(mounts[0].Source, "file"), []byte("x"), 0o644)
		},
		func() error { return s.Commit("base", "base-making", "") },
		func() error { _, err := s.Create(snapshots.Active, "work", "base", nil); return err },
		func() error { return s.Remove("work") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what has no row, as package metadata does at its start.
func sweep(t *testing.T, s *Store) {
	t.Helper()
	for id, err := range s.Driver.IDs(ctx) {
		must(t, err)
		if !slices.Contains(rowIDs(s), id) {
			must(t, s.Driver.Remove(ctx, id))
		}
	}
}

func rowIDs(s *Store) []snapshots.ID {
	var ids []snapshots.ID
	for _, row := range s.Tree.Rows.(Rows) {
		ids = append(ids, row.ID)
	}
	return ids
}

// onDisk fails the test if a row has no directory.
func onDisk(t *testing.T, s *Store) {
	t.Helper()
	for _, id := range rowIDs(s) {
		if _, err := s.Driver.Usage(ctx, id); err != nil {
			t.Errorf("a row without its directory: %v", err)
		}
	}
}

// RunFaults fails each durable step of a snapshot's life in both ways, and
// kills the process at each, before and after. It must be called by the test
// function Test, which the killed processes run.
func RunFaults(t *testing.T, test string, open Open) {
	if root := os.Getenv(crashRoot); root != "" {
		must(t, life(NewStore(open(t, root))))
		return
	}
	fault.Reset()
	must(t, life(newFixture(t, open).Store))
	var points []string
	for _, point := range fault.Seen() {
		if !strings.HasPrefix(point, "snapshots.open") {
			points = append(points, point)
		}
	}
	for _, want := range []string{"snapshots.create.rename", "snapshots.create.syncdir", "snapshots.flush.syncfs", "snapshots.remove.rename"} {
		if !slices.Contains(points, want) {
			t.Fatalf("no %s among %v", want, points)
		}
	}
	for _, point := range points {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) { failAt(t, newFixture(t, open), open, point, fate) })
		}
		for _, fate := range []fault.Fate{fault.CrashBefore, fault.CrashAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) { crashAt(t, newFixture(t, open), open, test, point, fate) })
		}
	}
}

func failAt(t *testing.T, f *fixture, open Open, point string, fate fault.Fate) {
	disarm := fault.Set(point, fate)
	err := life(f.Store)
	disarm()
	if !errors.Is(err, fault.ErrInjected) {
		t.Fatal(err)
	}
	onDisk(t, f.Store)
	if !strings.HasPrefix(point, "snapshots.remove") {
		for _, id := range f.ids() {
			if !slices.Contains(rowIDs(f.Store), id) {
				t.Errorf("a failed preparation left %s", id)
			}
		}
	}
	f.Driver = open(t, f.Driver.Root())
	sweep(t, f.Store)
	onDisk(t, f.Store)
	// Go on from wherever it stopped.
	if _, err := f.Tree.Stat("base-making"); err == nil {
		must(t, f.Commit("base", "base-making", ""))
	}
	if _, err := f.Tree.Stat("base"); err == nil {
		f.prepare("again", "base")
	} else {
		must(t, life(f.Store))
	}
}

func crashAt(t *testing.T, f *fixture, open Open, test, point string, fate fault.Fate) {
	root := f.Driver.Root()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), crashRoot+"="+root, "BERTH_FAULTS="+point+"="+string(fate))
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("it lived on: %s", out)
	}
	// The rows were in the process's memory: everything is an orphan now.
	f.Driver = open(t, root)
	sweep(t, f.Store)
	if ids := f.ids(); len(ids) > 0 {
		t.Errorf("not swept: %v", ids)
	}
	must(t, life(f.Store))
}
