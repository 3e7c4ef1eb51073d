package runtime

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/runtime/record"
)

// deactivateTimeout bounds the end of what was mounted for a task.
const deactivateTimeout = 30 * time.Second

// Rootfs makes those mounts of root file systems that shims can't make, in the
// name of a task.
type Rootfs interface {
	// Activate gives what is left for the shim to mount. AlreadyExists.
	Activate(ctx context.Context, ns, id string, mounts []*types.Mount) ([]*types.Mount, error)
	// Deactivate unmounts what Activate has mounted: NotFound.
	Deactivate(ctx context.Context, ns, id string) error
}

// needsRootfs tells whether a root file system is one that a shim can't mount.
func needsRootfs(mounts []record.Mount) bool {
	all := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		all[i].Type = m.Type
	}
	return activate.Needs(all)
}

// activateRootfs mounts what the shim can't, and has it mount the rest. The intent
// is there already, so that a crash leaves nothing that nobody knows of.
func (t *Tasks) activateRootfs(ctx context.Context, k *task, p *plan) error {
	if t.cfg.Rootfs == nil || !needsRootfs(p.intent.Rootfs) || t.leftToShim(ctx, k, p) {
		return nil
	}
	left, err := t.cfg.Rootfs.Activate(ctx, k.ns, k.id, p.request.GetRootfs())
	if errdefs.IsAlreadyExists(err) {
		// Of a task of that name which is gone: there is no other, by now.
		if err = t.deactivateRootfs(k); err == nil {
			left, err = t.cfg.Rootfs.Activate(ctx, k.ns, k.id, p.request.GetRootfs())
		}
	}
	if err != nil {
		return fmt.Errorf("mount its root file system: %w", err)
	}
	p.request.Rootfs = left
	return nil
}

// leftToShim tells whether a foreign shim makes by itself all mounts of a root file
// system that need something. One that can't be asked makes none.
func (t *Tasks) leftToShim(ctx context.Context, k *task, p *plan) bool {
	if !p.intent.Foreign {
		return false
	}
	info, err := t.callInfo(ctx, p.intent.Binary, p.request.GetOptions())
	if err != nil {
		t.cfg.Log.Info("shim does not tell which mounts it makes", "namespace", k.ns, "id", k.id, "runtime", p.intent.Runtime, "error", clip(err.Error()))
		return false
	}
	return makesAll(info.GetAnnotations()[allowMounts], p.intent.Rootfs)
}

// makesAll tells whether a list of types, with commas, has all those of mounts
// that need something. "format/*" stands for all with that prefix.
func makesAll(list string, mounts []record.Mount) bool {
	for _, m := range mounts {
		if !needsRootfs([]record.Mount{m}) {
			continue
		}
		made := false
		for kind := range strings.SplitSeq(list, ",") {
			kind = strings.TrimSpace(kind)
			prefix, all := strings.CutSuffix(kind, "*")
			made = made || kind == m.Type || all && strings.HasSuffix(prefix, "/") && strings.HasPrefix(m.Type, prefix)
		}
		if !made {
			return false
		}
	}
	return true
}

// deactivateRootfs takes away what was mounted for a task.
func (t *Tasks) deactivateRootfs(k *task) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.ctx), deactivateTimeout)
	defer cancel()
	err := t.cfg.Rootfs.Deactivate(ctx, k.ns, k.id)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("unmount its root file system: %w", err)
	}
	return nil
}

// releaseRootfs is deactivateRootfs for a task that goes. That it can't be done
// holds up nothing: a collection does it once the container is gone.
func (t *Tasks) releaseRootfs(k *task) {
	if t.cfg.Rootfs == nil || !needsRootfs(k.view().intent.Rootfs) {
		return
	}
	if err := t.deactivateRootfs(k); err != nil {
		t.cfg.Log.Warn("mounts of a task stay for now", "namespace", k.ns, "id", k.id, "error", err)
	}
}
