package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
)

// watchedDriver notes what it is given, and can be made to wait or fail.
type watchedDriver struct {
	*testDriver
	mu      sync.Mutex
	options []snapshots.CreateOptions
	fail    error
	hold    chan struct{} // not nil: Create waits for it to close
	removes int
}

func (d *watchedDriver) Create(ctx context.Context, id snapshots.ID, parents []snapshots.ID, o snapshots.CreateOptions) error {
	d.mu.Lock()
	d.options = append(d.options, o)
	hold := d.hold
	d.mu.Unlock()
	if err := d.testDriver.Create(ctx, id, parents, o); err != nil {
		return err
	}
	if hold != nil {
		<-hold
	}
	return nil
}

func (d *watchedDriver) Remove(ctx context.Context, id snapshots.ID) error {
	d.mu.Lock()
	d.removes++
	err := d.fail
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.testDriver.Remove(ctx, id)
}

func watched(t *testing.T) (*world, *watchedDriver, *Snapshots) {
	d := &watchedDriver{}
	w := newWorld(t, func(o *Options) {
		d.testDriver = o.Drivers["native"].(*testDriver)
		o.Drivers["native"] = d
	})
	return w, d, w.snapshotter(Scope{Namespace: "ns"}, "native")
}

// settled waits until no directory is on its way out.
func (w *world) settled() {
	w.t.Helper()
	<-w.unlinker.start()
	for _, d := range w.drivers {
		for busy := true; busy; runtime.Gosched() {
			d.mu.Lock()
			busy = len(d.leaving) > 0
			d.mu.Unlock()
		}
	}
}

func (w *world) directories() int {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, "native"))
	w.must(err)
	return len(entries)
}

// TestLayerIsTold: a driver learns which snapshots a layer will be unpacked into.
func TestLayerIsTold(t *testing.T) {
	w, driver, native := watched(t)
	w.must(second(native.Prepare(bg, "container", "", nil)))
	w.must(second(native.Prepare(bg, "layer", "", map[string]string{labels.SnapshotRef: "chain"})))
	if got := driver.options; len(got) != 2 || got[0].Layer || !got[1].Layer {
		t.Errorf("%+v", got)
	}
}

func TestSnapshotLife(t *testing.T) {
	w, driver, native := watched(t)
	given := map[string]string{"a": "b", "containerd.io/snapshot/uidmapping": "0:1:2", "empty": ""}
	mounts, err := native.Prepare(bg, "k1", "", given)
	w.must(err)
	again, err := native.Mounts(bg, "k1")
	if err != nil || !cmp.Equal(mounts, again) {
		t.Errorf("%v, %v; want %v", again, err, mounts)
	}
	if diff := cmp.Diff([]snapshots.CreateOptions{{Kind: snapshots.Active, Labels: map[string]string{"containerd.io/snapshot/uidmapping": "0:1:2"}}}, driver.options); diff != "" {
		t.Error(diff)
	}
	w.must(os.WriteFile(filepath.Join(mounts[0].Source, "file"), nil, 0o600))
	if usage, err := native.Usage(bg, "k1"); err != nil || usage.Size != 10 {
		t.Errorf("%v, %v", usage, err)
	}
	w.must(native.Commit(bg, "base", "k1", "", map[string]string{"c": "d"}))
	w.must(os.WriteFile(filepath.Join(mounts[0].Source, "later"), nil, 0o600))
	if usage, err := native.Usage(bg, "base"); err != nil || usage.Size != 10 {
		t.Errorf("%v, %v", usage, err)
	}
	info, err := native.Stat(bg, "base")
	if err != nil || info.Kind != snapshots.Committed || !cmp.Equal(info.Labels, map[string]string{"c": "d"}) || info.CreatedAt.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := native.Stat(bg, "k1"); result(err) != "not_found" {
		t.Error(err)
	}
	mounts, err = native.View(bg, "v", "base", nil)
	if err != nil || !cmp.Equal(mounts[0].Options, []string{"view", "parent=1"}) {
		t.Errorf("%v, %v", mounts, err)
	}
	if err := native.Commit(bg, "n", "v", "", nil); result(err) != "failed_precondition" {
		t.Error(err)
	}
	w.must(native.Remove(bg, "v"))
	w.must(native.Remove(bg, "base"))
	w.settled()
	if n := w.directories(); n != 0 {
		t.Errorf("%d directories", n)
	}
	// Numbers don't come again.
	mounts, err = native.Prepare(bg, "k1", "", nil)
	if err != nil || filepath.Base(mounts[0].Source) != "3" {
		t.Errorf("%v, %v", mounts, err)
	}
}

func TestRebase(t *testing.T) {
	w, _, native := watched(t)
	w.layer(native, "base", "", nil)
	w.layer(native, "other", "", nil)
	w.must(second(native.Prepare(bg, "k", "", nil)))
	w.must(second(native.Prepare(bg, "on base", "base", nil)))
	for parent, want := range map[string]string{"none": "not_found", "on base": "invalid_argument"} {
		if err := native.Commit(bg, "n", "k", parent, nil); result(err) != want {
			t.Errorf("parent %q: %v", parent, err)
		}
	}
	if err := native.Commit(bg, "n", "on base", "other", nil); result(err) != "invalid_argument" {
		t.Error(err)
	}
	w.must(native.Commit(bg, "n", "k", "base", nil))
	if err := native.Remove(bg, "base"); result(err) != "failed_precondition" {
		t.Error(err)
	}
	mounts, err := native.View(bg, "v", "n", nil)
	if err != nil || !cmp.Equal(mounts[0].Options, []string{"view", "parent=3", "parent=1"}) {
		t.Errorf("%v, %v", mounts, err)
	}
}

