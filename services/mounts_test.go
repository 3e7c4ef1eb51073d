package services

import (
	"os"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	api "github.com/berthd/berth/api/services/mounts/v1"
	"github.com/berthd/berth/api/services/mounts/v1/mountsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/metadata"
)

func TestMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := start(t)
	ctx, c := in(t, "ns"), mountsgrpc.NewMountsClient(d)
	dir := t.TempDir()
	plain := []*types.Mount{{Type: "bind", Source: dir, Options: []string{"rbind"}}}
	templated := append(plain, &types.Mount{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind", "ro"}})
	expect := func(what string, err error, want string) {
		t.Helper()
		if result(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	_, err := c.Activate(t.Context(), &api.ActivateRequest{Name: "a", Mounts: templated})
	expect("no namespace", err, "failed_precondition")
	_, err = c.Activate(ctx, &api.ActivateRequest{Name: "a", Mounts: plain})
	expect("nothing to do", err, "unimplemented")
	_, err = c.Activate(ctx, &api.ActivateRequest{Mounts: templated})
	expect("no name", err, "invalid_argument")
	made, err := c.Activate(ctx, &api.ActivateRequest{Name: "a", Mounts: templated, Labels: map[string]string{"x": "1"}})
	expect("activate", err, "ok")
	active, system := made.GetInfo().GetActive(), made.GetInfo().GetSystem()
	if len(active) != 1 || len(system) != 1 || system[0].GetType() != "bind" || system[0].GetSource() != active[0].GetMountPoint() {
		t.Errorf("%v", made)
	}
	_, err = c.Activate(ctx, &api.ActivateRequest{Name: "a", Mounts: templated})
	expect("again", err, "already_exists")
	_, err = c.Update(ctx, &api.UpdateRequest{})
	expect("update of nothing", err, "invalid_argument")
	updated, err := c.Update(ctx, &api.UpdateRequest{Info: &types.ActivationInfo{Name: "a"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}}})
	if err != nil || len(updated.GetInfo().GetLabels()) != 0 {
		t.Errorf("%v, %v", updated, err)
	}
	info, err := c.Info(ctx, &api.InfoRequest{Name: "a"})
	if err != nil || info.GetInfo().GetName() != "a" {
		t.Errorf("%v, %v", info, err)
	}
	stream, err := c.List(ctx, &api.ListRequest{Filters: []string{"name==a"}})
	n := 0
	if err == nil {
		err = collectAll(stream.Recv, func(*api.ListMessage) { n++ })
	}
	if err != nil || n != 1 {
		t.Errorf("%d in the list, %v", n, err)
	}
	_, err = c.Deactivate(ctx, &api.DeactivateRequest{Name: "a"})
	expect("deactivate", err, "ok")
	_, err = c.Deactivate(ctx, &api.DeactivateRequest{Name: "a"})
	expect("deactivate again", err, "not_found")
	_, err = c.Info(ctx, &api.InfoRequest{Name: "a"})
	expect("info", err, "not_found")
}

// TestTaskMounts: what is mounted for a task is its container's.
func TestTaskMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := start(t)
	m := TaskMounts{DB: d.db}
	mounts := []*types.Mount{
		{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}},
		{Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"rbind"}},
	}
	left, err := m.Activate(t.Context(), "ns", "task", mounts)
	if err != nil || len(left) != 1 {
		t.Fatalf("%v, %v", left, err)
	}
	info, err := d.db.Mounts(metadata.Scope{Namespace: "ns"}).Info(t.Context(), "task")
	if err != nil || info.GetLabels()["containerd.io/gc.bref.container"] != "task" {
		t.Errorf("%v, %v", info, err)
	}
	if err := m.Deactivate(t.Context(), "ns", "task"); err != nil {
		t.Error(err)
	}
}
