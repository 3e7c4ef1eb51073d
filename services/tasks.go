package services

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/runtime"
)

// taskService lets a task be reached only while its container's record is
// there.
type taskService struct {
	tasksgrpc.UnimplementedTasksServer
	db    *metadata.DB
	tasks *runtime.Tasks
}

// ofTask is a request about one task.
type ofTask interface{ GetContainerId() string }

// ask passes a request on once its namespace and container are checked.
func ask[Q ofTask, A any](ctx context.Context, s *taskService, r Q, call func(context.Context, string, Q) (*A, error)) (*A, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.db.Containers(sc).Get(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return call(ctx, sc.Namespace, r)
}

// tell is ask for a call without an answer.
func tell[Q ofTask](ctx context.Context, s *taskService, r Q, call func(context.Context, string, Q) error) (*emptypb.Empty, error) {
	return ask(ctx, s, r, func(ctx context.Context, namespace string, r Q) (*emptypb.Empty, error) {
		return &emptypb.Empty{}, call(ctx, namespace, r)
	})
}

func (s *taskService) Create(ctx context.Context, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.db.Containers(sc).Get(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return s.tasks.CreateFrom(ctx, sc.Namespace, c, r, checkpoints{s.db.Blobs(sc)})
}

func (s *taskService) Start(ctx context.Context, r *tasks.StartRequest) (*tasks.StartResponse, error) {
	return ask(ctx, s, r, s.tasks.Start)
}

func (s *taskService) Delete(ctx context.Context, r *tasks.DeleteTaskRequest) (*tasks.DeleteResponse, error) {
	return ask(ctx, s, r, s.tasks.Delete)
}

func (s *taskService) DeleteProcess(ctx context.Context, r *tasks.DeleteProcessRequest) (*tasks.DeleteResponse, error) {
	return ask(ctx, s, r, s.tasks.DeleteProcess)
}

func (s *taskService) Get(ctx context.Context, r *tasks.GetRequest) (*tasks.GetResponse, error) {
	return ask(ctx, s, r, s.tasks.Get)
}

// List needs no records: it tells what runs.
func (s *taskService) List(ctx context.Context, r *tasks.ListTasksRequest) (*tasks.ListTasksResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.tasks.List(ctx, sc.Namespace, r)
}

func (s *taskService) Kill(ctx context.Context, r *tasks.KillRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.Kill)
}

func (s *taskService) Exec(ctx context.Context, r *tasks.ExecProcessRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.Exec)
}

func (s *taskService) ResizePty(ctx context.Context, r *tasks.ResizePtyRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.ResizePty)
}

func (s *taskService) CloseIO(ctx context.Context, r *tasks.CloseIORequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.CloseIO)
}

func (s *taskService) Pause(ctx context.Context, r *tasks.PauseTaskRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.Pause)
}

func (s *taskService) Resume(ctx context.Context, r *tasks.ResumeTaskRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.Resume)
}

func (s *taskService) Update(ctx context.Context, r *tasks.UpdateTaskRequest) (*emptypb.Empty, error) {
	return tell(ctx, s, r, s.tasks.Update)
}

func (s *taskService) ListPids(ctx context.Context, r *tasks.ListPidsRequest) (*tasks.ListPidsResponse, error) {
	return ask(ctx, s, r, s.tasks.ListPids)
}

func (s *taskService) Metrics(ctx context.Context, r *tasks.MetricsRequest) (*tasks.MetricsResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	return s.tasks.Metrics(ctx, sc.Namespace, r)
}

func (s *taskService) Wait(ctx context.Context, r *tasks.WaitRequest) (*tasks.WaitResponse, error) {
	return ask(ctx, s, r, s.tasks.Wait)
}
