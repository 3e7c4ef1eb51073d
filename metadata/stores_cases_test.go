package metadata

import (
	"maps"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

type calls map[string]func() error

// storeCases are the calls of stores.json by name.
func storeCases(w *world, s Scope) calls {
	blob := w.blob(s, "blob", nil)
	all := calls{}
	for _, some := range []calls{
		containerCases(w, s), imageCases(w, s, blob), contentCases(w, s), snapshotCases(w.snapshotter(s, "native")),
		leaseCases(w, s, blob), namespaceCases(w, s),
	} {
		maps.Copy(all, some)
	}
	return all
}

func containerCases(w *world, s Scope) calls {
	update := func(change func(*containers.Container), mask ...string) func() error {
		return func() error {
			c := testContainer("c1")
			change(c)
			return second(w.Containers(s).Update(bg, c, mask...))
		}
	}
	create := func(change func(*containers.Container)) func() error {
		return func() error {
			c := testContainer("new")
			change(c)
			return second(w.Containers(s).Create(bg, c))
		}
	}
	runtime := func(c *containers.Container) { c.Runtime.Name = "io.containerd.kata.v2" }
	snapshotter := func(c *containers.Container) { c.Snapshotter = "other" }
	keep := func(*containers.Container) {}
	return calls{
		"container: other runtime, no mask":                  update(runtime),
		"container: other runtime, mask labels":              update(runtime, "labels"),
		"container: mask runtime":                            update(keep, "runtime"),
		"container: other snapshotter, no mask":              update(snapshotter),
		"container: mask snapshotter":                        update(keep, "snapshotter"),
		"container: no spec, no mask":                        update(func(c *containers.Container) { c.Spec = nil; c.Snapshotter = "native" }),
		"container: mask snapshotkey":                        update(func(c *containers.Container) { c.SnapshotKey = "k2" }, "snapshotkey"),
		"container: mask snapshot_key":                       update(keep, "snapshot_key"),
		"container: mask extensions.foo with nothing given":  update(keep, "extensions.foo"),
		"container: unknown id":                              update(func(c *containers.Container) { c.Id = "none" }),
		"container: empty id":                                update(func(c *containers.Container) { c.Id = "" }),
		"container create: id in use":                        create(func(c *containers.Container) { c.Id = "c1" }),
		"container create: bad id":                           create(func(c *containers.Container) { c.Id = "a/b" }),
		"container create: no runtime name":                  create(func(c *containers.Container) { c.Runtime = nil }),
		"container create: no spec":                          create(func(c *containers.Container) { c.Spec = nil }),
		"container create: snapshot key without snapshotter": create(func(c *containers.Container) { c.SnapshotKey = "k" }),
	}
}

func imageCases(w *world, s Scope, blob digest.Digest) calls {
	image := func(change func(*images.Image)) func() error {
		return func() error {
			i := testImage("new", blob)
			change(i)
			return second(w.Images(s).Create(bg, i, nil))
		}
	}
	return calls{
		"image create: no name":                   image(func(i *images.Image) { i.Name = "" }),
		"image create: name in use":               image(func(i *images.Image) { i.Name = "plain" }),
		"image create: target size 0":             image(func(i *images.Image) { i.Target.Size = 0 }),
		"image create: target without media type": image(func(i *images.Image) { i.Target.MediaType = "" }),
		"image create: bad digest":                image(func(i *images.Image) { i.Target.Digest = "sha256:zz" }),
		"image update: mask target.digest": func() error {
			return second(w.Images(s).Update(bg, testImage("plain", blob), []string{"target.digest"}, nil))
		},
		"image update: mask target": func() error { return second(w.Images(s).Update(bg, testImage("plain", blob), []string{"target"}, nil)) },
		"image delete: target differs": func() error {
			return w.Images(s).Delete(bg, "plain", &types.Descriptor{Digest: digest.FromString("x").String()})
		},
		"image delete: unknown": func() error { return w.Images(s).Delete(bg, "none", nil) },
	}
}

func contentCases(w *world, s Scope) calls {
	return calls{
		"content delete: unknown":     func() error { return w.Blobs(s).Delete(bg, digest.FromString("x")) },
		"content abort: unknown ref":  func() error { return w.Blobs(s).Abort(bg, "none") },
		"content status: unknown ref": func() error { return second(w.Blobs(s).Status(bg, "none")) },
	}
}

func snapshotCases(native *Snapshots) calls {
	return calls{
		"snapshot prepare: key in use":                                                  func() error { return second(native.Prepare(bg, "act", "", nil)) },
		"snapshot prepare: parent is active":                                            func() error { return second(native.Prepare(bg, "p", "act", nil)) },
		"snapshot prepare: parent unknown":                                              func() error { return second(native.Prepare(bg, "p", "none", nil)) },
		"snapshot prepare: label containerd.io/snapshot.ref names an existing snapshot": func() error { return second(native.Prepare(bg, "p", "", map[string]string{labels.SnapshotRef: "com"})) },
		"snapshot commit: name in use":                                                  func() error { return native.Commit(bg, "com", "act", "", nil) },
		"snapshot commit: unknown key":                                                  func() error { return native.Commit(bg, "new", "none", "", nil) },
		"snapshot remove: has a child":                                                  func() error { return native.Remove(bg, "com") },
		"snapshot remove: unknown":                                                      func() error { return native.Remove(bg, "none") },
		"snapshot mounts: committed":                                                    func() error { return second(native.Mounts(bg, "com")) },
		"snapshot update: mask parent":                                                  func() error { return second(native.Update(bg, snapshots.Info{Name: "act"}, "parent")) },
	}
}

func leaseCases(w *world, s Scope, blob digest.Digest) calls {
	resource := func(lease, kind, id string) func() error {
		return func() error { return w.Leases(s).AddResource(bg, lease, &leases.Resource{Type: kind, Id: id}) }
	}
	return calls{
		"lease create: id in use":                           func() error { return second(w.Leases(s).Create(bg, "l1", nil)) },
		"lease delete: unknown":                             func() error { return w.Leases(s).Delete(bg, "none") },
		"lease add resource: type content id of a blob":     resource("l1", "content", blob.String()),
		"lease add resource: type content id not a digest":  resource("l1", "content", "x"),
		"lease add resource: type snapshots/native id act":  resource("l1", "snapshots/native", "act"),
		"lease add resource: type snapshots/nope id absent": resource("l1", "snapshots/nope", "absent"),
		"lease add resource: type snapshots id act":         resource("l1", "snapshots", "act"),
		"lease add resource: type snapshots/a/b id act":     resource("l1", "snapshots/a/b", "act"),
		"lease add resource: type ingests id up-1":          resource("l1", "ingests", "up-1"),
		"lease add resource: type images id plain":          resource("l1", "images", "plain"),
		"lease add resource: type content/x id x":           resource("l1", "content/x", "x"),
		"lease add resource: type containers id c1":         resource("l1", "containers", "c1"),
		"lease add resource: unknown lease":                 resource("none", "images", "plain"),
		"lease delete resource: not there": func() error {
			return w.Leases(s).DeleteResource(bg, "l1", &leases.Resource{Type: "images", Id: "none"})
		},
		"any write under a lease that does not exist": func() error { return writesUnderNoLease(w, s) },
	}
}

func namespaceCases(w *world, s Scope) calls {
	space := w.Namespaces()
	return calls{
		"namespace create: new":                   func() error { return second(space.Create(bg, &namespaces.Namespace{Name: "made"})) },
		"namespace create: in use":                func() error { return second(space.Create(bg, &namespaces.Namespace{Name: "made"})) },
		"namespace create: one that a write made": func() error { return second(space.Create(bg, &namespaces.Namespace{Name: s.Namespace})) },
		"namespace create: bad name":              func() error { return second(space.Create(bg, &namespaces.Namespace{Name: "a/b"})) },
		"namespace delete: not empty":             func() error { return space.Delete(bg, s.Namespace) },
		"namespace delete: empty":                 func() error { return space.Delete(bg, "made") },
		"namespace delete: unknown":               func() error { return space.Delete(bg, "none") },
		"namespace set label: unknown namespace (it is made)": func() error {
			return second(space.Update(bg, &namespaces.Namespace{Name: "by-label", Labels: map[string]string{"a": "b"}}, "labels.a"))
		},
		"list without a namespace": func() error { return second(w.Images(Scope{}).List(bg)) },
	}
}
