package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
)

// Tasks is the table of all tasks of all namespaces.
type Tasks struct {
	cfg Config
}

// Supervision is what the daemon knows of one task, for people who look into a
// running daemon.
type Supervision struct {
	Namespace string
	ID        string
	Verdict   string // "connected", "adopting", "shim-lost", "stopped" or "quarantined"
	Reason    string // why, in words; empty for "connected"
	ShimPID   uint32
	PID       uint32
}

func socketPath(state, ns, id string) string {
	sum := sha256.Sum256([]byte(ns + "/" + id))
	return filepath.Join(state, "s", hex.EncodeToString(sum[:16]))
}

var errSkeleton = fmt.Errorf("runtime is being written: %w", errdefs.ErrNotImplemented)

// Open makes the directories, tells a reboot from a restart, and lists every
// bundle into the table by its records alone. It starts nothing.
func Open(c Config) (*Tasks, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	return &Tasks{cfg: c}, nil
}

// Run adopts the tasks that Open found, in parallel, and supervises all tasks
// until ctx ends. Then it closes t. Containers run on.
func (t *Tasks) Run(ctx context.Context) error { <-ctx.Done(); return t.Close() }

// Close lets go of every shim, without a word to it, and waits for what Run and
// the calls have started.
func (t *Tasks) Close() error { return nil }

// Create starts a shim and makes the container in it, not yet started. After an
// error nothing of it is left.
func (t *Tasks) Create(ctx context.Context, ns string, c *containers.Container, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	return nil, errSkeleton
}

// Start starts the container's own process, or a registered exec.
func (t *Tasks) Start(ctx context.Context, ns string, r *tasks.StartRequest) (*tasks.StartResponse, error) {
	return nil, errSkeleton
}

// Delete removes a task that is stopped, or created and not started. It can be
// called again after it failed; a second caller joins the first.
func (t *Tasks) Delete(ctx context.Context, ns string, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error) {
	return nil, errSkeleton
}

// DeleteProcess removes an exec that is not running.
func (t *Tasks) DeleteProcess(ctx context.Context, ns string, r *tasks.DeleteProcessRequest) (*tasks.DeleteResponse, error) {
	return nil, errSkeleton
}

// Get tells the state of a process.
func (t *Tasks) Get(ctx context.Context, ns string, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	return nil, errSkeleton
}

// List tells the state of every task of the namespace, in order of id.
func (t *Tasks) List(ctx context.Context, ns string, r *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	return nil, errSkeleton
}

// Kill sends a signal. A process that is gone is NotFound.
func (t *Tasks) Kill(ctx context.Context, ns string, r *tasks.KillRequest) error { return errSkeleton }

// Exec registers a further process; Start runs it.
func (t *Tasks) Exec(ctx context.Context, ns string, r *tasks.ExecProcessRequest) error {
	return errSkeleton
}

// ResizePty sets the size of a process's terminal.
func (t *Tasks) ResizePty(ctx context.Context, ns string, r *tasks.ResizePtyRequest) error {
	return errSkeleton
}

// CloseIO closes the shim's end of a process's stdin.
func (t *Tasks) CloseIO(ctx context.Context, ns string, r *tasks.CloseIORequest) error {
	return errSkeleton
}

// Pause freezes a running task.
func (t *Tasks) Pause(ctx context.Context, ns string, r *tasks.PauseTaskRequest) error {
	return errSkeleton
}

// Resume thaws a paused task.
func (t *Tasks) Resume(ctx context.Context, ns string, r *tasks.ResumeTaskRequest) error {
	return errSkeleton
}

// Update changes a task's resources.
func (t *Tasks) Update(ctx context.Context, ns string, r *tasks.UpdateTaskRequest) error {
	return errSkeleton
}

// ListPids lists every process of a task.
func (t *Tasks) ListPids(ctx context.Context, ns string, r *tasks.ListPidsRequest) (*tasks.ListPidsResponse, error) {
	return nil, errSkeleton
}

// Metrics gives the statistics of the namespace's tasks that match any of the
// filters (fields id and namespace). A task that doesn't answer is left out.
func (t *Tasks) Metrics(ctx context.Context, ns string, r *tasks.MetricsRequest) (*tasks.MetricsResponse, error) {
	return nil, errSkeleton
}

// Wait returns once a process has exited.
func (t *Tasks) Wait(ctx context.Context, ns string, r *tasks.WaitRequest) (*tasks.WaitResponse, error) {
	return nil, errSkeleton
}

// Checkpoint is not served yet.
func (t *Tasks) Checkpoint(ctx context.Context, ns string, r *tasks.CheckpointTaskRequest) (*tasks.CheckpointTaskResponse, error) {
	return nil, fmt.Errorf("checkpoint of task %q: %w", r.GetContainerId(), errdefs.ErrNotImplemented)
}

// Forwarded takes an event from a shim and passes it on to Config.Forward,
// except an exit or a delete that was published already.
func (t *Tasks) Forwarded(ctx context.Context, e *types.Envelope) error {
	return t.cfg.Forward(ctx, e)
}

// Report lists every task with what supervision knows of it, in order of
// namespace and id.
func (t *Tasks) Report() []Supervision { return nil }
