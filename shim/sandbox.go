package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "github.com/berthd/berth/api/runtime/sandbox/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/record"
)

// sandboxService is the API of a shim that is a pod's.
const sandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// The states of a sandbox as the API has them.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// sandbox is a pod that this shim is told to be. It has no process of its own:
// the shim, which stays while the sandbox is there, stands for it, and to stop it
// is to end its containers. A shim is at most one; one that is none serves the
// containers of a group all the same.
type sandbox struct {
	id      string
	bundle  string // "" without one
	netns   string
	mounted bool // rootfs holds mounts that Shutdown has to undo
	claim   *os.File
	created time.Time
	ended   chan struct{} // closed once exited is set

	// What follows is guarded by Shim.mu.

	started bool
	closing bool // no container may join any more
	exited  time.Time
}

// stopped tells whether the sandbox has been stopped.
func (b *sandbox) stopped() bool {
	select {
	case <-b.ended:
		return true
	default:
		return false
	}
}

// sandboxOf finds the sandbox. Callers hold mu.
func (s *Shim) sandboxOf(id string) (*sandbox, error) {
	if s.sandbox == nil || s.sandbox.id != id {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return s.sandbox, nil
}

// changeSandbox takes the lane of the calls that change the sandbox.
func (s *Shim) changeSandbox(ctx context.Context, id string) (leave func(), err error) {
	select {
	case s.sandboxLane <- struct{}{}:
		return func() { <-s.sandboxLane }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("sandbox %q: waiting for another call to end: %w", id, ctx.Err())
	}
}

// CreateSandbox makes the shim a sandbox. Its options are those of the containers,
// which bring them again.
func (s *Shim) CreateSandbox(ctx context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	id, bundle := r.GetSandboxId(), r.GetBundlePath()
	if err := names.Identifier(id); err != nil {
		return nil, err
	}
	if bundle != "" && !filepath.IsAbs(bundle) || bundle == "" && len(r.GetRootfs()) > 0 {
		return nil, fmt.Errorf("sandbox %q: bundle %q is not an absolute path: %w", id, bundle, errdefs.ErrInvalidArgument)
	}
	ctx, cancel := s.begin(ctx)
	defer cancel()
	leave, err := s.changeSandbox(ctx, id)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.canBecome(id); err != nil {
		return nil, err
	}
	b := &sandbox{id: id, bundle: bundle, netns: r.GetNetnsPath(), created: time.Now().UTC(), ended: make(chan struct{})}
	if err := s.furnish(b, r.GetRootfs()); err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving { // a Shutdown came in between
		return nil, errors.Join(fmt.Errorf("sandbox %q: shim is shutting down: %w", id, errdefs.ErrUnavailable), s.unfurnish(b))
	}
	s.sandbox = b
	s.dismissed = false
	s.config.Log.Info("sandbox created", "sandbox", id)
	return &api.CreateSandboxResponse{}, nil
}

// canBecome asks whether the shim may become a sandbox.
func (s *Shim) canBecome(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.leaving:
		return fmt.Errorf("sandbox %q: shim is shutting down: %w", id, errdefs.ErrUnavailable)
	case s.sandbox == nil:
		return nil
	case s.sandbox.id == id:
		return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrAlreadyExists)
	}
	return fmt.Errorf("sandbox %q: this shim is the sandbox %q: %w", id, s.sandbox.id, errdefs.ErrFailedPrecondition)
}

