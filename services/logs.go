package services

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	api "github.com/berthd/berth/api/berth/logs/v1"
	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/runtime"
)

// waitAgain is the pause before a task that could not be asked is asked again
// whether it has ended.
const waitAgain = time.Second

type logService struct {
	logsgrpc.UnimplementedLogsServer
	store *logs.Store
	tasks *runtime.Tasks
}

func (s *logService) Prepare(ctx context.Context, r *api.PrepareRequest) (*api.PrepareResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	uri, err := s.store.Prepare(sc.Namespace, r.GetContainerId(), logs.Options{
		Plain: r.GetPlain(), Input: r.GetInput(), MaxSize: r.GetMaxSize(), MaxFiles: int(r.GetMaxFiles()),
	})
	if err != nil {
		return nil, err
	}
	return &api.PrepareResponse{Uri: uri}, nil
}

// Read streams a log. Following ends with the container's task: its exit is
// told only after its output is written.
func (s *logService) Read(r *api.ReadRequest, stream grpc.ServerStreamingServer[api.ReadResponse]) error {
	sc, err := scope(stream.Context())
	if err != nil {
		return err
	}
	o := logs.ReadOptions{Tail: r.GetTail(), From: r.GetPosition(), Since: unixNano(r.GetSince()), Until: unixNano(r.GetUntil())}
	if r.GetFollow() {
		ctx, cancel := context.WithCancel(stream.Context())
		ended, left := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(left)
			s.awaitEnd(ctx, sc.Namespace, r.GetContainerId(), ended)
		}()
		defer func() { cancel(); <-left }()
		o.Ended = ended
	}
	return s.store.Read(stream.Context(), sc.Namespace, r.GetContainerId(), o, func(b logs.Batch) error {
		answer := &api.ReadResponse{Position: b.Position, Lost: b.Lost}
		for _, e := range b.Entries {
			if !r.GetEntries() {
				answer.Data = append(answer.Data, e.Data...)
				continue
			}
			entry := &api.Entry{Stderr: e.Stderr, Data: e.Data}
			if !e.Time.IsZero() {
				entry.Time = e.Time.UnixNano()
			}
			answer.Entries = append(answer.Entries, entry)
		}
		return stream.Send(answer)
	})
}

// unixNano is a time of the wire; 0 is none.
func unixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// Locate tells where a container's shim listens.
func (s *logService) Locate(ctx context.Context, r *api.LocateRequest) (*api.LocateResponse, error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	socket, err := s.tasks.ShimSocket(ctx, sc.Namespace, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &api.LocateResponse{Socket: socket}, nil
}

// awaitEnd closes ended once the container's task has exited or is not there.
func (s *logService) awaitEnd(ctx context.Context, namespace, id string, ended chan<- struct{}) {
	for {
		_, err := s.tasks.Wait(ctx, namespace, &tasks.WaitRequest{ContainerId: id})
		if ctx.Err() != nil {
			return
		}
		if err == nil || errdefs.IsNotFound(err) {
			close(ended)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(waitAgain):
		}
	}
}
