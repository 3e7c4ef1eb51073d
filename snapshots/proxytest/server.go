// Package proxytest owns a snapshotter program for tests: a real gRPC server on a
// unix socket over a driver, which can be made to hang, to die and to come back,
// and to have layers that nobody brought. It is for tests only.
package proxytest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

const refLabel = "containerd.io/snapshot.ref"

// Server is the program. What it holds outlives its death.
type Server struct {
	snapshotsgrpc.UnimplementedSnapshotsServer
	t      testing.TB
	socket string

	// mu guards what follows.
	mu      sync.Mutex
	store   *snapshottest.Store
	last    snapshots.ID
	offered map[string]bool // layers that it has by itself
	lies    map[string]bool // layers that it only says it has
	held    chan struct{}   // not nil: calls hang until it is closed
	only    string          // not "": other calls than those of this method don't hang
	late    bool            // calls that hung do what they were asked when nobody waits any more
	calls   []string
	cleaned int
	grpc    *grpc.Server
	served  chan struct{}
}

// Start serves driver on socket until the test ends.
func Start(t testing.TB, socket string, driver snapshots.Driver) *Server {
	t.Helper()
	s := &Server{t: t, socket: socket, store: snapshottest.NewStore(driver), offered: map[string]bool{}}
	s.Revive()
	t.Cleanup(s.Die)
	return s
}

// Die ends the program, with all connections. It may be dead already.
func (s *Server) Die() {
	s.mu.Lock()
	server, served := s.grpc, s.served
	s.grpc = nil
	s.mu.Unlock()
	if server == nil {
		return
	}
	s.Release()
	server.Stop()
	<-served
}

// Revive starts it again, with all that it had.
func (s *Server) Revive() {
	s.t.Helper()
	if err := os.RemoveAll(s.socket); err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	server, served := grpc.NewServer(), make(chan struct{})
	snapshotsgrpc.RegisterSnapshotsServer(server, s)
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grpc, s.served = server, served
}

// Hang has all calls hang until Release, or until their callers give up. late
// has them do what they were asked even so, once they are released.
func (s *Server) Hang(late bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = make(chan struct{})
	}
	s.late = late
}

// Only has no other calls hang than those of a method.
func (s *Server) Only(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.only = method
}

// Release ends what Hang began.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		close(s.held)
		s.held = nil
	}
}

// Offer has the program have a layer by itself: whoever prepares for it is told
// that it exists.
func (s *Server) Offer(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offered[target] = true
}

// Lie has it say that a layer is there of which it has nothing.
func (s *Server) Lie(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lies = map[string]bool{target: true}
}

// Keys lists the keys of all that it holds.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.rows()))
}

// Calls lists what it was asked, as "METHOD KEY NAMESPACE", and forgets it.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// Labels are those of a key.
func (s *Server) Labels(key string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.rows()[key].Labels)
}

// Lose removes a snapshot behind everybody's back.
func (s *Server) Lose(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rows(), key)
}

func (s *Server) rows() snapshottest.Rows { return s.store.Tree.Rows.(snapshottest.Rows) }

// enter notes a call and hangs, if that is wanted.
func (s *Server) enter(ctx context.Context, method, key string) (leave func(), err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	s.calls = append(s.calls, fmt.Sprint(method, " ", key, " ", md.Get("containerd-namespace")))
	held, late, only := s.held, s.late, s.only
	s.mu.Unlock()
	if held != nil && (only == "" || only == method) {
		done := ctx.Done()
		if late {
			done = nil
		}
		select {
		case <-held:
		case <-done:
			return nil, errgrpc.ToGRPC(ctx.Err())
		}
	}
	s.mu.Lock()
	return s.mu.Unlock, nil
}

func (s *Server) create(ctx context.Context, method string, kind snapshots.Kind, key, parent string, labels map[string]string) ([]*types.Mount, error) {
	leave, err := s.enter(ctx, method, key)
	if err != nil {
		return nil, err
	}
	defer leave()
	if target := labels[refLabel]; s.offered[target] {
		if _, has := s.rows()[target]; !has && !s.lies[target] {
			if err := s.make(ctx, parent, labels); err != nil {
				return nil, errgrpc.ToGRPC(err)
			}
			s.rows()[target] = snapshots.Row{
				ID: s.last, Kind: snapshots.Committed, Name: target, Parent: parent,
				Labels: map[string]string{refLabel: target, "remote": "yes"}, CreatedAt: time.Now(), UpdatedAt: time.Now(),
			}
		}
		return nil, errgrpc.ToGRPC(fmt.Errorf("target %q: %w", target, errdefs.ErrAlreadyExists))
	}
	about := maps.Clone(labels)
	delete(about, refLabel) // what that names is this program's affair
	parents, err := s.store.Tree.CheckCreate(key, parent, about)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.last++
	o := snapshots.CreateOptions{Kind: kind, Labels: labels}
	if err := s.store.Driver.Create(context.WithoutCancel(ctx), s.last, parents, o); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.rows()[key] = snapshots.Row{ID: s.last, Kind: kind, Name: key, Parent: parent, Labels: labels, CreatedAt: time.Now(), UpdatedAt: time.Now()}
	mounts, err := s.store.Driver.Mounts(s.last, parents, o)
	return toWire(mounts), errgrpc.ToGRPC(err)
}

// make makes the directories of a layer of its own.
func (s *Server) make(ctx context.Context, parent string, labels map[string]string) error {
	parents, err := s.store.Tree.CheckCreate("new", parent, nil)
	if err != nil {
		return err
	}
	s.last++
	return s.store.Driver.Create(context.WithoutCancel(ctx), s.last, parents, snapshots.CreateOptions{Kind: snapshots.Active, Labels: labels})
}

