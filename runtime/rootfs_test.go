package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/runtime/record"
)

// fakeRootfs notes what is mounted for tasks.
type fakeRootfs struct {
	mu     sync.Mutex
	active map[string][]*types.Mount
	calls  []string
	fail   error
}

func (f *fakeRootfs) Activate(_ context.Context, ns, id string, mounts []*types.Mount) ([]*types.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := ns + "/" + id
	f.calls = append(f.calls, "activate "+name)
	switch {
	case f.fail != nil:
		return nil, f.fail
	case f.active[name] != nil:
		return nil, fmt.Errorf("activation %q: %w", name, errdefs.ErrAlreadyExists)
	}
	f.active[name] = mounts
	return []*types.Mount{{Type: "bind", Source: mounts[0].GetSource(), Options: []string{"rbind"}}}, nil
}

func (f *fakeRootfs) Deactivate(_ context.Context, ns, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := ns + "/" + id
	f.calls = append(f.calls, "deactivate "+name)
	if f.active[name] == nil {
		return errdefs.ErrNotFound
	}
	delete(f.active, name)
	return nil
}

func (f *fakeRootfs) standing() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.active)
}

// needy is a root file system that no shim can mount.
func needy(t *testing.T) []*types.Mount {
	return append(bind(t.TempDir()), &types.Mount{Type: "format/bind", Source: "{{ mount 0 }}"})
}

// TestRootfs: what a shim can't mount is mounted for the task before its shim is
// asked, and goes with it, with the daemon dead in between or not.
func TestRootfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	m := newMachine(t)
	f := &fakeRootfs{active: map[string][]*types.Mount{}}
	m.mounter = f
	d := m.start()
	create := func(id string, rootfs []*types.Mount) error {
		_, err := d.Create(t.Context(), testNS, containerOf(id, script{}), &tasks.CreateTaskRequest{ContainerId: id, Rootfs: rootfs})
		return err
	}
	if err := create("plain", bind(t.TempDir())); err != nil || len(f.calls) != 0 {
		t.Errorf("%v, calls %q", err, f.calls)
	}
	f.active[testNS+"/a"] = needy(t) // of a task that is gone
	if err := create("a", needy(t)); err != nil || f.standing() != 1 {
		t.Fatalf("%v, calls %q", err, f.calls)
	}
	if err := create("b", needy(t)); err != nil || f.standing() != 2 {
		t.Fatalf("%v, calls %q", err, f.calls)
	}
	if err := second(d.delete("a")); err != nil || f.standing() != 1 {
		t.Errorf("%v, calls %q", err, f.calls)
	}
	d.stop()
	d = m.start()
	d.verdict("b", "connected")
	if err := errors.Join(second(d.delete("b")), second(d.delete("plain"))); err != nil || f.standing() != 0 {
		t.Errorf("%v, calls %q", err, f.calls)
	}

	f.fail = fmt.Errorf("no such layer: %w", errdefs.ErrNotFound)
	if err := create("c", needy(t)); err == nil || !strings.Contains(err.Error(), "mount its root file system: no such layer") {
		t.Error(err)
	}
	f.fail = nil
	if err := create("d", bind("/nowhere")); err == nil {
		t.Error("a root file system that is not there")
	}
	if err := create("e", append(bind("/nowhere"), needy(t)...)); err == nil || f.standing() != 0 {
		t.Errorf("%v, calls %q", err, f.calls)
	}
	if got := d.listed(); got != "" {
		t.Error(got)
	}
}

func TestMakesAll(t *testing.T) {
	for _, c := range []struct {
		list, kinds string
		want        bool
	}{
		{"", "bind,overlay", true}, {"", "bind,format/overlay", false}, {"format/overlay", "bind,format/overlay", true},
		{"format/*", "format/mkdir/overlay", true}, {"loop, format/*", "loop,ext4,format/overlay", true}, {"format/*", "loop,format/overlay", false},
		{"*", "format/overlay", false}, {"mkfs/*", "format/overlay", false},
	} {
		var mounts []record.Mount
		for kind := range strings.SplitSeq(c.kinds, ",") {
			mounts = append(mounts, record.Mount{Type: kind})
		}
		if got := makesAll(c.list, mounts); got != c.want {
			t.Errorf("%q of %q: %v", c.list, c.kinds, got)
		}
	}
}
