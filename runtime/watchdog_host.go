package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// bundles looks for bundles that belong to no task, and for what is left of
// such.
func (l *inspection) bundles() {
	spaces, err := os.ReadDir(string(l.tasks.bundles))
	if err != nil {
		l.report(Finding{Kind: "bundle", Object: string(l.tasks.bundles), Text: err.Error()})
		return
	}
	for _, space := range spaces {
		if names.Namespace(space.Name()) != nil {
			continue
		}
		entries, err := os.ReadDir(l.tasks.bundles.path(space.Name(), ""))
		if err != nil {
			continue
		}
		for _, e := range entries {
			l.bundle(space.Name(), e.Name())
		}
	}
}

func (l *inspection) bundle(ns, entry string) {
	t, path := l.tasks, l.tasks.bundles.path(ns, entry)
	leftover := strings.HasPrefix(entry, ".")
	if !leftover && (names.Identifier(entry) != nil || t.find(ns, entry) != nil) {
		return
	}
	// While its task is there, it may be on its way, however slow the disk is.
	if id, _, ok := cutLast(strings.TrimPrefix(entry, newPrefix), "-"); ok && t.find(ns, id) != nil {
		return
	}
	since, ok := l.ripe("bundle", ns, path)
	if !ok {
		return
	}
	f := Finding{Kind: "bundle", Namespace: ns, Object: path, Since: since}
	if !leftover {
		if t.find(ns, entry) != nil {
			return
		}
		f.Text = "a bundle that no task has; the next start of berthd judges it"
		if points, err := mount.Below(path); err == nil && len(points) > 0 {
			f.Text += fmt.Sprintf("; mounted in it: %v", points)
		}
		l.report(f)
		return
	}
	f.Text = "what is left of a bundle"
	if err := removeGone(path); err != nil {
		f.Text += ": " + err.Error()
	} else {
		f.Repaired = "removed it"
	}
	l.report(f)
}

// ociStates looks for containers that an OCI runtime knows and no task has.
func (l *inspection) ociStates() {
	root := filepath.Join(l.tasks.cfg.State, ociDir)
	states, _ := filepath.Glob(filepath.Join(root, "*", "*"))
	for _, path := range states {
		ns, id := filepath.Base(filepath.Dir(path)), filepath.Base(path)
		if names.Namespace(ns) != nil || names.Identifier(id) != nil || l.tasks.find(ns, id) != nil {
			continue
		}
		since, ok := l.ripe("oci-state", ns, path)
		if !ok || l.tasks.find(ns, id) != nil {
			continue
		}
		f := Finding{Kind: "oci-state", Namespace: ns, Object: path, Since: since, Text: "the OCI runtime knows a container that no task has"}
		switch init, err := ociInit(path); {
		case err != nil:
			f.Text += ": " + err.Error()
		case lifeOf(init.PID, init.Start) == alive:
			f.Text += fmt.Sprintf("; its init runs as process %d", init.PID)
		default:
			if err := removeTree(path); err != nil {
				f.Text += ": " + err.Error()
			} else {
				f.Repaired = "removed its state; its init is dead"
			}
		}
		l.report(f)
	}
}

// sockets looks for sockets of shims that no task has.
func (l *inspection) sockets(ctx context.Context) {
	dir := filepath.Join(l.tasks.cfg.State, socketsDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		l.report(Finding{Kind: "socket", Object: dir, Text: err.Error()})
		return
	}
	known := l.tasks.ownSockets()
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if known[path] || e.Type() != os.ModeSocket {
			continue
		}
		since, ok := l.ripe("socket", "", path)
		if !ok || l.tasks.ownSockets()[path] {
			continue
		}
		c, err := l.tasks.dial(ctx, ownContact(path), false)
		if err == nil {
			c.close()
			continue // somebody's who looks after it: a sandbox, a shim that is leaving
		}
		if dialAnswer(err) != refused {
			continue
		}
		f := Finding{Kind: "socket", Object: path, Since: since, Text: "a socket that no task has, on which nobody listens"}
		if err := os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			f.Repaired = "removed it"
		} else {
			f.Text += ": " + err.Error()
		}
		l.report(f)
	}
}

// ownSockets are those of the tasks there are.
func (t *Tasks) ownSockets() map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := make(map[string]bool, len(t.tasks))
	for _, b := range t.boxes {
		known[b.socket] = true
	}
	for _, k := range t.tasks {
		known[k.socket] = true
	}
	return known
}

// bury removes a bundle that is gone by name, and remembers where its cgroup
// was.
func (t *Tasks) bury(n name, gone string) {
	if path := cgroupOf(gone); path != "" {
		t.dog.mu.Lock()
		if len(t.dog.graves) == maxGraves {
			t.dog.graves = slices.Delete(t.dog.graves, 0, 1)
		}
		t.dog.graves = append(t.dog.graves, grave{n, path, t.cfg.Now()})
		t.dog.mu.Unlock()
	}
	sweep(t.cfg.Log, gone)
}

// cgroupOf reads where the spec of a bundle has its cgroup; "" if it says
// nothing that is a path.
func cgroupOf(dir string) string {
	f, err := os.Open(filepath.Join(dir, record.ConfigFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	var config struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	const most = 4 << 20 // bytes of a spec
	if json.NewDecoder(io.LimitReader(f, most)).Decode(&config) != nil || !filepath.IsAbs(config.Linux.CgroupsPath) {
		return ""
	}
	return config.Linux.CgroupsPath
}

// cgroups looks whether those of tasks that are gone are gone, too. Only these
// are known to have been ours.
func (l *inspection) cgroups() {
	dog := &l.tasks.dog
	dog.mu.Lock()
	graves := slices.Clone(dog.graves)
	dog.mu.Unlock()
	settled := map[grave]bool{}
	for _, g := range graves {
		if l.now.Sub(g.since) < l.tasks.cfg.Watch/3 {
			continue
		}
		settled[g] = l.tasks.find(g.name.ns, g.name.id) != nil || l.cgroup(g) // made anew, it is the new task's
	}
	dog.mu.Lock()
	defer dog.mu.Unlock()
	dog.graves = slices.DeleteFunc(dog.graves, func(g grave) bool { return settled[g] })
}

// cgroup tells whether nothing is left of a group.
func (l *inspection) cgroup(g grave) bool {
	left, err := cgroup.Directories(g.cgroup)
	if err != nil || len(left) == 0 {
		return err == nil
	}
	f := Finding{Kind: "cgroup", Namespace: g.name.ns, Object: g.name.id, Since: g.since,
		Text: "the task is gone, its cgroup " + g.cgroup + " is not"}
	if err := cgroup.Remove(g.cgroup); err != nil {
		f.Text += ": " + err.Error()
		l.report(f)
		return false
	}
	f.Repaired = "removed it"
	l.report(f)
	return true
}