// Prepare implements the service.
func (s *Server) Prepare(ctx context.Context, r *api.PrepareSnapshotRequest) (*api.PrepareSnapshotResponse, error) {
	mounts, err := s.create(ctx, "prepare", snapshots.Active, r.Key, r.Parent, r.Labels)
	return &api.PrepareSnapshotResponse{Mounts: mounts}, err
}

// View implements the service.
func (s *Server) View(ctx context.Context, r *api.ViewSnapshotRequest) (*api.ViewSnapshotResponse, error) {
	mounts, err := s.create(ctx, "view", snapshots.View, r.Key, r.Parent, r.Labels)
	return &api.ViewSnapshotResponse{Mounts: mounts}, err
}

// Mounts implements the service.
func (s *Server) Mounts(ctx context.Context, r *api.MountsRequest) (*api.MountsResponse, error) {
	leave, err := s.enter(ctx, "mounts", r.Key)
	if err != nil {
		return nil, err
	}
	defer leave()
	mounts, err := s.store.Mounts(r.Key)
	return &api.MountsResponse{Mounts: toWire(mounts)}, errgrpc.ToGRPC(err)
}

// Commit implements the service.
func (s *Server) Commit(ctx context.Context, r *api.CommitSnapshotRequest) (*emptypb.Empty, error) {
	leave, err := s.enter(ctx, "commit", r.Key)
	if err != nil {
		return nil, err
	}
	defer leave()
	row, err := s.store.Tree.CheckCommit(r.Name, r.Key, r.Parent)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	usage, err := s.store.Driver.Usage(ctx, row.ID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	_, err = s.store.Tree.Commit(r.Key, r.Parent, snapshots.Row{ID: row.ID, Name: r.Name, Labels: r.Labels, Usage: usage, CreatedAt: time.Now()})
	return &emptypb.Empty{}, errgrpc.ToGRPC(err)
}

// Remove implements the service.
func (s *Server) Remove(ctx context.Context, r *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	leave, err := s.enter(ctx, "remove", r.Key)
	if err != nil {
		return nil, err
	}
	defer leave()
	row, err := s.store.Tree.Remove(r.Key)
	if err == nil {
		err = s.store.Driver.Remove(ctx, row.ID)
	}
	return &emptypb.Empty{}, errgrpc.ToGRPC(err)
}

// Stat implements the service.
func (s *Server) Stat(ctx context.Context, r *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	leave, err := s.enter(ctx, "stat", r.Key)
	if err != nil {
		return nil, err
	}
	defer leave()
	row, err := s.store.Tree.Stat(r.Key)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.StatSnapshotResponse{Info: info(*row)}, nil
}

// Update implements the service: all labels at once.
func (s *Server) Update(ctx context.Context, r *api.UpdateSnapshotRequest) (*api.UpdateSnapshotResponse, error) {
	leave, err := s.enter(ctx, "update", r.GetInfo().GetName())
	if err != nil {
		return nil, err
	}
	defer leave()
	row, err := s.store.Tree.Stat(r.GetInfo().GetName())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	row.Labels = r.GetInfo().GetLabels()
	s.rows()[row.Name] = *row
	return &api.UpdateSnapshotResponse{Info: info(*row)}, nil
}

// Usage implements the service.
func (s *Server) Usage(ctx context.Context, r *api.UsageRequest) (*api.UsageResponse, error) {
	leave, err := s.enter(ctx, "usage", r.Key)
	if err != nil {
		return nil, err
	}
	defer leave()
	row, err := s.store.Tree.Stat(r.Key)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	usage, err := s.store.Driver.Usage(ctx, row.ID)
	return &api.UsageResponse{Size: usage.Size, Inodes: usage.Inodes}, errgrpc.ToGRPC(err)
}

// List implements the service.
func (s *Server) List(r *api.ListSnapshotsRequest, stream grpc.ServerStreamingServer[api.ListSnapshotsResponse]) error {
	leave, err := s.enter(stream.Context(), "list", "")
	if err != nil {
		return err
	}
	defer leave()
	match, err := filter.ParseAll(r.GetFilters()...)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	for _, name := range slices.Sorted(maps.Keys(s.rows())) {
		row := s.rows()[name]
		fields := filter.AdaptorFunc(func(path []string) (string, bool) {
			switch path[0] {
			case "parent":
				return row.Parent, true
			case "labels":
				value, ok := row.Labels[path[1]]
				return value, ok
			}
			return "", false
		})
		if len(r.GetFilters()) > 0 && !match.Match(fields) {
			continue
		}
		if err := stream.Send(&api.ListSnapshotsResponse{Info: []*api.Info{info(row)}}); err != nil {
			return err
		}
	}
	return nil
}

// Cleanup implements the service.
func (s *Server) Cleanup(ctx context.Context, _ *api.CleanupRequest) (*emptypb.Empty, error) {
	leave, err := s.enter(ctx, "cleanup", "")
	if err != nil {
		return nil, err
	}
	defer leave()
	s.cleaned++
	return &emptypb.Empty{}, nil
}

func info(row snapshots.Row) *api.Info {
	return &api.Info{
		Name: row.Name, Parent: row.Parent, Kind: api.Kind(row.Kind), Labels: row.Labels,
		CreatedAt: protobuf.Timestamp(row.CreatedAt), UpdatedAt: protobuf.Timestamp(row.UpdatedAt),
	}
}

func toWire(mounts []mount.Mount) []*types.Mount {
	var out []*types.Mount
	for _, m := range mounts {
		out = append(out, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	return out
}
