package proxy

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
)

// liar is a program that answers what a test wants.
type liar struct {
	snapshotsgrpc.UnimplementedSnapshotsServer
	stat   func(ctx context.Context) (*api.Info, error)
	mounts int // how many a snapshot has
	list   int // how many there are; each list of one message has 1,000

	mu     sync.Mutex
	spaces [][]string // namespaces of the calls
	most   int        // calls at one time
	now    int
}

func (l *liar) Stat(ctx context.Context, _ *api.StatSnapshotRequest) (*api.StatSnapshotResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	l.mu.Lock()
	l.spaces = append(l.spaces, md.Get(namespaceHeader))
	l.now++
	l.most = max(l.most, l.now)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.now--
		l.mu.Unlock()
	}()
	info, err := l.stat(ctx)
	return &api.StatSnapshotResponse{Info: info}, err
}

// set changes what it answers.
func (l *liar) set(mounts, list int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mounts, l.list = mounts, list
}

func (l *liar) Mounts(context.Context, *api.MountsRequest) (*api.MountsResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &api.MountsResponse{Mounts: slices.Repeat([]*types.Mount{{Type: "bind", Source: "/s", Target: "t", Options: []string{"ro"}}}, l.mounts)}, nil
}

func (l *liar) Remove(context.Context, *api.RemoveSnapshotRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.FailedPrecondition, "it has children: failed precondition")
}

func (l *liar) List(_ *api.ListSnapshotsRequest, stream grpc.ServerStreamingServer[api.ListSnapshotsResponse]) error {
	block := slices.Repeat([]*api.Info{{Name: "n", Kind: api.Kind_VIEW}}, 1000)
	l.mu.Lock()
	all := l.list
	l.mu.Unlock()
	for sent := 0; sent < all; sent += len(block) {
		if err := stream.Send(&api.ListSnapshotsResponse{Info: block}); err != nil {
			return err
		}
	}
	return nil
}

func serve(t *testing.T, l *liar, limit time.Duration) *Client {
	t.Helper()
	leak.CheckProcess(t)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsgrpc.RegisterSnapshotsServer(server, l)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	c, err := Open(Config{Name: "far", Address: socket, Timeout: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestOpen(t *testing.T) {
	for _, c := range []Config{{}, {Name: "n", Address: "relative"}, {Address: "/s"}} {
		if _, err := Open(c); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestAnswers: what a program answers has bounds, and a sense.
func TestAnswers(t *testing.T) {
	l := &liar{mounts: 2, list: 3000, stat: func(context.Context) (*api.Info, error) {
		return &api.Info{Name: "k", Kind: 9}, nil
	}}
	c := serve(t, l, 20*time.Second)
	in := c.In("ns")
	if _, err := in.Stat(t.Context(), "k"); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a kind that there is not: %v", err)
	}
	mounts, err := in.Mounts(t.Context(), "k")
	if err != nil || len(mounts) != 2 || mounts[0].Source != "/s" || mounts[0].Target != "t" || mounts[0].Options[0] != "ro" {
		t.Errorf("%v, %v", mounts, err)
	}
	l.set(maxMounts+1, 3000)
	if _, err := in.Mounts(t.Context(), "k"); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("too many mounts: %v", err)
	}
	if err := in.Remove(t.Context(), "k"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Error(err)
	}
	if err := c.Cleanup(t.Context()); !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Error(err)
	}
	count := func() (n int, err error) {
		for _, e := range in.All(t.Context()) {
			if e != nil {
				return n, e
			}
			n++
		}
		return n, nil
	}
	if n, err := count(); err != nil || n != 3000 {
		t.Errorf("%d, %v", n, err)
	}
	for range in.All(t.Context()) {
		break // who wants no more gets no more
	}
	l.set(1, maxList+1)
	if n, err := count(); !errors.Is(err, errdefs.ErrResourceExhausted) || n != maxList {
		t.Errorf("%d, %v", n, err)
	}
}

// TestCalls: calls have a deadline, name the namespace once, and are not many at
// a time.
func TestCalls(t *testing.T) {
	release := make(chan struct{})
	l := &liar{stat: func(ctx context.Context) (*api.Info, error) {
		select {
		case <-release:
			return &api.Info{Name: "k", Kind: api.Kind_ACTIVE}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	c := serve(t, l, time.Second)
	if _, err := c.In("ns").Stat(t.Context(), "k"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("a program that hangs: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.In("ns").Stat(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller who has no time: %v", err)
	}
	// Calls that wait for their turn get none before others have ended.
	patient, err := Open(Config{Name: "far", Address: c.Address(), Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer patient.Close()
	waiting := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.now
	}
	for waiting() > 0 { // those of before
		runtime.Gosched()
	}
	l.mu.Lock()
	l.most = 0
	l.mu.Unlock()
	var all sync.WaitGroup
	for range 3 * maxCalls {
		all.Go(func() {
			if _, err := patient.In("ns").Stat(t.Context(), "k"); err != nil {
				t.Error(err)
			}
		})
	}
	for waiting() < maxCalls {
		runtime.Gosched()
	}
	close(release)
	all.Wait()
	l.mu.Lock()
	if l.most != maxCalls {
		t.Errorf("%d calls at a time", l.most)
	}
	l.mu.Unlock()
	outgoing := metadata.AppendToOutgoingContext(t.Context(), namespaceHeader, "caller")
	for _, call := range []struct {
		ctx  context.Context
		ns   string
		want []string
	}{{t.Context(), "ns", []string{"ns"}}, {outgoing, "ns", []string{"caller"}}, {t.Context(), "", nil}} {
		if _, err := c.In(call.ns).Stat(call.ctx, "k"); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		got := l.spaces[len(l.spaces)-1]
		l.mu.Unlock()
		if !slices.Equal(got, call.want) {
			t.Errorf("namespaces %q, want %q", got, call.want)
		}
	}
}
