package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/protobuf"
)

// Status of a container as berth tells it.
const (
	statusCreated = "created" // never ran
	statusRunning = "running"
	statusPaused  = "paused"
	statusPausing = "pausing"
	statusExited  = "exited"
	statusUnknown = "unknown" // there is a task, but the daemon can't tell yet
)

// containerState is a container in the JSON of ps and inspect.
type containerState struct {
	ID         string            `json:"id"`
	Image      string            `json:"image"`
	Command    []string          `json:"command"`
	Status     string            `json:"status"` // created, running, paused, pausing, exited, unknown
	PID        uint32            `json:"pid,omitempty"`
	ExitStatus *uint32           `json:"exit_status,omitempty"` // if exited
	ExitedAt   *time.Time        `json:"exited_at,omitempty"`
	ExitReason string            `json:"exit_reason,omitempty"` // where the status is from, unless it was waited for
	OOMKills   uint64            `json:"oom_kills,omitempty"`   // processes that the kernel ended for want of memory
	CreatedAt  time.Time         `json:"created_at"`
	Runtime    string            `json:"runtime"`
	Labels     map[string]string `json:"labels"`

	spec *specs.Spec
}

// stateOf puts together what the record and the task, which may be nil, tell.
func stateOf(record *containers.Container, t *task.Process) containerState {
	s := containerState{
		ID:        record.GetId(),
		Image:     record.GetImage(),
		Command:   []string{},
		Status:    statusCreated,
		CreatedAt: protobuf.Time(record.GetCreatedAt()),
		Runtime:   record.GetRuntime().GetName(),
		Labels:    record.GetLabels(),
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	// A spec that another client wrote may be anything.
	if spec, err := (&client.Container{Record: record}).Spec(); err == nil {
		s.spec = spec
		if spec.Process != nil && spec.Process.Args != nil {
			s.Command = spec.Process.Args
		}
	}
	if t == nil {
		s.fromLabels()
		return s
	}
	s.PID = t.GetPid()
	switch t.GetStatus() {
	case task.Status_CREATED:
	case task.Status_RUNNING:
		s.Status = statusRunning
	case task.Status_PAUSED:
		s.Status = statusPaused
	case task.Status_PAUSING:
		s.Status = statusPausing
	case task.Status_STOPPED:
		s.exited(t.GetExitStatus(), protobuf.Time(t.GetExitedAt()))
		s.PID = 0
	default:
		s.Status = statusUnknown
	}
	return s
}

func (s *containerState) exited(status uint32, at time.Time) {
	s.Status, s.ExitStatus = statusExited, &status
	if !at.IsZero() {
		s.ExitedAt = &at
	}
}

// fromLabels takes the end of a task that is deleted from the labels that run
// left.
func (s *containerState) fromLabels() {
	status, err := strconv.ParseUint(s.Labels[client.LabelExitStatus], 10, 32)
	if err != nil {
		return
	}
	at, err := time.Parse(time.RFC3339Nano, s.Labels[client.LabelExitedAt])
	if err != nil {
		at = time.Time{}
	}
	s.exited(uint32(status), at)
}

// containerStates lists all containers of the namespace.
func containerStates(ctx context.Context, c *client.Client) ([]containerState, error) {
	records, err := c.Containers().List(ctx, &containers.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	running, err := c.Tasks().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	byID := map[string]*task.Process{}
	for _, t := range running.GetTasks() {
		// Servers fill in one or the other.
		id := t.GetContainerId()
		if id == "" {
			id = t.GetId()
		}
		byID[id] = t
	}
	ends := endings(ctx, c, running.GetTasks()...)
	states := make([]containerState, 0, len(records.GetContainers()))
	for _, record := range records.GetContainers() {
		s := stateOf(record, byID[record.GetId()])
		s.ended(ends[record.GetId()])
		states = append(states, s)
	}
	return states, nil
}

// endings tells more of how tasks ended, if there is one that has. Other servers
// than berthd can't, which is no error.
func endings(ctx context.Context, c *client.Client, of ...*task.Process) map[string]*maintenance.Task {
	stopped := func(t *task.Process) bool { return t.GetStatus() == task.Status_STOPPED }
	if !slices.ContainsFunc(of, stopped) {
		return nil
	}
	reply, err := c.Maintenance().Tasks(ctx, &maintenance.TasksRequest{})
	if err != nil {
		return nil
	}
	ends := map[string]*maintenance.Task{}
	for _, t := range reply.GetTasks() {
		if t.GetNamespace() == c.Namespace() {
			ends[t.GetId()] = t
		}
	}
	return ends
}

// ended takes over what there is to tell of an end.
func (s *containerState) ended(t *maintenance.Task) {
	s.ExitReason, s.OOMKills = t.GetExitReason(), t.GetOomKills()
}

// taskState asks for the state of a container's task; nil: it has none.
func taskState(ctx context.Context, c *client.Client, id string) (*task.Process, error) {
	t, err := c.Process(id, "").State(ctx)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state of container %q: %w", id, err)
	}
	return t, nil
}

// plainID is text that can be the start of an id.
var plainID = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// findContainer finds a container by its id or by a start of it that fits no
// other.
func findContainer(ctx context.Context, c *client.Client, ref string) (*client.Container, error) {
	none := hint(fmt.Errorf("container %q: %w", ref, errdefs.ErrNotFound), "`berth ps -a` lists the containers of namespace %q", c.Namespace())
	if !plainID.MatchString(ref) {
		return nil, none
	}
	found, err := c.Container(ctx, ref)
	// The start of an id need not be one itself: it may end in a dash.
	if err == nil || !errdefs.IsNotFound(err) && !errdefs.IsInvalidArgument(err) {
		return found, err
	}
	// In a filter a backslash before the dot would be an escape of its own.
	start := strings.ReplaceAll(ref, ".", "[.]")
	list, err := c.Containers().List(ctx, &containers.ListContainersRequest{Filters: []string{"id~=/^" + start + "/"}})
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", ref, err)
	}
	switch records := list.GetContainers(); len(records) {
	case 0:
		return nil, none
	case 1:
		return c.Container(ctx, records[0].GetId())
	default:
		return nil, hint(fmt.Errorf("container %q: the ids of %d containers start so", ref, len(records)),
			"say more of the id: %s, %s…", records[0].GetId(), records[1].GetId())
	}
}

// parallel bounds how many containers are worked on at once.
const parallel = 8

// each does something to every container named, several at a time, and says
// which of them it is done for. All failures are told.
func (a *app) each(ctx context.Context, c *client.Client, refs []string, do func(*client.Container) error) error {
	failed := make([]error, len(refs))
	done := make([]string, len(refs))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, ref := range refs {
		group.Go(func() error {
			container, err := findContainer(ctx, c, ref)
			if err == nil {
				err = do(container)
			}
			if failed[i] = err; err == nil {
				done[i] = container.ID()
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in failed
	for _, id := range done {
		if id != "" {
			fmt.Fprintln(a.out, id)
		}
	}
	return errors.Join(failed...)
}

// noArgs wants no arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usage(fmt.Errorf("unknown command %q", args[0]))
	}
	return usage(fmt.Errorf("unexpected argument %q", args[0]))
}

// minArgs wants at least n arguments and says which.
func minArgs(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < n {
			return usage(fmt.Errorf("no %s is named", what))
		}
		return nil
	}
}

// exactArgs wants n arguments and says which.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(fmt.Errorf("want %s, got %d arguments", what, len(args)))
		}
		return nil
	}
}
