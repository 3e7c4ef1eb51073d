package shim

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	api "github.com/berthd/berth/api/berth/shim/v1"
	task "github.com/berthd/berth/api/runtime/task/v3"
)

func (b *bench) join(id string) error {
	_, err := b.Join(b.ctx(), &api.JoinRequest{Id: id})
	return err
}

func (b *bench) shutdown() {
	b.t.Helper()
	if _, err := b.Shutdown(b.ctx(), &task.ShutdownRequest{}); err != nil {
		b.t.Error(err)
	}
}

// TestJoin keeps the shim from leaving between the start of a container's shim and
// its Create.
func TestJoin(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	if err := errors.Join(b.join("c"), b.join("c")); err != nil {
		t.Fatal(err)
	}
	if b.shutdown(); b.hasLeft() {
		t.Fatal("the shim leaves although a container was announced")
	}
	b.mustCreate()
	if _, err := b.delete(""); err != nil {
		t.Fatal(err)
	}
	if b.hasLeft() {
		t.Fatal("a Shutdown from before a container was created counts after it")
	}
	if b.shutdown(); !b.hasLeft() {
		t.Error("the shim does not leave after its last container")
	}
	if err := b.join("d"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("join of a shim that leaves: %v", err)
	}
}

// TestJoinLapses has containers that were announced not come.
func TestJoinLapses(t *testing.T) {
	b := newBench(t, "true")
	if err := b.join("a b"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
	for i := range maxJoining {
		if err := b.join(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.join("many"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("one too many: %v", err)
	}
	for i := 1; i < maxJoining; i++ {
		b.forgo(fmt.Sprint(i))
	}
	b.shutdown()
	if b.hasLeft() {
		t.Error("the shim leaves although a container was announced")
	}
	b.forgo("0")
	if !b.hasLeft() {
		t.Error("the shim stays although nobody comes")
	}
}

// TestHome moves the shim when the bundle that it lives in goes.
func TestHome(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	var mu sync.Mutex
	var moves []string
	b.config.Moved = func(bundle string) {
		mu.Lock()
		defer mu.Unlock()
		moves = append(moves, bundle)
	}
	first := t.TempDir()
	b.home.bundle = first
	create := func(id, bundle string) {
		t.Helper()
		if _, err := b.Create(b.ctx(), &task.CreateTaskRequest{Id: id, Bundle: bundle}); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(id string) {
		t.Helper()
		if _, err := b.Delete(b.ctx(), &task.DeleteRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	create("a", first)
	a := b.runtime.init
	create("c", b.bundle)
	c := b.runtime.init
	b.runtime.init = a
	remove("a") // to c's
	sandbox := b.readySandbox()
	b.runtime.init = c
	remove("c") // to the sandbox's
	if err := b.shutdownSandbox(); err != nil {
		t.Fatal(err)
	}
	if want := []string{b.bundle, sandbox}; !slices.Equal(moves, want) {
		t.Errorf("moves %q, want %q", moves, want)
	}
}

// TestHomeless takes the bundle of the next container for a home.
func TestHomeless(t *testing.T) {
	b := newBench(t, "exec sleep 1000")
	var moves []string
	b.config.Moved = func(bundle string) { moves = append(moves, bundle) }
	b.home.bundle = b.bundle
	b.mustCreate()
	if _, err := b.delete(""); err != nil {
		t.Fatal(err)
	}
	b.mustCreate()
	if want := []string{b.bundle}; !slices.Equal(moves, want) {
		t.Errorf("moves %q, want %q", moves, want)
	}
}
