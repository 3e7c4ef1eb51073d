package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/runtime"
)

// backupPart is how many bytes of a backup go into one message.
const backupPart = 256 << 10

func (s *maintenanceService) Backup(r *maintenance.BackupRequest, stream grpc.ServerStreamingServer[maintenance.BackupChunk]) error {
	w := &chunks{send: stream.Send, buf: make([]byte, 0, backupPart)}
	if err := s.db.Backup(stream.Context(), w, r.GetContent()); err != nil {
		return err
	}
	return w.end()
}

// chunks writes to a stream in messages of a good size.
type chunks struct {
	send  func(*maintenance.BackupChunk) error
	buf   []byte
	total int64
}

func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part := min(len(p), cap(c.buf)-len(c.buf))
		c.buf, p = append(c.buf, p[:part]...), p[part:]
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(0); err != nil {
				return 0, err
			}
		}
	}
	c.total += int64(n)
	return n, nil
}

func (c *chunks) flush(total int64) error {
	err := c.send(&maintenance.BackupChunk{Data: c.buf, Total: total})
	c.buf = make([]byte, 0, backupPart) // the message may still be on its way
	return err
}

// end sends the rest, with how much there was.
func (c *chunks) end() error { return c.flush(c.total) }

var _ io.Writer = (*chunks)(nil)

func (s *maintenanceService) Usage(r *maintenance.UsageRequest, stream grpc.ServerStreamingServer[maintenance.UsageResponse]) error {
	usage, err := s.db.Usage(stream.Context())
	if err != nil {
		return err
	}
	logs, err := s.logs.Usage(stream.Context())
	if err != nil {
		return err
	}
	place := metadata.Place{Name: "logs", Objects: int64(len(logs))}
	for _, l := range logs {
		place.Bytes += l.Bytes
		usage.Objects = append(usage.Objects, metadata.Object{
			Kind: "log", Namespaces: []string{l.Namespace}, Name: l.ID, Bytes: l.Bytes, Owners: 1, OwnedBy: []string{"container " + l.Namespace + "/" + l.ID},
		})
		at := slices.IndexFunc(usage.Owners, func(o metadata.Owner) bool {
			return o.Kind == "container" && o.Namespace == l.Namespace && o.Name == l.ID
		})
		if at >= 0 {
			o := &usage.Owners[at]
			o.Bytes, o.Unique, o.Objects = o.Bytes+l.Bytes, o.Unique+l.Bytes, o.Objects+1
		}
	}
	for _, p := range append(usage.Places, place) {
		err = errors.Join(err, stream.Send(&maintenance.UsageResponse{Part: &maintenance.UsageResponse_Place{Place: &maintenance.Place{
			Name: p.Name, Objects: p.Objects, Bytes: p.Bytes, GarbageBytes: p.Garbage, UnusedBytes: p.Unused,
		}}}))
	}
	for _, o := range usage.Owners {
		if err != nil {
			return err
		}
		err = stream.Send(&maintenance.UsageResponse{Part: &maintenance.UsageResponse_Owner{Owner: &maintenance.Owner{
			Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Bytes: o.Bytes, UniqueBytes: o.Unique, Objects: o.Objects, Containers: o.Containers,
		}}})
	}
	if !r.GetObjects() {
		return err
	}
	for _, o := range usage.Objects {
		if err != nil {
			return err
		}
		err = stream.Send(&maintenance.UsageResponse{Part: &maintenance.UsageResponse_Object{Object: &maintenance.Object{
			Kind: o.Kind, Namespaces: o.Namespaces, Name: o.Name, Snapshotter: o.Snapshotter, Bytes: o.Bytes, Owners: o.Owners, OwnedBy: o.OwnedBy,
		}}})
	}
	return err
}

func (s *maintenanceService) Why(ctx context.Context, r *maintenance.WhyRequest) (*maintenance.WhyResponse, error) {
	chains, err := s.db.Why(ctx, r.GetNamespace(), r.GetObject())
	if err != nil {
		return nil, err
	}
	reply := &maintenance.WhyResponse{}
	for _, c := range chains {
		out := &maintenance.Chain{Reason: c.Reason, Garbage: c.Garbage}
		for _, l := range c.Links {
			out.Links = append(out.Links, &maintenance.Link{Kind: l.Kind, Namespace: l.Namespace, Name: l.Name, Snapshotter: l.Snapshotter, By: l.By})
		}
		reply.Chains = append(reply.Chains, out)
	}
	return reply, nil
}

