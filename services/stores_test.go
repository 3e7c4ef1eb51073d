package services

import (
	"context"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/types"
)

// lastErr is the error of a call whose answer does not matter.
func lastErr[A any](_ A, err error) error { return err }

func mask(paths ...string) *fieldmaskpb.FieldMask { return &fieldmaskpb.FieldMask{Paths: paths} }

// storeCases are the calls that the vectors of stores name. A name that stands
// there twice is called twice.
func storeCases(d *daemon, c *clients, empty context.Context) map[string]func() error {
	cases := map[string]func() error{}
	for _, part := range []map[string]func() error{
		containerCases(c), imageCases(c), snapshotCases(c), leaseCases(c), namespaceCases(d, c),
		{
			"content delete: unknown": func() error {
				return lastErr(c.content.Delete(c.ctx, &content.DeleteContentRequest{Digest: digest.FromString("nobody").String()}))
			},
			"content abort: unknown ref":  func() error { return lastErr(c.content.Abort(c.ctx, &content.AbortRequest{Ref: "nope"})) },
			"content status: unknown ref": func() error { return lastErr(c.content.Status(c.ctx, &content.StatusRequest{Ref: "nope"})) },
			"any write under a lease that does not exist": func() error {
				return lastErr(c.snapshots.Prepare(empty, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "under-nothing"}))
			},
			"list without a namespace": func() error {
				return lastErr(c.images.List(context.Background(), &images.ListImagesRequest{}))
			},
		},
	} {
		for name, f := range part {
			cases[name] = f
		}
	}
	return cases
}

func containerCases(c *clients) map[string]func() error {
	update := func(change func(*containers.Container), paths ...string) func() error {
		return func() error {
			r := &containers.Container{Id: "c1", Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"}, Spec: spec()}
			change(r)
			return lastErr(c.containers.Update(c.ctx, &containers.UpdateContainerRequest{Container: r, UpdateMask: mask(paths...)}))
		}
	}
	create := func(change func(*containers.Container)) func() error {
		return func() error {
			r := &containers.Container{Id: "new", Runtime: &containers.Container_Runtime{Name: "r"}, Spec: spec()}
			change(r)
			return lastErr(c.containers.Create(c.ctx, &containers.CreateContainerRequest{Container: r}))
		}
	}
	otherRuntime := func(r *containers.Container) { r.Runtime.Name = "other" }
	otherSnapshotter := func(r *containers.Container) { r.Snapshotter = "other" }
	nothing := func(*containers.Container) {}
	return map[string]func() error{
		"container: other runtime, no mask":                  update(otherRuntime),
		"container: other runtime, mask labels":              update(otherRuntime, "labels"),
		"container: mask runtime":                            update(otherRuntime, "runtime"),
		"container: other snapshotter, no mask":              update(otherSnapshotter),
		"container: mask snapshotter":                        update(otherSnapshotter, "snapshotter"),
		"container: no spec, no mask":                        update(func(r *containers.Container) { r.Spec = nil }),
		"container: mask snapshotkey":                        update(nothing, "snapshotkey"),
		"container: mask snapshot_key":                       update(nothing, "snapshot_key"),
		"container: mask extensions.foo with nothing given":  update(nothing, "extensions.foo"),
		"container: unknown id":                              update(func(r *containers.Container) { r.Id = "nope" }),
		"container: empty id":                                update(func(r *containers.Container) { r.Id = "" }),
		"container create: id in use":                        create(func(r *containers.Container) { r.Id = "c1" }),
		"container create: bad id":                           create(func(r *containers.Container) { r.Id = "a b" }),
		"container create: no runtime name":                  create(func(r *containers.Container) { r.Runtime.Name = "" }),
		"container create: no spec":                          create(func(r *containers.Container) { r.Spec = (*anypb.Any)(nil) }),
		"container create: snapshot key without snapshotter": create(func(r *containers.Container) { r.SnapshotKey = "k" }),
	}
}

func imageCases(c *clients) map[string]func() error {
	target := func() *types.Descriptor {
		return &types.Descriptor{MediaType: "m", Digest: digest.FromString("plain").String(), Size: 5}
	}
	create := func(change func(*images.Image)) func() error {
		return func() error {
			i := &images.Image{Name: "new", Target: target()}
			change(i)
			return lastErr(c.images.Create(c.ctx, &images.CreateImageRequest{Image: i}))
		}
	}
	return map[string]func() error{
		"image create: no name":                   create(func(i *images.Image) { i.Name = "" }),
		"image create: name in use":               create(func(i *images.Image) { i.Name = "plain" }),
		"image create: target size 0":             create(func(i *images.Image) { i.Target.Size = 0 }),
		"image create: target without media type": create(func(i *images.Image) { i.Target.MediaType = "" }),
		"image create: bad digest":                create(func(i *images.Image) { i.Target.Digest = "sha256:zz" }),
		"image update: mask target.digest": func() error {
			return lastErr(c.images.Update(c.ctx, &images.UpdateImageRequest{Image: &images.Image{Name: "plain", Target: target()}, UpdateMask: mask("target.digest")}))
		},
		"image update: mask target": func() error {
			return lastErr(c.images.Update(c.ctx, &images.UpdateImageRequest{Image: &images.Image{Name: "plain", Target: target()}, UpdateMask: mask("target")}))
		},
		"image delete: target differs": func() error {
			other := target()
			other.Digest = digest.FromString("other").String()
			return lastErr(c.images.Delete(c.ctx, &images.DeleteImageRequest{Name: "plain", Target: other}))
		},
		"image delete: unknown": func() error { return lastErr(c.images.Delete(c.ctx, &images.DeleteImageRequest{Name: "nope"})) },
	}
}

func snapshotCases(c *clients) map[string]func() error {
	prepare := func(key, parent string, labels map[string]string) func() error {
		return func() error {
			return lastErr(c.snapshots.Prepare(c.ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: key, Parent: parent, Labels: labels}))
		}
	}
	commit := func(key, name string) func() error {
		return func() error {
			return lastErr(c.snapshots.Commit(c.ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: "native", Key: key, Name: name}))
		}
	}
	remove := func(key string) func() error {
		return func() error {
			return lastErr(c.snapshots.Remove(c.ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: "native", Key: key}))
		}
	}
	return map[string]func() error{
		"snapshot prepare: key in use":                                                  prepare("act", "", nil),
		"snapshot prepare: parent is active":                                            prepare("p1", "act", nil),
		"snapshot prepare: parent unknown":                                              prepare("p2", "nope", nil),
		"snapshot prepare: label containerd.io/snapshot.ref names an existing snapshot": prepare("p3", "", map[string]string{"containerd.io/snapshot.ref": "com"}),
		"snapshot commit: name in use":                                                  commit("act", "com"),
		"snapshot commit: unknown key":                                                  commit("nope", "n"),
		"snapshot remove: has a child":                                                  remove("com"),
		"snapshot remove: unknown":                                                      remove("nope"),
		"snapshot mounts: committed": func() error {
			return lastErr(c.snapshots.Mounts(c.ctx, &snapshotsapi.MountsRequest{Snapshotter: "native", Key: "com"}))
		},
		"snapshot update: mask parent": func() error {
			return lastErr(c.snapshots.Update(c.ctx, &snapshotsapi.UpdateSnapshotRequest{
				Snapshotter: "native", Info: &snapshotsapi.Info{Name: "com", Parent: "act"}, UpdateMask: mask("parent"),
			}))
		},
	}
}

