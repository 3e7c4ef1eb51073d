package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/labels"
)

// killTimeout bounds the time from SIGKILL to the end of a process: longer, and
// it is stuck in the kernel.
const killTimeout = 10 * time.Second

// Remove removes a container with its task and its snapshot. With force a
// process that still runs is killed; without, it is FailedPrecondition. What is
// gone already is no error, but an unknown container is NotFound.
func (c *Client) Remove(ctx context.Context, id string, force bool) error {
	container, err := c.Container(ctx, id)
	if err != nil {
		return err
	}
	if container.Record.GetLabels()[labels.RestartStatus] != "" {
		if err := c.keepStopped(ctx, id, force); err != nil {
			return err
		}
	}
	if err := c.RemoveTask(ctx, id, force); err != nil {
		return err
	}
	if err := c.removeRecord(ctx, id); err != nil {
		return err
	}
	if key := container.Record.GetSnapshotKey(); key != "" {
		return c.removeSnapshot(ctx, container.Record.GetSnapshotter(), key)
	}
	return nil
}

// keepStopped tells the daemon not to run a container again that is about to be
// removed. Without force that is one which does not run.
func (c *Client) keepStopped(ctx context.Context, id string, force bool) error {
	got, err := c.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: id})
	if status := got.GetProcess().GetStatus(); err == nil && !force && status != task.Status_STOPPED && status != task.Status_CREATED {
		return nil // and so it will not be removed
	}
	_, err = c.Containers().Update(ctx, &containers.UpdateContainerRequest{
		Container:  &containers.Container{Id: id, Labels: map[string]string{labels.RestartStopped: "true"}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + labels.RestartStopped}},
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("label container %q: %w", id, err)
	}
	return nil
}

// removeTries bounds how often RemoveTask with force goes about it.
const removeTries = 3

// RemoveTask removes the task of a container, and the fifos that a client of
// this kind made for it. That there is no task is no error. force is as for
// Remove.
func (c *Client) RemoveTask(ctx context.Context, id string, force bool) error {
	for try := 1; ; try++ {
		got, err := c.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: id})
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("state of container %q: %w", id, err)
		}
		state := got.GetProcess()
		err = c.removeTask(ctx, id, state.GetStatus(), force)
		if err == nil {
			return c.removeFIFOs(id, state.GetStdin(), state.GetStdout(), state.GetStderr())
		}
		// A start that was given up may come to its end in between.
		if !force || try == removeTries || ctx.Err() != nil {
			return err
		}
	}
}

// removeTask removes a task that was in a state a moment ago.
func (c *Client) removeTask(ctx context.Context, id string, status task.Status, force bool) error {
	switch status {
	case task.Status_STOPPED, task.Status_CREATED:
	default:
		if !force {
			return fmt.Errorf("container %q is %s: %w", id, strings.ToLower(status.String()), errdefs.ErrFailedPrecondition)
		}
		if err := c.killTask(ctx, id, status); err != nil {
			return err
		}
	}
	if _, err := c.Tasks().Delete(ctx, &tasks.DeleteTaskRequest{ContainerId: id}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete the task of container %q: %w", id, err)
	}
	return nil
}

// killTask kills all processes of a container and waits for the first one's end.
func (c *Client) killTask(ctx context.Context, id string, status task.Status) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	p := c.Process(id, "")
	if err := p.signal(ctx, unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill container %q: %w", id, err)
	}
	if status == task.Status_PAUSED || status == task.Status_PAUSING {
		// Frozen processes can't die (cgroup v1). That it is not paused any
		// more is no matter.
		_, _ = c.Tasks().Resume(ctx, &tasks.ResumeTaskRequest{ContainerId: id})
	}
	_, err := p.Wait(ctx)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("wait for the end of container %q after SIGKILL: %w", id, err)
	}
	return nil
}

func (c *Client) removeRecord(ctx context.Context, id string) error {
	_, err := c.Containers().Delete(ctx, &containers.DeleteContainerRequest{Id: id})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %q: %w", id, err)
	}
	return nil
}

func (c *Client) removeSnapshot(ctx context.Context, snapshotter, key string) error {
	_, err := c.Snapshots().Remove(ctx, &snapshots.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: key})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	return nil
}

// removeFIFOs removes a directory of NewStdio that its maker left behind, as
// one that was killed does. Paths of any other kind are left alone.
func (c *Client) removeFIFOs(id string, paths ...string) error {
	var failed []error
	dirs := map[string]bool{}
	for _, path := range paths {
		dir := filepath.Dir(path)
		if path == "" || filepath.Dir(dir) != filepath.Clean(c.fifoDir) || !strings.HasPrefix(filepath.Base(path), id+"-") {
			continue
		}
		dirs[dir] = true
		failed = append(failed, gone(os.Remove(path)))
	}
	for dir := range dirs {
		failed = append(failed, gone(os.Remove(dir)))
	}
	return errors.Join(failed...)
}

// gone takes an error away that says that there was nothing to remove.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
