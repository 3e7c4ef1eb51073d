package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/protobuf"
)

// Pause between questions about a process while the daemon can't say.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 2 * time.Second
)

// Exit is how a process ended.
type Exit struct {
	Status uint32 // exit code, or 128 and the number of the signal
	At     time.Time
	Err    error // the wait itself failed; Status says nothing
}

// Process is a process of a container: its first, or one that Exec added.
type Process struct {
	client    *Client
	container string
	exec      string // empty for the first process
	stdio     *Stdio // nil if this client did not make it
}

// TaskOptions says where the output of a container's first process goes.
type TaskOptions struct {
	// Stdio is what NewStdio made; nil: no input, and output to LogURI.
	Stdio *Stdio
	// LogURI is where the shim itself writes the output, as from PrepareLog;
	// empty: nowhere.
	LogURI string
	// Checkpoint is where the processes go on from, of what Checkpoint gave the first;
	// nil: the container's command begins.
	Checkpoint *types.Descriptor
	// TaskAPI is where the sandbox serves the task API that NewTask is to join, as
	// its controller's status tells; empty: the container's own shim.
	TaskAPI string
}

// Process gives a process of which nothing is known but that it should exist.
// exec is empty for a container's first one.
func (c *Client) Process(container, exec string) *Process {
	return &Process{client: c, container: container, exec: exec}
}

// NewTask makes the container's first process, which Start then lets run.
// Whatever happens, o.Stdio stays the caller's to close.
func (c *Container) NewTask(ctx context.Context, o TaskOptions) (*Process, error) {
	s, err := c.Spec()
	if err != nil {
		return nil, err
	}
	mounts, err := c.mounts(ctx)
	if err != nil {
		return nil, err
	}
	request := &tasks.CreateTaskRequest{
		ContainerId: c.ID(),
		Rootfs:      mounts,
		Terminal:    s.Process != nil && s.Process.Terminal,
		Stdout:      o.LogURI,
		Checkpoint:  o.Checkpoint,
	}
	request.TaskApiAddress = o.TaskAPI
	if !request.Terminal {
		request.Stderr = o.LogURI
	}
	if o.Stdio != nil {
		request.Stdin, request.Stdout, request.Stderr = o.Stdio.paths()
	}
	if _, err := c.client.Tasks().Create(ctx, request); err != nil {
		return nil, err
	}
	return &Process{client: c.client, container: c.ID(), stdio: o.Stdio}, nil
}

// Exec adds a process to a container that runs; Start lets it run.
func (c *Client) Exec(ctx context.Context, container, id string, p *specs.Process, o TaskOptions) (*Process, error) {
	packed, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	request := &tasks.ExecProcessRequest{
		ContainerId: container,
		ExecId:      id,
		Terminal:    p.Terminal,
		Spec:        &anypb.Any{TypeUrl: protobuf.TypeProcess, Value: packed},
		Stdout:      o.LogURI,
	}
	if !p.Terminal {
		request.Stderr = o.LogURI
	}
	if o.Stdio != nil {
		request.Stdin, request.Stdout, request.Stderr = o.Stdio.paths()
	}
	if _, err := c.Tasks().Exec(ctx, request); err != nil {
		return nil, err
	}
	return &Process{client: c, container: container, exec: id, stdio: o.Stdio}, nil
}

// Start lets the process run and gives its pid on the host.
func (p *Process) Start(ctx context.Context) (uint32, error) {
	started, err := p.client.Tasks().Start(ctx, &tasks.StartRequest{ContainerId: p.container, ExecId: p.exec})
	if err != nil {
		return 0, err
	}
	if p.stdio != nil {
		p.stdio.feed(func() {
			ctx, cancel := cleanupContext(ctx)
			defer cancel()
			// That the process is gone by now, or that the daemon is, leaves
			// nobody to tell.
			_, _ = p.client.Tasks().CloseIO(ctx, &tasks.CloseIORequest{ContainerId: p.container, ExecId: p.exec, Stdin: true})
		})
	}
	return started.GetPid(), nil
}

