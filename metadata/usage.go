package metadata

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/metadata/rows"
	"github.com/berthd/berth/snapshots"
)

// Usage tells who owns the bytes of a store.
type Usage struct {
	Places  []Place
	Owners  []Owner
	Objects []Object
}

// Place is a part of the store.
type Place struct {
	Name    string // "content", "ingests", "snapshots/SNAPSHOTTER", "database"
	Objects int64
	Bytes   int64
	Garbage int64 // bytes that nothing keeps
	Unused  int64 // bytes that only images keep which no container stands on
}

// Owner is what keeps objects: a root, as collection sees it.
type Owner struct {
	Kind, Namespace, Name string
	Bytes                 int64 // of all that it keeps
	Unique                int64 // of what nothing else keeps
	Objects               int64
	Containers            int64 // of an image: how many containers stand on it
}

// Object is one thing on disk.
type Object struct {
	Kind        string // "blob", "ingest", "snapshot"
	Namespaces  []string
	Name        string
	Snapshotter string // of a snapshot
	Bytes       int64
	Owners      int64    // how many keep it
	OwnedBy     []string // some of them, as KIND NAMESPACE/NAME
}

// maxOwnedBy is how many owners are named of an object.
const maxOwnedBy = 8

// thing is what takes space on disk: a blob, which namespaces share, an ingest,
// or the directory of a snapshot.
type thing struct {
	kind kind
	name string // digest, backend ref, or snapshotter and number
}

// survey is one run of Usage.
type survey struct {
	db      *DB
	objects map[thing]*Object
	things  map[node]thing
	active  []activeSnapshot
	roots   []node
	reach   map[node][]thing // of a root
	leaves  map[node][]thing // of an image: snapshots of it that no other of its stands on
	images  map[node]string  // names that containers have as their image
	garbage map[thing]bool   // in all namespaces
	without map[node]bool    // roots that are to count as none
}

func newSurvey(db *DB) *survey {
	return &survey{
		db: db, objects: map[thing]*Object{}, things: map[node]thing{}, reach: map[node][]thing{},
		leaves: map[node][]thing{}, images: map[node]string{}, garbage: map[thing]bool{},
	}
}

type activeSnapshot struct {
	driver *driver
	id     snapshots.ID
	object *Object
}

// Usage measures what each object takes and who keeps it. The files of what is
// being written are measured now, those of layers were at their commit.
func (db *DB) Usage(ctx context.Context) (Usage, error) {
	s := newSurvey(db)
	if err := db.View(func(tx *Tx) error { return s.look(ctx, tx) }); err != nil {
		return Usage{}, err
	}
	for _, a := range s.active {
		usage, err := a.driver.Usage(ctx, a.id)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errdefs.ErrNotFound) {
			continue // removed meanwhile
		}
		if errors.Is(err, errdefs.ErrResourceExhausted) { // what a container nests must not hide all others
			db.log.Warn("not all of a snapshot was measured", slog.String("snapshot", a.object.Name), slog.Any("error", err))
			err = nil
		}
		if err != nil {
			return Usage{}, err
		}
		a.object.Bytes = usage.Size
	}
	return s.sum()
}

// look reads all rows, and follows every root by itself.
func (s *survey) look(ctx context.Context, tx *Tx) error {
	if err := s.list(ctx, tx); err != nil {
		return err
	}
	all := newMarker(tx.now, s.db.ingests.isHeld)
	all.without = s.without
	if err := all.roots(ctx, tx); err != nil {
		return err
	}
	if err := all.follow(ctx, tx); err != nil {
		return err
	}
	for t := range s.objects {
		s.garbage[t] = true
	}
	for n, t := range s.things {
		if all.marks[n] != unmarked {
			delete(s.garbage, t)
		}
	}
	for kind := kindContainer; kind <= kindContent; kind++ {
		for key, value := range tx.scan(nodeBuckets[kind], "") {
			ns, rest, _ := cut(string(key))
			n := node{kind, ns, rest}
			f, err := look(n, value)
			if err != nil {
				return err
			}
			if !all.isRoot(n, f) {
				continue
			}
			if err := s.follow(ctx, tx, n, f, all.back); err != nil {
				return err
			}
		}
	}
	return nil
}

// list notes every object.
func (s *survey) list(ctx context.Context, tx *Tx) error {
	add := func(n node, t thing, o Object) *Object {
		s.things[n] = t
		have := s.objects[t]
		if have == nil {
			have = &o
			s.objects[t] = have
		}
		if !slices.Contains(have.Namespaces, n.ns) {
			have.Namespaces = append(have.Namespaces, n.ns)
		}
		return have
	}
	for key, value := range tx.scan(blobTable.bucket, "") {
		ns, d, _ := cut(string(key))
		row, err := blobTable.decode(ns, d, value)
		if err != nil {
			return err
		}
		add(node{kindContent, ns, d}, thing{kindContent, d}, Object{Kind: kindNames[kindContent], Name: d, Bytes: row.Size})
	}
	err := tx.eachIngest(func(ns string, row *rows.Ingest) error {
		ref := row.GetStatus().GetRef()
		info, err := s.db.content.Status(ctx, row.BackendRef)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		add(node{kindIngest, ns, ref}, thing{kindIngest, row.BackendRef}, Object{Kind: kindNames[kindIngest], Name: ref, Bytes: info.Offset})
		return nil
	})
	if err != nil {
		return err
	}
	return tx.eachSnapshot(func(ns, snapshotter string, row *snapshots.Row) error {
		t := thing{kindSnapshot, path(snapshotter, row.ID.String())}
		o := add(snapshotNode(ns, snapshotter, row.Name), t, Object{
			Kind: kindNames[kindSnapshot], Name: row.Name, Snapshotter: snapshotter, Bytes: row.Usage.Size,
		})
		if d := s.db.drivers[snapshotter]; d != nil && row.Kind != snapshots.Committed {
			s.active = append(s.active, activeSnapshot{d, row.ID, o})
		}
		return nil
	})
}