// TestPrepareIsNoOrphan: while a snapshot has directories and no row yet,
// neither check nor sweep takes it for garbage.
func TestPrepareIsNoOrphan(t *testing.T) {
	w, driver, native := watched(t)
	driver.hold = make(chan struct{})
	done := make(chan error)
	var mounts []mount.Mount
	go func() {
		var err error
		mounts, err = native.Prepare(bg, "k", "", nil)
		done <- err
	}()
	for w.directories() == 0 {
		runtime.Gosched()
	}
	w.mustBeClean()
	w.must(w.Sweep(bg))
	w.collect()
	close(driver.hold)
	w.must(<-done)
	if _, err := os.Stat(mounts[0].Source); err != nil {
		t.Error(err)
	}
}

// TestPrepareLosesItsParent: the parent goes while the directories are made.
func TestPrepareLosesItsParent(t *testing.T) {
	w, driver, native := watched(t)
	w.layer(native, "base", "", nil)
	driver.hold = make(chan struct{})
	done := make(chan error)
	go func() { done <- second(native.Prepare(bg, "k", "base", nil)) }()
	for w.directories() < 2 {
		runtime.Gosched()
	}
	w.must(native.Remove(bg, "base"))
	close(driver.hold)
	if err := <-done; result(err) != "not_found" {
		t.Error(err)
	}
	w.settled()
	if n := w.directories(); n != 0 {
		t.Errorf("%d directories", n)
	}
}

// TestPrepareRaces: of several that prepare one key, one gets it, and the
// others leave nothing.
func TestPrepareRaces(t *testing.T) {
	w, _, native := watched(t)
	var group sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		group.Go(func() { errs[i] = second(native.Prepare(bg, "k", "", nil)) })
	}
	group.Wait()
	made := 0
	for _, err := range errs {
		switch result(err) {
		case "ok":
			made++
		case "already_exists":
		default:
			t.Error(err)
		}
	}
	if n := w.directories(); made != 1 || n != 1 {
		t.Errorf("%d made, %d directories", made, n)
	}
}

func TestRemovalIsTriedAgain(t *testing.T) {
	w, driver, native := watched(t)
	w.must(second(native.Prepare(bg, "k", "", nil)))
	driver.fail = errors.New("device or resource busy")
	w.must(native.Remove(bg, "k"))
	for failed := 0; failed == 0; runtime.Gosched() {
		w.remover.mu.Lock()
		failed = len(w.remover.failed)
		w.remover.mu.Unlock()
	}
	w.mustBeClean() // it is known to go
	driver.mu.Lock()
	driver.fail = nil
	driver.mu.Unlock()
	w.collect()
	w.settled()
	if n := w.directories(); n != 0 {
		t.Errorf("%d directories", n)
	}
}

// TestDirectoriesLeftAtClose are swept at the next start.
func TestDirectoriesLeftAtClose(t *testing.T) {
	w, driver, native := watched(t)
	for i := range 5 {
		w.must(second(native.Prepare(bg, fmt.Sprint(i), "", nil)))
	}
	driver.fail = errors.New("busy")
	for i := range 5 {
		w.must(native.Remove(bg, fmt.Sprint(i)))
	}
	w.close()
	driver.fail = nil
	w.open()
	if err := w.Sweep(bg); err != nil {
		t.Error(err)
	}
	w.settled()
	if n := w.directories(); n != 0 {
		t.Errorf("%d directories", n)
	}
}

func TestUnknownSnapshotterKeepsItsRows(t *testing.T) {
	w, _, native := watched(t)
	w.layer(native, "base", "", nil)
	w.close()
	driver := w.options.Drivers["native"]
	delete(w.options.Drivers, "native")
	w.open()
	w.must(w.Sweep(bg))
	w.mustBeClean()
	w.close()
	w.options.Drivers["native"] = driver
	w.open()
	if _, err := w.snapshotter(Scope{Namespace: "ns"}, "native").Stat(bg, "base"); err != nil {
		t.Error(err)
	}
}

func TestConditions(t *testing.T) {
	for value, want := range map[string]int{
		"usedat<1h|used":  1,
		"usedat<10m|used": 0,
		"usedat<1h|none":  0,
		"usedat<1h":       0,
		"used<1h|used":    0,
	} {
		w, _, native := watched(t)
		s := Scope{Namespace: "ns"}
		used := w.options.Now().Add(-30 * 60 * 1e9).UTC().Format("2006-01-02T15:04:05Z07:00")
		w.layer(native, "used", "", map[string]string{labels.GCUsedAt: used})
		d := w.blob(s, "holder", map[string]string{labels.GCCondSnapshot + "native": value})
		w.must(second(w.Leases(s).Create(bg, "l", nil)))
		w.must(w.Leases(s).AddResource(bg, "l", &leases.Resource{Type: "content", Id: d.String()}))
		w.collect()
		left := 0
		for range native.All(bg) {
			left++
		}
		if left != want {
			t.Errorf("%q: %d left", value, left)
		}
	}
}
