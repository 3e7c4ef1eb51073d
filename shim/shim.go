package shim

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/runtime/record"
)

// Runtime makes and ends containers. Implementations are oci.CLI and the fake
// of the tests. Every call ends when its context does, with that context's
// error in the chain; any other error is the runtime's refusal, whose text is
// for people. Nothing else is read from errors.
type Runtime interface {
	Create(ctx context.Context, id string, o oci.CreateOptions) error
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, id string, o oci.ExecOptions) error
	Kill(ctx context.Context, id string, sig unix.Signal, all bool) error
	Delete(ctx context.Context, id string, force bool) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Update(ctx context.Context, id string, resources []byte) error
	Checkpoint(ctx context.Context, id string, o oci.CheckpointOptions) error
	Restore(ctx context.Context, id string, o oci.RestoreOptions) error
}

// Mounter makes and removes the root file system of a container: in earnest
// mount.All and mount.UnmountAll.
type Mounter struct {
	Mount   func(mounts []mount.Mount, target string) error
	Unmount func(target string) error
}

// Config is what a shim needs from outside.
type Config struct {
	Namespace string
	Publish   func(topic string, event proto.Message)
	Hurry     func() // the daemon has called; see Publisher.Hurry
	Log       *slog.Logger
	// Claim has the shim claim the bundles of its containers, but for Claimed, which
	// this process has claimed already.
	Claim   bool
	Claimed string
	// Home is the bundle in which the process has its working directory and its log,
	// Moved what makes another one that; nil: it stays.
	Home  string
	Moved func(bundle string)

	// What tests replace; nil is the real thing.
	Runtime func(r record.Runtime, bundle string) Runtime
	Mounter *Mounter
	Timeout time.Duration // for a call whose caller set no deadline
}

// defaultTimeout bounds what one call of the task API may take in the runtime.
const defaultTimeout = 2 * time.Minute

// cleanTime bounds the runtime's part in undoing what failed.
const cleanTime = 15 * time.Second

// Shim is the table of the containers of one shim process. Its methods are the
// task API (service.go).
type Shim struct {
	config Config
	trim   *trimmer
	left   chan struct{} // closed by Shutdown

	// spawning is held for reading while a call of the runtime may have
	// children that nobody else knows, until they are known; by sweep for
	// writing.
	spawning sync.RWMutex
	known    pidSet

	// mu guards what follows, up to sandboxLane. A container is in the table from the
	// beginning of its Create to the end of its Delete.
	mu         sync.Mutex
	containers map[string]*container
	leaving    bool
	sandbox    *sandbox // nil unless the shim was told to be one
	joining    map[string]*time.Timer
	dismissed  bool // Shutdown was called since the last container was added
	sweeper    *time.Timer

	home home // before mu

	// sandboxLane lets one call at a time change the sandbox.
	sandboxLane chan struct{}

	oom      oomWatch
	watchers sync.WaitGroup

	// Clients that are attached to a process (attach.go).
	attached sync.WaitGroup
	clients  atomic.Int32
	sockets  atomic.Uint64 // how many were made for them
}

func (c *Config) setDefaults() {
	if c.Runtime == nil {
		c.Runtime = newCLI
	}
	if c.Mounter == nil {
		c.Mounter = &Mounter{Mount: mount.All, Unmount: mount.UnmountAll}
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.Hurry == nil {
		c.Hurry = func() {}
	}
}

// New makes a shim without containers.
func New(config Config) *Shim {
	config.setDefaults()
	return &Shim{
		config:     config,
		trim:       newTrimmer(),
		left:       make(chan struct{}),
		containers: map[string]*container{},
		home:       home{bundle: config.Home},

		sandboxLane: make(chan struct{}, 1),
	}
}

// newCLI makes the driver of a container's OCI runtime.
func newCLI(r record.Runtime, bundle string) Runtime {
	return &oci.CLI{Binary: r.Binary, Root: r.Root, LogDir: bundle, SystemdCgroup: r.SystemdCgroup}
}

// Left is closed when Shutdown was called and nothing is left to supervise.
func (s *Shim) Left() <-chan struct{} { return s.left }

// begin bounds a call and frees it from its caller: a daemon that dies in the
// middle of a call must not leave half of it.
func (s *Shim) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(s.config.Timeout)
	}
	return context.WithDeadline(context.WithoutCancel(ctx), deadline)
}

// cleaning bounds what has to be done even after the caller's time is up.
func cleaning(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
}

// get finds a container.
func (s *Shim) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	if !ok {
		return nil, fmt.Errorf("task %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// find finds a process: init without an exec id.
func (s *Shim) find(id, execID string) (*container, *process, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init == nil {
		return nil, nil, fmt.Errorf("task %q is being created: %w", id, errdefs.ErrUnavailable)
	}
	if execID == "" {
		return c, c.init, nil
	}
	p, ok := c.execs[execID]
	if !ok {
		return nil, nil, fmt.Errorf("exec %q of task %q: %w", execID, id, errdefs.ErrNotFound)
	}
	return c, p, nil
}

// add takes a container into the table.
func (s *Shim) add(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return fmt.Errorf("task %q: shim is shutting down: %w", c.id, errdefs.ErrUnavailable)
	}
	if s.sandbox != nil && s.sandbox.closing {
		return fmt.Errorf("task %q: its sandbox %q was stopped: %w", c.id, s.sandbox.id, errdefs.ErrFailedPrecondition)
	}
	if _, ok := s.containers[c.id]; ok {
		return fmt.Errorf("task %q: %w", c.id, errdefs.ErrAlreadyExists)
	}
	s.containers[c.id] = c
	s.dismissed = false
	s.joined(c.id)
	return nil
}

// remove takes a container out of the table.
func (s *Shim) remove(c *container) {
	s.mu.Lock()
	delete(s.containers, c.id)
	claim := c.claim
	c.claim = nil
	s.mu.Unlock()
	s.leaveHome(c.bundle)
	if claim != nil {
		_ = claim.Close() // only drops the lock
	}
}

// leave closes left if nothing is in the table or about to be, and the shim is no
// sandbox, and tells whether it did.
func (s *Shim) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dismissed = true
	if len(s.containers) > 0 || s.sandbox != nil || len(s.joining) > 0 {
		return false
	}
	if !s.leaving {
		s.leaving = true
		close(s.left)
	}
	return true
}

// runtimeOf decides how the OCI runtime is called. base is the directory below
// which each namespace has its runtime root.
func runtimeOf(namespace, binary, root string, systemd bool) record.Runtime {
	if binary == "" {
		binary = os.Getenv(BinaryVariable)
	}
	if root == "" {
		root = os.Getenv(RootVariable)
	}
	if root == "" {
		root = defaultRoot
	}
	return record.Runtime{
		Version:       record.Version,
		Binary:        binary,
		Root:          filepath.Join(root, namespace),
		SystemdCgroup: systemd,
	}
}

// RootVariable names the environment variable with the directory for the OCI
// runtimes' state, which options of a task override.
const RootVariable = "BERTH_OCI_ROOT"

// BinaryVariable is the environment variable that names the OCI runtime's binary
// for tasks whose options name none. Empty means runc.
const BinaryVariable = "BERTH_OCI_BINARY"

// defaultRoot is used under daemons that don't set the variable.
const defaultRoot = "/run/containerd/runc"