// follow notes what a root keeps by itself.
func (s *survey) follow(ctx context.Context, tx *Tx, root node, f facts, back map[node][]node) error {
	m := newMarker(tx.now, s.db.ingests.isHeld)
	m.back = back
	m.marks[root] = full
	m.step(tx, root, f)
	if err := m.follow(ctx, tx); err != nil {
		return err
	}
	s.roots = append(s.roots, root)
	if root.kind == kindContainer {
		row, err := containerTable.Get(tx, root.ns, root.key)
		if err != nil {
			return err
		}
		s.images[root] = row.Image
	}
	parents := map[node]bool{}
	seen := map[thing]bool{}
	for n := range m.marks {
		if t, ok := s.things[n]; ok && !seen[t] {
			seen[t] = true
			s.reach[root] = append(s.reach[root], t)
		}
		if n.kind == kindSnapshot && tx.row(n) != nil {
			f, err := look(n, tx.row(n))
			if err != nil {
				return err
			}
			for _, parent := range f.fixed {
				parents[parent] = true
			}
		}
	}
	if root.kind == kindImage {
		for n := range m.marks {
			if t, ok := s.things[n]; ok && n.kind == kindSnapshot && !parents[n] {
				s.leaves[root] = append(s.leaves[root], t)
			}
		}
	}
	return nil
}

// containers counts the containers that stand on each image.
func (s *survey) containers() map[node]int64 {
	users := map[thing][]node{}
	for _, root := range s.roots {
		if root.kind == kindContainer {
			for _, t := range s.reach[root] {
				users[t] = append(users[t], root)
			}
		}
	}
	counts := map[node]int64{}
	for _, image := range s.roots {
		if image.kind != kindImage {
			continue
		}
		by := map[node]bool{}
		for _, leaf := range s.leaves[image] {
			for _, user := range users[leaf] {
				by[user] = true
			}
		}
		for container, name := range s.images {
			if container.ns == image.ns && name == image.key {
				by[container] = true
			}
		}
		counts[image] = int64(len(by))
	}
	return counts
}

// sum adds up what each place and each owner has.
func (s *survey) sum() (Usage, error) {
	var out Usage
	containers := s.containers()
	used := map[thing]bool{}
	for _, root := range s.roots {
		for _, t := range s.reach[root] {
			o := s.objects[t]
			if o.Owners++; len(o.OwnedBy) < maxOwnedBy {
				o.OwnedBy = append(o.OwnedBy, kindNames[root.kind]+" "+root.ns+"/"+named(root.key))
			}
			if root.kind != kindImage || containers[root] > 0 {
				used[t] = true
			}
		}
	}
	for _, root := range s.roots {
		l := link(root)
		o := Owner{Kind: l.Kind, Namespace: l.Namespace, Name: l.Name, Containers: containers[root]}
		for _, t := range s.reach[root] {
			o.Objects++
			o.Bytes += s.objects[t].Bytes
			if s.objects[t].Owners == 1 {
				o.Unique += s.objects[t].Bytes
			}
		}
		out.Owners = append(out.Owners, o)
	}
	places := map[string]*Place{"content": {Name: "content"}, "ingests": {Name: "ingests"}}
	for _, name := range s.db.Snapshotters() {
		places[resourceSnapshots+name] = &Place{Name: resourceSnapshots + name}
	}
	for t, o := range s.objects {
		name := "content"
		switch t.kind {
		case kindIngest:
			name = "ingests"
		case kindSnapshot:
			name = resourceSnapshots + o.Snapshotter
		}
		p := places[name]
		if p == nil {
			p = &Place{Name: name}
			places[name] = p
		}
		p.Objects++
		p.Bytes += o.Bytes
		if s.garbage[t] {
			p.Garbage += o.Bytes
		} else if !used[t] {
			p.Unused += o.Bytes
		}
		out.Objects = append(out.Objects, *o)
	}
	info, err := os.Stat(s.db.options.Path)
	if err != nil {
		return out, err
	}
	places["database"] = &Place{Name: "database", Objects: 1, Bytes: info.Size()}
	for _, p := range places {
		out.Places = append(out.Places, *p)
	}
	slices.SortFunc(out.Places, func(a, b Place) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Owners, func(a, b Owner) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Kind+a.Namespace+a.Name, b.Kind+b.Namespace+b.Name))
	})
	slices.SortFunc(out.Objects, func(a, b Object) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Kind+a.Snapshotter+a.Name, b.Kind+b.Snapshotter+b.Name))
	})
	return out, nil
}