// furnish claims the bundle of a sandbox and mounts what it brings, or leaves
// nothing.
func (s *Shim) furnish(b *sandbox, rootfs []*types.Mount) (err error) {
	if b.bundle == "" {
		return nil
	}
	if s.config.Claim && b.bundle != s.config.Claimed {
		if b.claim, err = Claim(b.bundle); err != nil {
			return err
		}
	}
	// What an earlier sandbox left there is not this one's.
	err = os.Remove(filepath.Join(b.bundle, record.ExitFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil && len(rootfs) > 0 {
		if err = s.config.Mounter.Mount(mounts(rootfs), filepath.Join(b.bundle, record.RootfsDir)); err != nil {
			err = fmt.Errorf("mount rootfs: %w", err)
		}
		b.mounted = err == nil
	}
	if err != nil {
		err = errors.Join(err, s.unfurnish(b))
	}
	return err
}

// unfurnish undoes furnish. It can be repeated.
func (s *Shim) unfurnish(b *sandbox) error {
	if b.mounted {
		if err := s.config.Mounter.Unmount(filepath.Join(b.bundle, record.RootfsDir)); err != nil {
			return fmt.Errorf("unmount rootfs: %w", err)
		}
		b.mounted = false
	}
	if b.claim != nil {
		_ = b.claim.Close() // only drops the lock
		b.claim = nil
	}
	return nil
}

// StartSandbox makes the sandbox ready, and tells when it was created. The
// process that stands for it is the shim.
func (s *Shim) StartSandbox(_ context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.sandboxOf(r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	switch {
	case b.closing:
		return nil, fmt.Errorf("sandbox %q was stopped, and cannot be started again: %w", b.id, errdefs.ErrFailedPrecondition)
	case b.started:
		return nil, fmt.Errorf("sandbox %q was started already: %w", b.id, errdefs.ErrFailedPrecondition)
	}
	b.started = true
	return &api.StartSandboxResponse{Pid: uint32(os.Getpid()), CreatedAt: protobuf.Timestamp(b.created)}, nil
}

// Platform tells what the sandbox's containers run on: this machine.
func (s *Shim) Platform(_ context.Context, r *api.PlatformRequest) (*api.PlatformResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.sandboxOf(r.GetSandboxId()); err != nil {
		return nil, err
	}
	return &api.PlatformResponse{Platform: &types.Platform{Os: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the containers of the sandbox: with SIGTERM, and what has not
// ended in time with SIGKILL. From then on none may join. They stay to be
// deleted. It may be repeated.
func (s *Shim) StopSandbox(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	leave, err := s.changeSandbox(ctx, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer leave()
	s.mu.Lock()
	b, err := s.sandboxOf(r.GetSandboxId())
	if err == nil {
		b.closing = true
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if b.stopped() {
		return &api.StopSandboxResponse{}, nil
	}
	if err := s.endContainers(ctx, time.Duration(r.GetTimeoutSecs())*time.Second); err != nil {
		return nil, fmt.Errorf("stop sandbox %q: %w", b.id, err)
	}
	s.endSandbox(b)
	return &api.StopSandboxResponse{}, nil
}

// endSandbox records and tells that the sandbox has ended, once. Needs the lane.
func (s *Shim) endSandbox(b *sandbox) {
	if b.stopped() {
		return
	}
	exit := record.Exit{Version: record.Version, PID: os.Getpid(), ExitedAt: time.Now().UTC(), Reason: "the sandbox was stopped"}
	if b.bundle != "" {
		if err := record.Write("shim.sandbox", b.bundle, record.ExitFile, exit); err != nil {
			s.config.Log.Error("end of the sandbox not recorded", "sandbox", b.id, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.exited = exit.ExitedAt
	close(b.ended)
	s.config.Log.Info("sandbox stopped", "sandbox", b.id)
}

// WaitSandbox blocks until the sandbox has been stopped.
func (s *Shim) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	s.mu.Lock()
	b, err := s.sandboxOf(r.GetSandboxId())
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-b.ended:
		return &api.WaitSandboxResponse{ExitedAt: protobuf.Timestamp(b.exited)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SandboxStatus tells about the sandbox. If asked to be verbose it names the
// containers, and the network namespace that the daemon has told of.
func (s *Shim) SandboxStatus(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.sandboxOf(r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	answer := &api.SandboxStatusResponse{SandboxId: b.id, State: sandboxNotReady, CreatedAt: protobuf.Timestamp(b.created)}
	switch {
	case b.stopped():
		answer.ExitedAt = protobuf.Timestamp(b.exited)
	case b.started && !b.closing:
		answer.Pid, answer.State = uint32(os.Getpid()), sandboxReady
	}
	if r.GetVerbose() {
		answer.Info = map[string]string{
			"containers": strings.Join(slices.Sorted(maps.Keys(s.containers)), ","),
			"netns":      b.netns,
		}
	}
	return answer, nil
}

// PingSandbox answers if the sandbox has not been stopped.
func (s *Shim) PingSandbox(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.sandboxOf(r.GetSandboxId())
	if err == nil && b.closing {
		err = fmt.Errorf("sandbox %q was stopped: %w", b.id, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, err
	}
	return &api.PingResponse{}, nil
}

// ShutdownSandbox ends the sandbox, and with it the shim, unless it has
// containers: then the Shutdown after the last one's Delete does. A shim that is
// no sandbox, since its CreateSandbox failed, leaves as well.
func (s *Shim) ShutdownSandbox(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	ctx, cancel := s.begin(ctx)
	defer cancel()
	leave, err := s.changeSandbox(ctx, r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	defer leave()
	s.mu.Lock()
	b := s.sandbox
	if b != nil {
		if b, err = s.sandboxOf(r.GetSandboxId()); err == nil {
			b.closing = true
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if b != nil {
		s.endSandbox(b)
		if err := s.unfurnish(b); err != nil {
			return nil, fmt.Errorf("shut down sandbox %q: %w", b.id, err)
		}
		s.mu.Lock()
		s.sandbox = nil
		s.mu.Unlock()
		s.leaveHome(b.bundle)
	}
	s.leave()
	return &api.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics tells what the sandbox itself uses beside its containers, which
// is nothing.
func (s *Shim) SandboxMetrics(_ context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.sandboxOf(r.GetSandboxId())
	if err != nil {
		return nil, err
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{Id: b.id, Timestamp: protobuf.Timestamp(time.Now())}}, nil
}

// endContainers ends every container, and returns when all exits are on record.
// Nobody may join meanwhile; who is about to is waited for.
func (s *Shim) endContainers(ctx context.Context, grace time.Duration) error {
	list, err := s.inits(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(list))
	var all sync.WaitGroup
	for i, p := range list {
		all.Go(func() { errs[i] = p.terminate(ctx, grace) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// inits lists the first processes of all containers, once each has one.
func (s *Shim) inits(ctx context.Context) ([]*process, error) {
	for {
		var list []*process
		making := ""
		s.mu.Lock()
		for id, c := range s.containers {
			c.mu.Lock()
			if c.init != nil {
				list = append(list, c.init)
			} else {
				making = id
			}
			c.mu.Unlock()
		}
		s.mu.Unlock()
		if making == "" {
			return list, nil
		}
		if !sleep(ctx, lockLook) {
			return nil, fmt.Errorf("task %q is being created: %w", making, ctx.Err())
		}
	}
}

// terminate ends a container: it is asked to, and killed after grace.
func (p *process) terminate(ctx context.Context, grace time.Duration) error {
	if grace > 0 {
		// That it failed is no matter: SIGKILL is next.
		if err := p.c.kill(ctx, p, unix.SIGTERM, false); err == nil && p.exitsWithin(ctx, grace) {
			return nil
		}
	}
	ctx, cancel := cleaning(ctx) // the caller's time may be up
	defer cancel()
	if err := p.c.kill(ctx, p, unix.SIGKILL, false); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	select {
	case <-p.exited:
	case <-p.gone:
	case <-ctx.Done():
		return fmt.Errorf("%s does not end although it was killed: %w", p.name(), ctx.Err())
	}
	return nil
}

// exitsWithin waits for the exit of a process for a time, or until ctx ends.
func (p *process) exitsWithin(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case <-p.exited:
		return true
	case <-p.gone:
		return true
	case <-ctx.Done():
		return false
	}
}
