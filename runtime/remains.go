package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
)

// Bounds on what is kept of the output of "berth-shim delete".
const (
	deleteStdoutMax = 64 << 10
	deleteStderrMax = 2 << 10
)

// remains has "berth-shim delete" kill and remove what a dead shim has left of
// a task. It can be repeated. The caller knows that the shim is dead and that
// nothing is lost with what still runs.
func (t *Tasks) remains(ctx context.Context, k *task) (*shimtask.DeleteResponse, error) {
	if k.foreign() {
		return t.foreignRemains(ctx, k)
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.Deadlines.ShimDelete)
	defer cancel()
	// A shim that was told to leave closes its connection a moment before it is
	// dead, and beside a living one nothing is removed.
	k.mu.Lock()
	shim := k.shim
	k.mu.Unlock()
	if shim.PID != 0 {
		awaitDeath(ctx, shim)
	}
	cmd := exec.CommandContext(ctx, t.cfg.Shim, "delete", "-namespace", k.ns, "-id", k.id, "-bundle", k.dir)
	cmd.Dir = k.dir
	cmd.Env = t.shimEnv(k.ns)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // not reaped yet
	cmd.WaitDelay = time.Second
	out, errOut := &clipped{max: deleteStdoutMax}, &clipped{max: deleteStderrMax}
	cmd.Stdout, cmd.Stderr = out, errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s delete did not end within %s: %w", filepath.Base(t.cfg.Shim), t.cfg.Deadlines.ShimDelete, ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("%s delete: %w: %s", filepath.Base(t.cfg.Shim), err, bytes.TrimSpace(errOut.buf.Bytes()))
	}
	if out.over {
		return nil, fmt.Errorf("%s delete: more than %d bytes of output", filepath.Base(t.cfg.Shim), deleteStdoutMax)
	}
	var reply shimtask.DeleteResponse
	if err := proto.Unmarshal(out.buf.Bytes(), &reply); err != nil {
		return nil, errors.Join(fmt.Errorf("%s delete: output is no DeleteResponse", filepath.Base(t.cfg.Shim)), err)
	}
	return &reply, nil
}

// foreignRemains is remains by the foreign shim's own "delete".
func (t *Tasks) foreignRemains(ctx context.Context, k *task) (*shimtask.DeleteResponse, error) {
	output, err := t.runForeign(ctx, k, t.cfg.Deadlines.ShimDelete, nil, "-bundle", k.dir, "delete")
	var reply shimtask.DeleteResponse
	if err == nil {
		if uerr := proto.Unmarshal(output, &reply); uerr != nil {
			err = errors.Join(fmt.Errorf("%s delete: output is no DeleteResponse", filepath.Base(k.view().intent.Binary)), uerr)
		}
	}
	if err == nil {
		return &reply, nil
	}
	// A shim may fail over a bundle in which it has made nothing.
	if ctx.Err() != nil || noTrace(k.dir, k.id) != nil {
		return nil, err
	}
	t.cfg.Log.Warn("shim could not remove what is left of a container of which nothing runs", "namespace", k.ns, "id", k.id, "error", err)
	return &shimtask.DeleteResponse{ExitStatus: statusUnobserved}, nil
}

// clipped keeps the first bytes that are written to it and drops the rest.
type clipped struct {
	buf  bytes.Buffer
	max  int
	over bool
}

func (c *clipped) Write(p []byte) (int, error) {
	keep := p[:min(len(p), c.max-c.buf.Len())]
	c.over = c.over || len(keep) < len(p)
	c.buf.Write(keep)
	return len(p), nil
}
