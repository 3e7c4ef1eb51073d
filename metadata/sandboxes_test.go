package metadata

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types"
)

// TestSandboxes keeps sandbox records: made, read, changed under masks, removed.
func TestSandboxes(t *testing.T) {
	w := newWorld(t)
	s := w.Sandboxes(Scope{Namespace: "ns"})
	any := func(text string) *anypb.Any { return &anypb.Any{TypeUrl: "x", Value: []byte(text)} }
	given := &types.Sandbox{
		SandboxId: "s", Labels: map[string]string{"a": "1", "b": "2"}, Spec: any("spec"), Sandboxer: "shim",
		Runtime: &types.Sandbox_Runtime{Name: "r"}, Extensions: map[string]*anypb.Any{"e.x": any("1")},
	}
	made, err := s.Create(bg, given)
	w.must(err)
	if made.GetCreatedAt() == nil || !proto.Equal(made.GetCreatedAt(), made.GetUpdatedAt()) || made.GetSandboxer() != "shim" {
		t.Errorf("made %v", made)
	}
	if got, err := s.Get(bg, "s"); err != nil || !proto.Equal(got, made) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := s.Create(bg, given); !errdefs.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	for name, bad := range map[string]*types.Sandbox{
		"no id":           {},
		"bad id":          {SandboxId: "a/b"},
		"long label":      {SandboxId: "l", Labels: map[string]string{"k": strings.Repeat("v", 4096)}},
		"empty extension": {SandboxId: "l", Extensions: map[string]*anypb.Any{"": any("1")}},
	} {
		if _, err := s.Create(bg, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Sandboxes(Scope{}).Create(bg, given); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no namespace: %v", err)
	}

	change := &types.Sandbox{SandboxId: "s", Labels: map[string]string{"a": "9"}, Spec: any("new"), Runtime: &types.Sandbox_Runtime{Name: "other"}}
	if _, err := s.Update(bg, change); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another runtime without a mask: %v", err)
	}
	if _, err := s.Update(bg, change, "labels.a", "sandboxer"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path that there is not: %v", err)
	}
	got, err := s.Update(bg, change, "labels.a", "labels.b", "extensions.e.x", "spec")
	w.must(err)
	if len(got.Labels) != 1 || got.Labels["a"] != "9" || len(got.Extensions) != 0 || string(got.Spec.Value) != "new" || got.Runtime.Name != "r" {
		t.Errorf("changed to %v", got)
	}
	if !proto.Equal(got.CreatedAt, made.CreatedAt) || got.UpdatedAt.AsTime().Before(made.UpdatedAt.AsTime()) {
		t.Errorf("times %v", got)
	}
	if got, err = s.Update(bg, change, "runtime"); err != nil || got.Runtime.Name != "other" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := s.Update(bg, &types.Sandbox{SandboxId: "none"}); !errdefs.IsNotFound(err) {
		t.Errorf("none: %v", err)
	}
	if err := w.Namespaces().Delete(bg, "ns"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("namespace with a sandbox: %v", err)
	}
	if rows, err := w.Sandboxes(Scope{Namespace: "other"}).List(bg); err != nil || len(rows) != 0 {
		t.Errorf("in another namespace: %v, %v", rows, err)
	}
	w.must(s.Delete(bg, "s"))
	if err := s.Delete(bg, "s"); !errdefs.IsNotFound(err) {
		t.Errorf("removed twice: %v", err)
	}
	w.must(w.Namespaces().Delete(bg, "ns"))
}