// Launch opens a wait for the process, then starts it: so the exit can't be
// missed. ctx is for the start, waitCtx for the wait. The channel gives one Exit.
func (p *Process) Launch(ctx, waitCtx context.Context) (<-chan Exit, error) {
	waitCtx, cancel := context.WithCancel(waitCtx)
	exits := make(chan Exit, 1)
	go func() {
		defer cancel()
		exit, err := p.Wait(waitCtx)
		exit.Err = err
		exits <- exit
	}()
	if _, err := p.Start(ctx); err != nil {
		cancel()
		<-exits
		return nil, err
	}
	return exits, nil
}

// Wait waits until the process has ended. That the daemon goes away meanwhile,
// or does not know yet, ends no wait: it goes on when the daemon is back.
// NotFound: there is no such process.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	pause := firstPause
	for {
		ended, err := p.client.Tasks().Wait(ctx, &tasks.WaitRequest{ContainerId: p.container, ExecId: p.exec}, grpc.WaitForReady(true))
		if err == nil {
			return Exit{Status: ended.GetExitStatus(), At: protobuf.Time(ended.GetExitedAt())}, nil
		}
		if ctx.Err() != nil {
			return Exit{}, context.Cause(ctx)
		}
		if !errdefs.IsUnavailable(err) {
			return Exit{}, fmt.Errorf("wait for %s: %w", p, err)
		}
		p.client.away(err)
		select {
		case <-ctx.Done():
			return Exit{}, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// Signal sends a signal. NotFound: the process has ended, or never was.
func (p *Process) Signal(ctx context.Context, signal unix.Signal) error {
	if err := p.signal(ctx, signal, false); err != nil {
		return fmt.Errorf("send %s to %s: %w", unix.SignalName(signal), p, err)
	}
	return nil
}

// signal sends a signal, with all to every process of the container.
func (p *Process) signal(ctx context.Context, signal unix.Signal, all bool) error {
	_, err := p.client.Tasks().Kill(ctx, &tasks.KillRequest{
		ContainerId: p.container, ExecId: p.exec, Signal: uint32(signal), All: all,
	})
	return err
}

// State asks for the state of the process.
func (p *Process) State(ctx context.Context) (*task.Process, error) {
	got, err := p.client.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: p.container, ExecId: p.exec})
	if err != nil {
		return nil, err
	}
	return got.GetProcess(), nil
}

// Resize tells the process's terminal its size. Without a terminal it does
// nothing.
func (p *Process) Resize(ctx context.Context, columns, rows uint32) error {
	_, err := p.client.Tasks().ResizePty(ctx, &tasks.ResizePtyRequest{
		ContainerId: p.container, ExecId: p.exec, Width: columns, Height: rows,
	})
	return err
}

// Delete removes a process that has ended, and answers when all its output has
// been passed on. For a container's first process it removes the task.
func (p *Process) Delete(ctx context.Context) (Exit, error) {
	var answer *tasks.DeleteResponse
	var err error
	if p.exec == "" {
		answer, err = p.client.Tasks().Delete(ctx, &tasks.DeleteTaskRequest{ContainerId: p.container})
	} else {
		answer, err = p.client.Tasks().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerId: p.container, ExecId: p.exec})
	}
	if err != nil {
		return Exit{}, fmt.Errorf("delete %s: %w", p, err)
	}
	return Exit{Status: answer.GetExitStatus(), At: protobuf.Time(answer.GetExitedAt())}, nil
}

// Discard removes a process that may or may not run, by force, whatever became
// of the caller's context: to be called when something went wrong. That it is
// gone already is no error.
func (p *Process) Discard(ctx context.Context) error {
	ctx, cancel := cleanupContext(ctx)
	defer cancel()
	if p.exec == "" {
		return p.client.RemoveTask(ctx, p.container, true)
	}
	_, err := p.Delete(ctx)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	killErr := p.Signal(ctx, unix.SIGKILL)
	if killErr != nil && !errdefs.IsNotFound(killErr) {
		return errors.Join(err, killErr)
	}
	if _, err := p.Wait(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := p.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// String names the process in errors.
func (p *Process) String() string {
	if p.exec == "" {
		return fmt.Sprintf("container %q", p.container)
	}
	return fmt.Sprintf("process %q of container %q", p.exec, p.container)
}
