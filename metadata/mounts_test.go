package metadata

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
)

// mountWorld is a world that can activate mounts, below dir.
func mountWorld(t *testing.T) (w *world, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	w = newWorld(t, func(o *Options) {
		o.Mounts = &activate.Place{Root: filepath.Join(filepath.Dir(o.Path), "mounts")}
		o.BootID = "boot-1"
	})
	dir = filepath.Join(w.dir, "tree")
	w.must(os.Mkdir(dir, 0o755))
	t.Cleanup(func() { w.must(w.sweepMounted(bg)) })
	return w, dir
}

// templated are mounts that need a handler.
func templated(dir string) []mount.Mount {
	return []mount.Mount{
		{Type: "bind", Source: dir, Options: []string{"rbind", "ro"}},
		{Type: "format/bind", Source: "{{ mount 0 }}/sub", Options: []string{"rbind"}},
	}
}

// mounted lists what is mounted for activations.
func (w *world) mounted() []string {
	w.t.Helper()
	points, err := mount.Below(filepath.Join(w.dir, "mounts"))
	w.must(err)
	return points
}

func TestActivation(t *testing.T) {
	w, dir := mountWorld(t)
	m := w.Mounts(Scope{Namespace: "ns"})
	if _, err := m.Activate(bg, "plain", []mount.Mount{{Type: "bind", Source: dir}}, ActivateOptions{}); result(err) != "unimplemented" {
		t.Errorf("nothing needs a handler: %v", err)
	}
	info, err := m.Activate(bg, "a", templated(dir), ActivateOptions{Labels: map[string]string{"x": "1"}})
	w.must(err)
	if len(info.Active) != 1 || len(info.System) != 1 || info.System[0].Source != info.Active[0].MountPoint+"/sub" || info.Active[0].MountedAt == nil {
		t.Errorf("%v", info)
	}
	if len(w.mounted()) != 1 {
		t.Errorf("mounted: %q", w.mounted())
	}
	if _, err := m.Activate(bg, "a", templated(dir), ActivateOptions{}); result(err) != "already_exists" {
		t.Error(err)
	}
	for _, s := range []Scope{{"ns", "none"}, {"n s", ""}} {
		if _, err := w.Mounts(s).Activate(bg, "b", templated(dir), ActivateOptions{}); err == nil {
			t.Errorf("%v", s)
		}
	}
	if _, err := m.Activate(bg, "b", templated(dir+"/none"), ActivateOptions{}); err == nil {
		t.Error("a source that is not there")
	}
	if len(w.mounted()) != 1 {
		t.Errorf("mounted: %q", w.mounted())
	}
	if _, err := m.Update(bg, &types.ActivationInfo{Name: "a", Labels: map[string]string{"y": "2"}}, "labels.y"); err != nil {
		t.Error(err)
	}
	if _, err := m.Update(bg, &types.ActivationInfo{Name: "a"}, "system"); result(err) != "invalid_argument" {
		t.Error(err)
	}
	for filter, want := range map[string]int{"": 1, "name==a": 1, "labels.y==2,labels.x==1": 1, "labels.x==2": 0} {
		if all, err := m.List(bg, filter); err != nil || len(all) != want {
			t.Errorf("%q: %v, %v", filter, all, err)
		}
	}
	if _, err := w.Mounts(Scope{Namespace: "other"}).Info(bg, "a"); result(err) != "not_found" {
		t.Error(err)
	}
	if err := w.Namespaces().Delete(bg, "ns"); result(err) != "failed_precondition" {
		t.Errorf("delete a namespace with mounts: %v", err)
	}
	w.collect() // it is nobody's, and stays
	w.must(m.Deactivate(bg, "a"))
	if err := m.Deactivate(bg, "a"); result(err) != "not_found" {
		t.Error(err)
	}
	if len(w.mounted()) != 0 {
		t.Errorf("mounted: %q", w.mounted())
	}
}

