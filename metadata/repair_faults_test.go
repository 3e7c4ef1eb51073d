//go:build faults

package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/fault"
	"github.com/berthd/berth/internal/labels"
)

// TestRepairTwoFates fails each durable step of a repair in both ways: the next
// one succeeds, and then nothing is wrong.
func TestRepairTwoFates(t *testing.T) {
	from := map[string]string{labels.DistributionSource + "reg.example": "team/app", labels.GCRoot: "1"}
	damage := func(w *world) {
		d := w.blob(ns, "data", from)
		w.must(os.Remove(w.blobFile(d)))
		w.layer(native(w, ns), "base", "", nil)
		w.layer(native(w, ns), "top", "base", nil)
		w.must(os.Remove(w.layerDir("ns", "base")))
		w.must(second(native(w, ns).Prepare(bg, "lost", "", nil)))
		w.must(os.Remove(w.layerDir("ns", "lost")))
	}
	repair := func(w *world) (failed int) {
		release, err := w.HoldCollections(bg)
		w.must(err)
		defer release()
		layer := func(ctx context.Context, ns, snapshotter, name string) error {
			sn := w.snapshotter(Scope{Namespace: ns}, snapshotter)
			err := ignoreNotFound(sn.Remove(ctx, "again")) // of the first try
			if err == nil {
				_, err = sn.Prepare(ctx, "again", "", nil)
			}
			if err != nil {
				return err
			}
			return errors.Join(sn.Replace(ctx, name, "again"), ignoreNotFound(sn.Remove(ctx, "again")))
		}
		r := &Repair{Fetch: registry{digest.FromString("data"): "data"}, Layer: layer}
		for p := range w.Check(bg, CheckOptions{ReadContent: true, Repair: r}) {
			if p.Repaired == "" {
				failed++
			}
		}
		return failed
	}
	w := newWorld(t)
	damage(w)
	fault.Reset()
	if n := repair(w); n > 0 {
		t.Fatalf("%d are not repaired", n)
	}
	points := fault.Seen()
	for _, want := range []string{"content.commit.rename", "testdriver.flush.syncdir", backupOp + ".rename", commitPoint} {
		if !slices.Contains(points, want) {
			t.Errorf("no point %s among %v", want, points)
		}
	}
	for _, point := range points {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(fmt.Sprintf("%s/%s", point, fate), func(t *testing.T) {
				w := newWorld(t)
				damage(w)
				disarm := fault.Set(point, fate)
				repair(w)
				disarm()
				w.restart()
				w.settled()
				if n := repair(w); n > 0 {
					t.Errorf("%d are not repaired by the second try", n)
				}
				w.mustBeClean()
				if _, err := native(w, ns).Stat(bg, "top"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestGenerationTwoFates fails each step of the copies that are kept: there is
// always a whole one, once there was one.
func TestGenerationTwoFates(t *testing.T) {
	whole := func(w *world) bool {
		return VerifyFile(w.options.Path+Generation) == nil || VerifyFile(w.options.Path+OlderGeneration) == nil
	}
	for _, step := range []string{".sync", ".rename", ".syncdir", ".age.rename", ".age.syncdir", ".next.rename", ".next.syncdir"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(step+" "+string(fate), func(t *testing.T) {
				w := newWorld(t)
				w.blob(ns, "one", nil)
				last, err := w.generation(bg, -1)
				w.must(err)
				w.blob(ns, "two", nil)
				disarm := fault.Set(backupOp+step, fate)
				_, err = w.generation(bg, last)
				disarm()
				if !errors.Is(err, fault.ErrInjected) || !whole(w) {
					t.Errorf("%v, a whole copy: %v", err, whole(w))
				}
				if _, err = w.generation(bg, last); err != nil || VerifyFile(w.options.Path+Generation) != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestRebuildTwoFates fails each step of a rebuild: the next one ends it, and no
// row is lost.
func TestRebuildTwoFates(t *testing.T) {
	for _, step := range []string{".whole.rename", ".whole.syncdir", ".aside.rename", ".aside.syncdir", ".rename", ".syncdir"} {
		for _, fate := range []fault.Fate{fault.FailBefore, fault.FailAfter} {
			t.Run(step+" "+string(fate), func(t *testing.T) {
				w, _ := filled(t)
				w.must(second(w.generation(bg, -1)))
				want := w.names()
				w.must(w.DB.Close())
				data, err := os.ReadFile(w.options.Path)
				w.must(err)
				clear(data[:8<<10]) // both pages that say where all is
				w.must(os.WriteFile(w.options.Path, data, 0o600))
				if VerifyFile(w.options.Path) == nil {
					t.Fatal("it is whole still")
				}
				disarm := fault.Set(rebuildOp+step, fate)
				_, err = Rebuild(w.options)
				disarm()
				if !errors.Is(err, fault.ErrInjected) {
					t.Errorf("%v", err)
				}
				if VerifyFile(w.options.Path) != nil {
					w.must(w.disk.Close())
					w.rebuild(t)
				} else {
					w.must(w.disk.Close())
					w.open()
				}
				if got := w.names(); got != want {
					t.Errorf("has %s\nof %s", got, want)
				}
				w.close()
			})
		}
	}
}
