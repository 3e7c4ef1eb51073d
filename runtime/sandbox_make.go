package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/sandbox/v1"
	apitask "github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// CreateSandbox starts the shim of a sandbox: ours, or that of another runtime, if
// it serves sandboxes. After an error nothing is left.
func (t *Tasks) CreateSandbox(ctx context.Context, ns string, r *sandbox.ControllerCreateRequest) error {
	id := r.GetSandboxId()
	if err := errors.Join(names.Namespace(ns), names.Identifier(id)); err != nil {
		return err
	}
	runtime := r.GetSandbox().GetRuntime().GetName()
	if runtime == "" {
		runtime = RuntimeRunc
	}
	binary, err := t.resolve(runtime)
	if err != nil {
		return fmt.Errorf("create sandbox %q: %w", id, err)
	}
	if err := t.begin(); err != nil {
		return err
	}
	defer t.wg.Done()
	b := t.newBox(record.Intent{
		Version: record.Version, Namespace: ns, ID: id, Group: id, Runtime: runtime, Binary: binary, Foreign: binary != t.cfg.Shim,
		BootID: t.bootID, CreatedAt: t.cfg.Now(),
	})
	t.mu.Lock()
	if t.boxes[name{ns, id}] != nil {
		t.mu.Unlock()
		b.leave()
		return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrAlreadyExists)
	}
	t.boxes[name{ns, id}] = b
	t.mu.Unlock()
	b.made = true // or it is dropped
	if err := t.makeBox(ctx, b, r); err != nil {
		return fmt.Errorf("create sandbox %q: %w", id, t.failBox(b, err))
	}
	t.cfg.Publish(context.WithoutCancel(ctx), ns, topicSandboxCreate, &apievents.SandboxCreate{SandboxId: id})
	t.cfg.Log.Info("sandbox created", "namespace", ns, "id", id, "shim", b.view().shimPID)
	t.wg.Go(func() { t.attendBox(b) })
	return nil
}

// makeBox makes the bundle and the shim of a sandbox.
func (t *Tasks) makeBox(ctx context.Context, b *box, r *sandbox.ControllerCreateRequest) error {
	if err := b.bundle(r.GetSandbox().GetSpec().GetValue()); err != nil {
		return err
	}
	leave, err := t.enterPod(ctx, b.task)
	if err != nil {
		return err
	}
	defer leave()
	c, err := t.startBox(ctx, b, r)
	if c != nil {
		b.set(connected, "", c)
	}
	if err != nil {
		return err
	}
	_, err = askBox(ctx, t, b, "create the sandbox", t.cfg.Deadlines.Create, sandboxttrpc.SandboxService.CreateSandbox, &shimbox.CreateSandboxRequest{
		SandboxId: b.id, BundlePath: b.dir, Rootfs: r.GetRootfs(), Options: r.GetOptions(), NetnsPath: r.GetNetnsPath(), Annotations: r.GetAnnotations(),
	})
	if err == nil {
		made := record.Status{Version: record.Version, Status: apitask.Status_CREATED.String()}
		return record.Write("runtime.sandbox.made", b.dir, record.StatusFile, made)
	}
	if errdefs.IsNotImplemented(err) {
		in := b.view().intent
		return fmt.Errorf("runtime %q: its shim %s runs containers, but serves no sandboxes (it knows no containerd.runtime.sandbox.v1.Sandbox); "+
			"make the pod of containers by annotation, or take another runtime: %w", in.Runtime, filepath.Base(in.Binary), err)
	}
	return err
}

