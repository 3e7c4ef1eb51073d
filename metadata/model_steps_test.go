package metadata

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/snapshots"
)

// do makes one step in store and model.
func (m *worker) do(s step) {
	o := &m.objects[s.A]
	switch s.Do {
	case "create":
		m.create(s)
	case "link", "unlink", "root", "unroot", "back":
		m.relabel(s)
	case "hold":
		m.expect(m.w.Leases(m.s).AddResource(bg, "lease", m.resource(s.A)))
		m.held[s.A] = true
	case "drop":
		m.expect(m.w.Leases(m.s).DeleteResource(bg, "lease", m.resource(s.A)))
		delete(m.held, s.A)
	case "drop all":
		m.expect(m.w.Leases(m.s).Delete(bg, "lease"))
		m.expect(second(m.w.Leases(m.s).Create(bg, "lease", nil)))
		clear(m.held)
	case "delete":
		m.delete(s.A, o)
	case "image":
		if m.image >= 0 {
			m.expect(m.w.Images(m.s).Delete(bg, "image", nil))
			m.image = -1
		} else if isBlob(s.A) {
			m.expect(second(m.w.Images(m.s).Create(bg, testImage("image", digest.Digest(idOf(s.A))), nil)))
			m.image = s.A
		}
	case "container":
		if m.container >= 0 {
			m.expect(m.w.Containers(m.s).Delete(bg, "container"))
			m.container = -1
		} else if !isBlob(s.A) {
			c := testContainer("container")
			c.Snapshotter, c.SnapshotKey = "native", idOf(s.A)
			m.expect(second(m.w.Containers(m.s).Create(bg, c)))
			m.container = s.A
		}
	}
}

func (m *worker) resource(i int) *leases.Resource {
	if isBlob(i) {
		return &leases.Resource{Type: "content", Id: idOf(i)}
	}
	return &leases.Resource{Type: "snapshots/native", Id: idOf(i)}
}

func (m *worker) create(s step) {
	o := &m.objects[s.A]
	if o.there && !o.maybe {
		return
	}
	scope := m.s
	if s.Lease {
		scope.Lease = "lease"
	}
	var err error
	parent := -1
	if isBlob(s.A) {
		_, err = writeBlob(m.w.DB, scope, bytesOf(s.A), nil)
	} else {
		if !isBlob(s.B) && s.B < s.A && m.objects[s.B].there && !m.objects[s.B].maybe {
			parent = s.B
		}
		err = m.layer(s, scope.Lease, parent)
	}
	switch {
	case err == nil:
		m.gone(s.A)
		*o = object{there: true, maybe: !s.Lease, parent: parent}
		for i := range m.objects {
			if _, ok := m.objects[i].links[s.A]; ok {
				m.objects[i].links[s.A] = true
			}
		}
	case errdefs.IsAlreadyExists(err) && o.there:
	case errdefs.IsNotFound(err) && !s.Lease && !isBlob(s.A): // the key, unheld, was collected
		return
	default:
		m.fail("%s: create %d: %v", m.s.Namespace, s.A, err)
	}
	if s.Lease {
		m.held[s.A] = true
	}
}

func (m *worker) layer(s step, lease string, parent int) error {
	store := m.snapshots(lease)
	name, key := "", fmt.Sprint("key ", s.A)
	if parent >= 0 {
		name = idOf(parent)
	}
	if _, err := store.Prepare(bg, key, name, nil); err != nil {
		return err
	}
	err := store.Commit(bg, idOf(s.A), key, "", nil)
	if errdefs.IsAlreadyExists(err) {
		if removed := store.Remove(bg, key); removed != nil && (lease != "" || !errdefs.IsNotFound(removed)) {
			m.expect(removed)
		}
	}
	return err
}

func (m *worker) relabel(s step) {
	o := &m.objects[s.A]
	if !o.there {
		return
	}
	before := *o
	o.links, o.back = cloneInts(o.links), cloneInts(o.back)
	switch s.Do {
	case "link":
		if s.B < s.A {
			o.links[s.B] = false
		}
	case "unlink":
		delete(o.links, s.B)
	case "back":
		if s.B > s.A {
			o.back[s.B] = true
		}
	default:
		o.root = s.Do == "root"
	}
	var err error
	if isBlob(s.A) {
		_, err = m.w.Blobs(m.s).Update(bg, &contentapi.Info{Digest: idOf(s.A), Labels: m.labels(s.A)})
	} else {
		_, err = m.native.Update(bg, snapshots.Info{Name: idOf(s.A), Labels: m.labels(s.A)})
	}
	if errdefs.IsNotFound(err) && before.maybe {
		m.gone(s.A)
		return
	}
	m.expect(err)
	if s.Do == "link" && s.B < s.A && m.objects[s.B].there {
		if m.exists(s.B) {
			o.links[s.B] = true
		} else if m.objects[s.B].maybe {
			m.gone(s.B)
		}
	}
}

func cloneInts(in map[int]bool) map[int]bool {
	out := map[int]bool{}
	for key, value := range in {
		out[key] = value
	}
	return out
}

func (m *worker) delete(i int, o *object) {
	var err error
	if isBlob(i) {
		err = m.w.Blobs(m.s).Delete(bg, digest.Digest(idOf(i)))
	} else {
		err = m.native.Remove(bg, idOf(i))
	}
	switch {
	case err == nil, errdefs.IsNotFound(err) && (o.maybe || !o.there):
		m.gone(i)
	case errdefs.IsFailedPrecondition(err) && !isBlob(i): // it has children
	default:
		m.fail("%s: delete %d: %v", m.s.Namespace, i, err)
	}
}