func leaseCases(c *clients) map[string]func() error {
	add := func(lease, kind, id string) func() error {
		return func() error {
			return lastErr(c.leases.AddResource(c.ctx, &leases.AddResourceRequest{Id: lease, Resource: &leases.Resource{Type: kind, Id: id}}))
		}
	}
	blob := digest.FromString("one").String()
	cases := map[string]func() error{
		"lease create: id in use":                          func() error { return lastErr(c.leases.Create(c.ctx, &leases.CreateRequest{Id: "l1"})) },
		"lease delete: unknown":                            func() error { return lastErr(c.leases.Delete(c.ctx, &leases.DeleteRequest{Id: "nope"})) },
		"lease add resource: type content id of a blob":    add("l1", "content", blob),
		"lease add resource: type content id not a digest": add("l1", "content", "x"),
		"lease add resource: unknown lease":                add("nope", "content", blob),
		"lease delete resource: not there": func() error {
			return lastErr(c.leases.DeleteResource(c.ctx, &leases.DeleteResourceRequest{Id: "l1", Resource: &leases.Resource{Type: "images", Id: "never"}}))
		},
	}
	for _, r := range [][2]string{
		{"snapshots/native", "act"}, {"snapshots/nope", "absent"}, {"snapshots", "act"}, {"snapshots/a/b", "act"},
		{"ingests", "up-1"}, {"images", "plain"}, {"content/x", "x"}, {"containers", "c1"},
	} {
		cases["lease add resource: type "+r[0]+" id "+r[1]] = add("l1", r[0], r[1])
	}
	return cases
}

func namespaceCases(d *daemon, c *clients) map[string]func() error {
	n := namespacesgrpc.NewNamespacesClient(d)
	create := func(name string) func() error {
		return func() error {
			return lastErr(n.Create(context.Background(), &namespaces.CreateNamespaceRequest{Namespace: &namespaces.Namespace{Name: name}}))
		}
	}
	remove := func(name string) func() error {
		return func() error {
			return lastErr(n.Delete(context.Background(), &namespaces.DeleteNamespaceRequest{Name: name}))
		}
	}
	return map[string]func() error{
		"namespace create: new":                   create("fresh"),
		"namespace create: in use":                create("fresh"),
		"namespace create: one that a write made": create("ns"),
		"namespace create: bad name":              create("a b"),
		"namespace delete: not empty":             remove("ns"),
		"namespace delete: empty":                 remove("fresh"),
		"namespace delete: unknown":               remove("nobody"),
		"namespace set label: unknown namespace (it is made)": func() error {
			return lastErr(n.Update(context.Background(), &namespaces.UpdateNamespaceRequest{
				Namespace: &namespaces.Namespace{Name: "made", Labels: map[string]string{"a": "b"}}, UpdateMask: mask("labels.a"),
			}))
		},
	}
}

func TestStoreVectors(t *testing.T) {
	var v struct {
		Cases []struct{ Case, Result string }
	}
	readVectors(t, "stores.json", &v)
	d := start(t)
	c := populate(t, d)
	cases := storeCases(d, c, in(t, "ns", leaseHeader, "no-such-lease"))
	for _, vector := range v.Cases {
		f := cases[vector.Case]
		if f == nil {
			t.Errorf("no test for %q", vector.Case)
			continue
		}
		err := f()
		if result(err) != vector.Result {
			t.Errorf("%s: %v, want %s", vector.Case, err, vector.Result)
		}
		if err != nil && !strings.Contains(err.Error(), strings.ReplaceAll(strings.Replace(vector.Result, "unimplemented", "not implemented", 1), "_", " ")) {
			t.Errorf("%s: the text %q does not end in its kind", vector.Case, err)
		}
	}
}
