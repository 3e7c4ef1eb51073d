//go:build faults

package content_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/content/contenttest"
	"github.com/berthd/berth/internal/fault"
)

var payload = contenttest.Bytes(300<<10, 7)

// store writes payload to the end and commits it, going on wherever an earlier
// try has got to.
func store(s content.Store) error {
	w, err := s.Ingest(ctx, "r", content.Expect{Size: int64(len(payload)), Digest: digest.SHA512.FromBytes(payload)})
	if err != nil {
		return err
	}
	defer w.Close()
	info, err := w.Status()
	if err != nil {
		return err
	}
	if _, err := w.Write(payload[info.Offset:]); err != nil {
		return err
	}
	_, err = w.Commit(ctx, int64(len(payload)), digest.SHA512.FromBytes(payload))
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	return err
}

// points lists the durable steps of store on a fresh directory.
func points(t *testing.T) []string {
	t.Helper()
	fault.Reset()
	s := open(t)
	if err := store(s); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, point := range fault.Seen() {
		if !strings.HasPrefix(point, "content.open") {
			seen = append(seen, point)
		}
	}
	return seen
}

// whole fails the test if any name under blobs lies about its bytes.
func whole(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, "blobs"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(path))), entry.Name())
		if err == nil && d.Algorithm().FromBytes(data) != d {
			t.Errorf("%s has %d bytes that are not its own", path, len(data))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// recovered fails the test unless the store can be brought to its goal.
func recovered(t *testing.T, s *disk) {
	t.Helper()
	if err := store(s); err != nil {
		t.Fatalf("retry: %v", err)
	}
	contenttest.Holds(t, s, digest.SHA512.FromBytes(payload), payload)
	whole(t, s.root)
	if entries, _ := os.ReadDir(s.path("ingest")); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

// TestTwoFates fails each durable step in both ways; then the same process, or
// the next one, tries again.
func TestTwoFates(t *testing.T) {
	list := points(t)
	for _, want := range []string{"content.commit.sync", "content.commit.mkdir", "content.commit.rename", "content.commit.syncdir"} {
		if !strings.Contains(strings.Join(list, " "), want) {
			t.Fatalf("no %s among %v", want, list)
		}
	}
	for _, point := range list {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			for _, reopen := range []bool{false, true} {
				name := point + " " + string(fate)
				if reopen {
					name += " reopened"
				}
				t.Run(name, func(t *testing.T) {
					s := open(t)
					disarm := fault.Set(point, fate)
					err := store(s)
					disarm()
					// Steps of clearing up may fail unseen.
					if !errors.Is(err, fault.ErrInjected) && !strings.HasPrefix(point, "content.discard") {
						t.Fatalf("%v", err)
					}
					whole(t, s.root)
					_, staterr := s.Stat(ctx, digest.SHA512.FromBytes(payload))
					if err != nil && staterr == nil {
						t.Error("a blob shows whose commit failed")
					}
					if reopen {
						s.Reopen(t)
					}
					recovered(t, s)
				})
			}
		}
	}
}

// TestCommitAgain fails each step and commits again by the same ingest.
func TestCommitAgain(t *testing.T) {
	for _, point := range points(t) {
		if !strings.HasPrefix(point, "content.commit") {
			continue
		}
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) {
				s := open(t)
				d := digest.SHA512.FromBytes(payload)
				w := contenttest.Begin(t, s, "r", content.Expect{Digest: d})
				w.Write(payload)
				disarm := fault.Set(point, fate)
				_, err := w.Commit(ctx, 0, d)
				disarm()
				if !errors.Is(err, fault.ErrInjected) {
					t.Fatal(err)
				}
				if point == "content.commit.sync" {
					// The bytes can't be trusted any more.
					if info, err := w.Status(); err != nil || info.Offset != 0 {
						t.Fatalf("%+v, %v", info, err)
					}
					w.Write(payload)
				}
				if _, err := w.Commit(ctx, int64(len(payload)), d); err != nil {
					t.Fatalf("again: %v", err)
				}
				contenttest.Holds(t, s, d, payload)
			})
		}
	}
}

// TestCrash kills the process at each durable step, before and after.
func TestCrash(t *testing.T) {
	if root := os.Getenv("CONTENT_CRASH_ROOT"); root != "" {
		s := &disk{root: root}
		s.open(t)
		if err := store(s); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, point := range points(t) {
		for _, fate := range []fault.Fate{fault.CrashBefore, fault.CrashAfter} {
			t.Run(point+" "+string(fate), func(t *testing.T) {
				s := open(t)
				s.Close()
				cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$")
				cmd.Env = append(os.Environ(), "CONTENT_CRASH_ROOT="+s.root, "BERTH_FAULTS="+point+"="+string(fate))
				if out, err := cmd.CombinedOutput(); err == nil {
					t.Fatalf("it lived on: %s", out)
				}
				whole(t, s.root)
				s.open(t)
				recovered(t, s)
			})
		}
	}
}
