package metadata

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/berthd/berth/internal/labels"
)

// The model test: several workers, each in a namespace of its own, make, link,
// hold and delete objects, while collections run without end. Each worker
// compares with its model after every step: what it can reach must be there.
// At the end all is let go, and must be gone.

const (
	modelObjects = 10 // even: content; odd: snapshots. One refers to lower ones.
	modelWorkers = 3
	modelSteps   = 25
)

// step is one thing that a worker does, to object a with object b.
type step struct {
	Do    string
	A, B  int
	Lease bool
}

var stepKinds = []string{"create", "create", "create", "link", "link", "unlink", "hold", "hold", "drop", "root", "unroot", "delete", "image", "container", "drop all", "back"}

func steps() *rapid.Generator[[]step] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			Do: rapid.SampledFrom(stepKinds).Draw(t, "do"),
			A:  rapid.IntRange(0, modelObjects-1).Draw(t, "a"), B: rapid.IntRange(0, modelObjects-1).Draw(t, "b"),
			Lease: rapid.Bool().Draw(t, "lease"),
		}
	}), 1, modelSteps)
}

// object is what a model knows of one.
type object struct {
	there  bool         // made, and not deleted
	maybe  bool         // there, unless a collection took it
	links  map[int]bool // to which its labels refer; true if they were seen to be there since
	back   map[int]bool // by which its labels let it live
	parent int          // -1: none
	root   bool
}

// worker is one model and the namespace it is of.
type worker struct {
	w         *world
	fail      func(format string, args ...any)
	s         Scope
	native    *Snapshots
	objects   [modelObjects]object
	held      map[int]bool
	image     int // target, or -1
	container int // snapshot, or -1
}

func newWorker(w *world, n int, fail func(string, ...any)) *worker {
	m := &worker{w: w, fail: fail, s: Scope{Namespace: fmt.Sprint("ns", n)}, held: map[int]bool{}, image: -1, container: -1}
	for i := range m.objects {
		m.objects[i].parent = -1
	}
	m.native = m.snapshots("")
	m.expect(second(w.Leases(m.s).Create(bg, "lease", nil)))
	return m
}

func (m *worker) snapshots(lease string) *Snapshots {
	out, err := m.w.Snapshotter(Scope{m.s.Namespace, lease}, "native")
	m.expect(err)
	return out
}

func (m *worker) expect(err error) {
	if err != nil {
		m.fail("%s: %v", m.s.Namespace, err)
	}
}

func isBlob(i int) bool    { return i%2 == 0 }
func bytesOf(i int) string { return fmt.Sprint("blob ", i) }

// idOf is the name of an object: a digest or a key.
func idOf(i int) string {
	if isBlob(i) {
		return digest.FromString(bytesOf(i)).String()
	}
	return fmt.Sprint("layer ", i)
}

func refLabel(prefix string, to, n int) string {
	if isBlob(to) {
		return fmt.Sprintf("%scontent.%d", prefix, n)
	}
	return fmt.Sprintf("%ssnapshot.native/%d", prefix, n)
}

// labels are those that the model has for an object.
func (m *worker) labels(i int) map[string]string {
	out := map[string]string{}
	for to := range m.objects[i].links {
		out[refLabel(labels.GCRef, to, to)] = idOf(to)
	}
	for to := range m.objects[i].back {
		out[refLabel(labels.GCBackRef, to, to)] = idOf(to)
	}
	if m.objects[i].root {
		out[labels.GCRoot] = "1"
	}
	return out
}

// exists asks the store, and reads the bytes of a blob.
func (m *worker) exists(i int) bool {
	var err error
	if !isBlob(i) {
		if _, err = m.native.Stat(bg, idOf(i)); err == nil {
			return true
		}
	} else {
		r, err := m.w.Blobs(m.s).Open(bg, digest.Digest(idOf(i)))
		if err == nil {
			data := make([]byte, r.Size())
			_, err = r.ReadAt(data, 0)
			m.expect(errors.Join(err, r.Close()))
			if string(data) != bytesOf(i) {
				m.fail("blob %d has bytes %q", i, data)
			}
			return true
		}
		if !errdefs.IsNotFound(err) {
			m.fail("blob %d: %v", i, err)
		}
		return false
	}
	if !errdefs.IsNotFound(err) {
		m.fail("layer %d: %v", i, err)
	}
	return false
}

// gone notes that an object is not there.
func (m *worker) gone(i int) {
	m.objects[i] = object{parent: -1}
	for j := range m.objects {
		if _, ok := m.objects[j].links[i]; ok {
			m.objects[j].links[i] = false
		}
	}
}

// compare looks whether all that the model reaches is there.
func (m *worker) compare() {
	reached := map[int]bool{}
	var visit func(i int, must bool)
	visit = func(i int, must bool) {
		o := &m.objects[i]
		if reached[i] || !o.there {
			return
		}
		was := o.maybe
		if !m.exists(i) {
			if must || !was {
				m.fail("%s: object %d was collected", m.s.Namespace, i)
			}
			m.gone(i)
			return
		}
		reached[i] = true
		o.maybe = false
		if o.parent >= 0 {
			visit(o.parent, true)
		}
		for to, seen := range o.links {
			visit(to, seen)
			if m.objects[to].there {
				o.links[to] = true
			}
		}
		for j := range m.objects {
			if m.objects[j].back[i] {
				visit(j, false)
			}
		}
	}
	for i := range m.objects {
		if m.held[i] || m.objects[i].root || m.image == i || m.container == i {
			visit(i, false)
		}
	}
	for i := range m.objects {
		if !reached[i] {
			m.objects[i].maybe = true
		}
	}
}

// letGo removes all that keeps anything alive.
func (m *worker) letGo() {
	for i := range m.objects {
		if m.objects[i].root {
			m.do(step{Do: "unroot", A: i})
		}
	}
	if m.image >= 0 {
		m.do(step{Do: "image"})
	}
	if m.container >= 0 {
		m.do(step{Do: "container"})
	}
	m.expect(m.w.Leases(m.s).Delete(bg, "lease"))
}

func TestModel(t *testing.T) {
	trials(t, modelWorkers, steps(), runModel)
}

func runModel(tr *trial, plans [][]step) {
	tr.w.sweepRows = 1
	// A sweep goes on only while the workers do, so that many of their steps
	// fall between its parts.
	tick := make(chan struct{})
	tr.w.beforePart = func() {
		select {
		case <-tick:
		case <-tr.over:
		}
	}
	var workers []*worker
	var work []func()
	var spaces []Scope
	for i, plan := range plans {
		m := newWorker(tr.w, i, tr.fail)
		workers, spaces = append(workers, m), append(spaces, m.s)
		work = append(work, func() {
			for _, s := range plan {
				m.do(s)
				m.compare()
				select {
				case tick <- struct{}{}:
				default:
				}
			}
		})
	}
	tr.work(work...)
	for _, m := range workers {
		m.compare()
		m.letGo()
	}
	tr.mustBeEmpty(spaces...)
}
