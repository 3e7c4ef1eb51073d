package services

import (
	"context"

	"google.golang.org/grpc"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/berth/maintenance/v1/maintenancegrpc"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/runtime"
)

type maintenanceService struct {
	maintenancegrpc.UnimplementedMaintenanceServer
	db      *metadata.DB
	images  *images.Store
	fetch   metadata.Fetcher // nil: repairs fetch nothing
	logs    *logs.Store
	tasks   *runtime.Tasks
	collect collector
	// deleted is told of the record of a container that is gone.
	deleted func(ctx context.Context, namespace, id string)
	failing func() []runtime.Finding
}

func (s *maintenanceService) Check(r *maintenance.CheckRequest, stream grpc.ServerStreamingServer[maintenance.Problem]) error {
	o := images.CheckOptions{Deep: r.GetReadContent(), Images: r.GetImages(), Repair: r.GetRepair()}
	if !r.GetNoFetch() {
		o.Fetch = s.fetch
	}
	for p := range s.images.Check(stream.Context(), o) {
		if err := stream.Send(&maintenance.Problem{
			Kind: p.Kind, Namespace: p.Namespace, Object: p.Object, Text: p.Text, Repaired: p.Repaired, Failed: p.Failed, Note: p.Note,
		}); err != nil {
			return err
		}
	}
	return stream.Context().Err() // a check that was cut short must not look clean
}

func (s *maintenanceService) Collect(ctx context.Context, _ *maintenance.CollectRequest) (*maintenance.CollectResponse, error) {
	r, err := s.collect(ctx)
	if err != nil {
		return nil, err
	}
	return &maintenance.CollectResponse{
		ContentRemoved: r.Content, SnapshotsRemoved: r.Snapshots, ImagesRemoved: r.Images,
		LeasesRemoved: r.Leases, IngestsRemoved: r.Ingests,
		LongestStallNs: r.LongestStall.Nanoseconds(), DurationNs: r.Duration.Nanoseconds(),
	}, nil
}

func (s *maintenanceService) Tasks(context.Context, *maintenance.TasksRequest) (*maintenance.TasksResponse, error) {
	list := s.tasks.Report()
	out := make([]*maintenance.Task, 0, len(list))
	for _, t := range list {
		out = append(out, &maintenance.Task{
			Namespace: t.Namespace, Id: t.ID, Verdict: t.Verdict, Reason: t.Reason, ShimPid: t.ShimPID, Pid: t.PID,
			ExitReason: t.ExitReason, OomKills: t.OOMKills,
		})
	}
	return &maintenance.TasksResponse{Tasks: out}, nil
}

func (s *maintenanceService) Inspect(ctx context.Context, _ *maintenance.InspectRequest) (*maintenance.InspectResponse, error) {
	found := s.tasks.Inspect(ctx)
	if s.failing != nil {
		found = append(s.failing(), found...)
	}
	if err := ctx.Err(); err != nil {
		return nil, err // one that was cut short must not look clean
	}
	reply := &maintenance.InspectResponse{}
	for _, f := range found {
		reply.Findings = append(reply.Findings, &maintenance.Finding{
			Kind: f.Kind, Namespace: f.Namespace, Object: f.Object, Text: f.Text, SinceNs: f.Since.UnixNano(), Repaired: f.Repaired,
		})
	}
	return reply, nil
}