// TestActivationIsCollected: what is made in the name of a container or under a
// lease goes with them, and a temporary one with the last that refers to it.
func TestActivationIsCollected(t *testing.T) {
	w, dir := mountWorld(t)
	s := Scope{Namespace: "ns"}
	m := w.Mounts(s)
	w.must(second(w.Leases(s).Create(bg, "l", nil)))
	w.must(second(w.Containers(s).Create(bg, testContainer("c"))))
	c := testContainer("user")
	c.Labels = map[string]string{labels.GCRefMount + ".x": "temporary"}
	w.must(second(w.Containers(s).Create(bg, c)))
	w.must(second(m.Activate(bg, "kept", templated(dir), ActivateOptions{})))
	w.must(second(m.Activate(bg, "task", templated(dir), ActivateOptions{Labels: map[string]string{labels.GCBackRefContainer: "c"}})))
	w.must(second(m.Activate(bg, "temporary", templated(dir), ActivateOptions{Temporary: true})))
	w.must(second(m.Activate(bg, "stray", templated(dir), ActivateOptions{Temporary: true})))
	w.must(second(w.Mounts(Scope{"ns", "l"}).Activate(bg, "leased", templated(dir), ActivateOptions{})))
	if held, err := w.Leases(s).ListResources(bg, "l"); err != nil || len(held) != 0 {
		t.Errorf("clients see %v, %v", held, err)
	}
	w.collect()
	w.leftActive(m, "kept", "leased", "task", "temporary")
	w.must(w.Containers(s).Delete(bg, "user"))
	w.collect()
	w.leftActive(m, "kept", "leased", "task")
	w.must(w.Containers(s).Delete(bg, "c"))
	w.must(w.Leases(s).Delete(bg, "l"))
	w.collect()
	w.leftActive(m, "kept")
	if err := w.Leases(s).AddResource(bg, "l", &leases.Resource{Type: "mounts", Id: "kept"}); result(err) != "unimplemented" && result(err) != "not_found" {
		t.Error(err)
	}
	w.must(m.Deactivate(bg, "kept"))
	w.collect()
	w.leftActive(m)
}

// leftActive compares names and mounts.
func (w *world) leftActive(m *Mounts, want ...string) {
	w.t.Helper()
	all, err := m.List(bg)
	w.must(err)
	got := keys(all, (*types.ActivationInfo).GetName)
	if len(got) != len(want) {
		w.t.Errorf("activations: %q, want %q", got, want)
	}
	if n := len(w.mounted()); n != len(want) {
		w.t.Errorf("%d mounts, want %d", n, len(want))
	}
}

// TestActivationAfterCrash: a daemon that dies between mounting and its row
// leaves nothing to the next one; what has a row stays.
func TestActivationAfterCrash(t *testing.T) {
	w, dir := mountWorld(t)
	m := w.Mounts(Scope{Namespace: "ns"})
	w.must(second(m.Activate(bg, "a", templated(dir), ActivateOptions{})))
	w.must(second(w.options.Mounts.Make(bg, 99, templated(dir))))
	w.restart()
	m = w.Mounts(Scope{Namespace: "ns"})
	w.leftActive(m, "a")
	// Numbers of this boot are not used again.
	w.must(second(m.Activate(bg, "b", templated(dir), ActivateOptions{})))
	w.must(m.Deactivate(bg, "a"))
	w.leftActive(m, "b")

	// After a reboot there are no mounts, and no rows of them.
	w.must(w.options.Mounts.Remove(bg, 100))
	w.close()
	w.options.BootID = "boot-2"
	w.open()
	m = w.Mounts(Scope{Namespace: "ns"})
	if _, err := m.Info(bg, "b"); result(err) != "not_found" {
		t.Error(err)
	}
	w.must(second(m.Activate(bg, "b", templated(dir), ActivateOptions{})))
	w.must(w.Sweep(bg))
	w.leftActive(m, "b")
	w.must(m.Deactivate(bg, "b"))
	w.leftActive(m)
}