// bundle makes the directory of a sandbox: the intent to create it, and its spec,
// if it has one.
func (b *box) bundle(spec []byte) error {
	parent := filepath.Dir(b.dir)
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, newPrefix+b.id+"-")
	if err != nil {
		return err
	}
	if len(spec) > 0 {
		err = os.WriteFile(filepath.Join(dir, record.ConfigFile), spec, 0o600)
	}
	if err == nil {
		err = record.Write("runtime.intent", dir, record.IntentFile, b.intent)
	}
	if err == nil && b.intent.Foreign {
		err = os.Mkdir(filepath.Join(dir, record.RootfsDir), 0o711)
	}
	if err == nil {
		err = durable.RenameVolatile("runtime.sandbox", dir, b.dir)
	}
	if err != nil {
		return errors.Join(err, removeTree(dir))
	}
	return nil
}

// startBox starts the shim of a sandbox, or finds the one that the pod has: its
// containers may have come first.
func (t *Tasks) startBox(ctx context.Context, b *box, r *sandbox.ControllerCreateRequest) (*conn, error) {
	if b.intent.Foreign {
		var options *anypb.Any
		if o := r.GetSandbox().GetRuntime().GetOptions(); len(o.GetValue()) > 0 {
			options = o
		}
		return t.startForeign(ctx, b.task, &plan{intent: b.intent, request: &shimtask.CreateTaskRequest{Options: options}})
	}
	c, err := t.joinShim(ctx, b.task)
	if c == nil && err == nil {
		_, c, err = t.startOwn(ctx, b.task, "")
	}
	return c, err
}

// failBox undoes a sandbox that could not be made or started, and gives the error
// for the caller. What can't be undone now is left to a Shutdown.
func (t *Tasks) failBox(b *box, cause error) error {
	err := t.dropBox(b, !noAnswer(cause))
	if err == nil {
		return cause
	}
	t.cfg.Log.Error("failed sandbox not undone; shut it down", "namespace", b.ns, "sandbox", b.id, "error", err)
	b.set(stopped, fmt.Sprintf("it could not be made, and that is not undone yet: %v", err), nil)
	b.end(t.cfg.Now())
	return errors.Join(cause, fmt.Errorf("undo: %w", err))
}

// dropBox ends the shim of a sandbox, unless containers are with it, and removes
// the sandbox. ask says that its shim is worth asking to leave.
func (t *Tasks) dropBox(b *box, ask bool) error {
	v := b.view()
	leave, err := t.enterPod(t.ctx, b.task)
	if err != nil {
		return err
	}
	defer leave()
	if !t.shared(b.task) {
		if v.conn != nil && ask {
			t.sendAway(b, v.conn)
		}
		if err := t.endShim(t.ctx, b.task, v.conn); err != nil {
			return err
		}
		if err := t.removeBox(b); err != nil {
			return err
		}
	}
	if err := errors.Join(t.clearWork(b.task), removeTree(b.dir)); err != nil {
		return err
	}
	t.mu.Lock()
	delete(t.boxes, name{b.ns, b.id})
	t.mu.Unlock()
	b.end(t.cfg.Now())
	b.close()
	return nil
}

// sendAway tells the shim of a sandbox to leave, and waits until it has: one that
// does not is ended.
func (t *Tasks) sendAway(b *box, c *conn) {
	if b.foreign() { // whose other Shutdown may mean nothing while it has a sandbox
		_, err := call(t.ctx, c, "shut the sandbox down", t.cfg.Deadlines.Shutdown, c.box.ShutdownSandbox, &shimbox.ShutdownSandboxRequest{SandboxId: b.id})
		if noAnswer(err) && !errors.Is(err, errShimGone) {
			return
		}
	}
	if err := t.shutdown(t.ctx, c); err == nil {
		_ = t.parted(t.ctx, c) // else it is ended
	}
}

// removeBox removes what a shim that has ended has left of a sandbox.
func (t *Tasks) removeBox(b *box) error {
	if err := os.Remove(b.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !b.foreign() {
		return nil
	}
	if _, err := os.Lstat(b.dir); err != nil {
		return nil // removed before
	}
	if _, err := t.remains(t.ctx, b.task); err != nil {
		return err
	}
	return errors.Join(t.endStrays(t.ctx, b.task), unmountRootfs(b.dir))
}