func (s *maintenanceService) Prune(r *maintenance.PruneRequest, stream grpc.ServerStreamingServer[maintenance.Pruned]) error {
	ctx := stream.Context()
	o := metadata.PruneOptions{Namespace: r.GetNamespace(), Images: r.GetImages()}
	if older := time.Duration(r.GetOlderSeconds()) * time.Second; older > 0 {
		o.Before = time.Now().Add(-older)
	}
	if r.GetContainers() {
		o.Containers = s.idle
	}
	found, err := s.db.Prunable(ctx, o)
	if err != nil {
		return err
	}
	if !r.GetDryRun() {
		for i := range found {
			found[i].Failed = s.prune(ctx, found[i])
		}
		if _, err := s.collect(ctx); err != nil {
			return err
		}
	}
	for _, p := range found {
		out := &maintenance.Pruned{Kind: p.Kind, Namespace: p.Namespace, Name: p.Name, Snapshotter: p.Snapshotter, Bytes: p.Bytes}
		if p.Failed != nil {
			out.Failed = p.Failed.Error()
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}

// idle tells whether a container has no task, or one that is known to have ended.
func (s *maintenanceService) idle(ns, id string) bool {
	if t := s.tasks.Known(ns, id); t != nil {
		return t.GetStatus() == task.Status_STOPPED
	}
	return !slices.ContainsFunc(s.tasks.Report(), func(t runtime.Supervision) bool { return t.Namespace == ns && t.ID == id })
}

// prune removes a container with its task, unless that runs by now, or an image.
// Other things go with the collection.
func (s *maintenanceService) prune(ctx context.Context, p metadata.Pruned) error {
	scope := metadata.Scope{Namespace: p.Namespace}
	switch p.Kind {
	case "container":
		if !s.idle(p.Namespace, p.Name) {
			return fmt.Errorf("container %q runs by now: %w", p.Name, errdefs.ErrFailedPrecondition)
		}
		_, err := s.tasks.Delete(ctx, p.Namespace, &tasks.DeleteTaskRequest{ContainerId: p.Name})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		err = s.db.Containers(scope).Delete(ctx, p.Name)
		if err == nil {
			s.deleted(ctx, p.Namespace, p.Name)
		}
		return err
	case "image":
		return s.db.Images(scope).Delete(ctx, p.Name, nil)
	}
	return nil
}

func (s *maintenanceService) CheckImages(r *maintenance.CheckImagesRequest, stream grpc.ServerStreamingServer[maintenance.ImageState]) error {
	ctx := stream.Context()
	spaces, err := s.db.Namespaces().List(ctx)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		if r.GetNamespace() != "" && ns.Name != r.GetNamespace() {
			continue
		}
		rows, err := s.db.Images(metadata.Scope{Namespace: ns.Name}).List(ctx)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if len(r.GetNames()) > 0 && !slices.Contains(r.GetNames(), row.GetName()) {
				continue
			}
			state, err := s.images.Look(ctx, ns.Name, row.GetName())
			if errdefs.IsNotFound(err) {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			if err := stream.Send(wireState(state)); err != nil {
				return err
			}
		}
	}
	return nil
}

func wireState(s images.State) *maintenance.ImageState {
	out := &maintenance.ImageState{Namespace: s.Namespace, Name: s.Name, Digest: s.Target.Digest.String(), Problem: s.Problem}
	for _, v := range s.Variants {
		p := &maintenance.PlatformState{
			Platform: v.Platform, Manifest: v.Manifest.Digest.String(), State: v.State, Unpacked: v.Unpacked, Broken: v.Broken, Bytes: v.Size,
		}
		if v.State == images.Partial {
			for _, d := range v.Missing {
				p.Missing = append(p.Missing, d.Digest.String())
			}
		}
		out.Platforms = append(out.Platforms, p)
	}
	return out
}
