package services

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	"github.com/berthd/berth/runtime"
)

// sandboxController serves the sandboxer "shim", the only one there is.
type sandboxController struct {
	sandboxgrpc.UnimplementedControllerServer
	tasks *runtime.Tasks
}

// sandboxer is the name of the controller whose sandboxes are shims.
const sandboxer = "shim"

// scoped checks the sandboxer of a request, and gives the namespace.
func (s *sandboxController) scoped(ctx context.Context, name string) (namespace string, err error) {
	switch name {
	case "":
		return "", missing("sandboxer")
	case sandboxer:
	default:
		return "", fmt.Errorf("sandboxer %q: %w", name, errdefs.ErrNotFound)
	}
	sc, err := scope(ctx)
	return sc.Namespace, err
}

func (s *sandboxController) Create(ctx context.Context, r *sandbox.ControllerCreateRequest) (*sandbox.ControllerCreateResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	if err := s.tasks.CreateSandbox(ctx, ns, r); err != nil {
		return nil, err
	}
	return &sandbox.ControllerCreateResponse{SandboxId: r.GetSandboxId()}, nil
}

func (s *sandboxController) Start(ctx context.Context, r *sandbox.ControllerStartRequest) (*sandbox.ControllerStartResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return s.tasks.StartSandbox(ctx, ns, r)
}

func (s *sandboxController) Stop(ctx context.Context, r *sandbox.ControllerStopRequest) (*sandbox.ControllerStopResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return &sandbox.ControllerStopResponse{}, s.tasks.StopSandbox(ctx, ns, r)
}

func (s *sandboxController) Wait(ctx context.Context, r *sandbox.ControllerWaitRequest) (*sandbox.ControllerWaitResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return s.tasks.WaitSandbox(ctx, ns, r)
}

func (s *sandboxController) Status(ctx context.Context, r *sandbox.ControllerStatusRequest) (*sandbox.ControllerStatusResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return s.tasks.SandboxStatus(ctx, ns, r)
}

func (s *sandboxController) Shutdown(ctx context.Context, r *sandbox.ControllerShutdownRequest) (*sandbox.ControllerShutdownResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return &sandbox.ControllerShutdownResponse{}, s.tasks.ShutdownSandbox(ctx, ns, r)
}

func (s *sandboxController) Metrics(ctx context.Context, r *sandbox.ControllerMetricsRequest) (*sandbox.ControllerMetricsResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return s.tasks.SandboxMetrics(ctx, ns, r)
}

func (s *sandboxController) Platform(ctx context.Context, r *sandbox.ControllerPlatformRequest) (*sandbox.ControllerPlatformResponse, error) {
	ns, err := s.scoped(ctx, r.GetSandboxer())
	if err != nil {
		return nil, err
	}
	return s.tasks.SandboxPlatform(ctx, ns, r)
}

// Update takes any change to a sandbox's record, which means nothing to its shim.
func (s *sandboxController) Update(ctx context.Context, r *sandbox.ControllerUpdateRequest) (*sandbox.ControllerUpdateResponse, error) {
	_, err := s.scoped(ctx, r.GetSandboxer())
	return &sandbox.ControllerUpdateResponse{}, err
}
