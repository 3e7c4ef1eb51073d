package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	shimbox "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/runtime/sandbox/v1/sandboxttrpc"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// loadBoxes lists the sandboxes of an earlier daemon by their records.
func (t *Tasks) loadBoxes() error {
	root := filepath.Join(t.cfg.State, sandboxesDir)
	spaces, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, space := range spaces {
		entries, err := os.ReadDir(filepath.Join(root, space.Name()))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := t.loadBox(filepath.Join(root, space.Name(), e.Name()), space.Name(), e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// loadBox takes one sandbox into the table, or removes what is none any more.
func (t *Tasks) loadBox(dir, ns, id string) error {
	if strings.HasPrefix(id, ".") {
		return removeTree(dir)
	}
	if names.Namespace(ns) != nil || names.Identifier(id) != nil {
		t.cfg.Log.Warn("not a sandbox, left alone", "path", dir)
		return nil
	}
	in, err := readRecord[record.Intent](dir, record.IntentFile)
	if err != nil || in == nil {
		t.cfg.Log.Error("sandbox left alone: its record can't be read", "path", dir, "error", err)
		return nil
	}
	b := t.newBox(*in)
	if in.BootID != t.bootID {
		b.leave()
		if err := unmountRootfs(dir); err != nil {
			return err
		}
		return errors.Join(t.clearWork(b.task), removeTree(dir))
	}
	if shim, err := readRecord[record.Shim](dir, record.ShimFile); err == nil && shim != nil {
		b.shim = *shim
	}
	if in.Foreign {
		if at, err := readContact(dir); err == nil { // else it never said
			b.at = at
		}
	}
	status, err := readRecord[record.Status](dir, record.StatusFile)
	b.made, b.adopted = err != nil || status != nil, true
	b.stand, b.reason = adopting, "its shim was not asked yet"
	t.boxes[name{ns, id}] = b
	t.foundBoxes = append(t.foundBoxes, b)
	return nil
}

// attendBox stays with a sandbox until it is removed or has ended.
func (t *Tasks) attendBox(b *box) {
	pause := t.cfg.Deadlines.Retry
	for b.ctx.Err() == nil {
		v := b.view()
		if v.conn == nil || v.conn.closed() {
			if !t.reviewBox(b) {
				b.pause(pause)
				pause = min(2*pause, maxRetry)
			}
		} else {
			pause = t.cfg.Deadlines.Retry
			reply, err := askBox(b.ctx, t, b, "wait for the sandbox", 0, sandboxttrpc.SandboxService.WaitSandbox, &shimbox.WaitSandboxRequest{SandboxId: b.id})
			switch {
			case err == nil:
				b.end(reply.GetExitedAt().AsTime())
			case errdefs.IsNotFound(err) && b.adopted && t.forgotten(b): // a create or a shutdown that was cut off
				t.finishBox(b)
			case errdefs.IsNotFound(err): // its shim may know it from its start on
				b.pause(pause)
			case errdefs.IsNotImplemented(err): // its end is that of its shim
				select {
				case <-v.conn.done:
				case <-b.ctx.Done():
				}
			case !v.conn.closed():
				b.pause(pause)
			}
		}
		if _, over := b.ended(); over {
			return
		}
	}
}

// forgotten tells whether the shim of a sandbox does not know it.
func (t *Tasks) forgotten(b *box) bool {
	_, err := askBox(b.ctx, t, b, "tell the sandbox's state", t.cfg.Deadlines.State, sandboxttrpc.SandboxService.SandboxStatus,
		&shimbox.SandboxStatusRequest{SandboxId: b.id})
	return errdefs.IsNotFound(err)
}

// finishBox removes a sandbox that its shim does not know: a daemon that has ended
// since was making it, or removing it. What can't be removed now is left to a
// Shutdown.
func (t *Tasks) finishBox(b *box) {
	log := t.cfg.Log.With("namespace", b.ns, "sandbox", b.id)
	if err := t.dropBox(b, true); err != nil {
		log.Error("sandbox that was being made or removed is not gone yet; shut it down", "error", err)
		b.end(t.cfg.Now())
		return
	}
	log.Info("sandbox removed that was being made or removed when the daemon ended")
}

// reviewBox finds the shim of a sandbox again, or that it is dead, and tells
// whether it could.
func (t *Tasks) reviewBox(b *box) bool {
	ctx, cancel := context.WithTimeout(b.ctx, t.cfg.Deadlines.Connect)
	defer cancel()
	log := t.cfg.Log.With("namespace", b.ns, "sandbox", b.id)
	c, err := t.dial(ctx, b.contact(), false)
	if err == nil {
		if b.foreign() {
			t.followLog(b.task)
		}
		b.set(connected, "", c)
		log.Info("sandbox adopted")
		return true
	}
	if b.ctx.Err() != nil {
		return true
	}
	b.mu.Lock()
	shim := b.shim
	b.mu.Unlock()
	if dialAnswer(err) == refused {
		awaitDeath(b.ctx, shim)
	}
	if found := lifeOf(shim.PID, shim.StartTime); found == dead || found == unrecorded && dialAnswer(err) == refused {
		b.set(stopped, "its shim has died", nil)
		if !b.made {
			t.finishBox(b)
			return true
		}
		b.end(t.cfg.Now())
		log.Error("sandbox ended, its shim has died")
		return true
	}
	b.set(adopting, fmt.Sprintf("its shim does not answer: %v", err), nil)
	return false
}
