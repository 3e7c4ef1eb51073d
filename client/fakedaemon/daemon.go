package fakedaemon

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
)

// Fate is how a call fails.
type Fate struct {
	Err   error
	After bool // after it did its work
	Once  bool // only the first call
}

// Call is a call as it arrived.
type Call struct {
	Method    string // "Containers/Create"
	Namespace string
	Lease     string
}

// Daemon is the fake. Its fields may be changed while no call is in flight.
type Daemon struct {
	Address string
	Rootfs  string // directory that every snapshot is

	// mu guards everything below.
	mu         sync.Mutex
	fates      map[string]*Fate
	held       map[string]func()
	delays     map[string]time.Duration
	calls      []Call
	images     map[string]*images.Image
	blobs      map[string][]byte
	snapshots  map[string]string // key to lease
	parents    map[string]bool
	containers map[string]*containers.Container
	leases     map[string]bool
	tasks      map[string]*process // by CONTAINER or CONTAINER/EXEC

	// Behave plays the part of a process; see tasks.go.
	Behave func(*Process) uint32

	server    *grpc.Server
	processes sync.WaitGroup
}

// New starts a daemon that serves until the test ends.
func New(t testing.TB) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-fake-") // short, as a socket's path has to be
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		Address:    filepath.Join(dir, "berth.sock"),
		Rootfs:     filepath.Join(dir, "rootfs"),
		fates:      map[string]*Fate{},
		held:       map[string]func(){},
		delays:     map[string]time.Duration{},
		images:     map[string]*images.Image{},
		blobs:      map[string][]byte{},
		snapshots:  map[string]string{},
		parents:    map[string]bool{},
		containers: map[string]*containers.Container{},
		leases:     map[string]bool{},
		tasks:      map[string]*process{},
		Behave:     func(*Process) uint32 { return 0 },
	}
	if err := os.MkdirAll(filepath.Join(d.Rootfs, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", d.Address)
	if err != nil {
		t.Fatal(err)
	}
	d.server = grpc.NewServer(grpc.UnaryInterceptor(d.unary), grpc.StreamInterceptor(d.stream))
	d.register()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := d.server.Serve(listener); err != nil {
			t.Errorf("fake daemon: %v", err)
		}
	}()
	t.Cleanup(func() {
		d.server.Stop()
		<-served
		d.endAll()
		d.processes.Wait()
		os.RemoveAll(dir)
	})
	return d
}

func (d *Daemon) register() {
	containersgrpc.RegisterContainersServer(d.server, containersService{d: d})
	contentgrpc.RegisterContentServer(d.server, contentService{d: d})
	imagesgrpc.RegisterImagesServer(d.server, imagesService{d: d})
	introspectiongrpc.RegisterIntrospectionServer(d.server, introspectionService{})
	leasesgrpc.RegisterLeasesServer(d.server, leasesService{d: d})
	logsgrpc.RegisterLogsServer(d.server, logsService{})
	namespacesgrpc.RegisterNamespacesServer(d.server, namespacesService{})
	snapshotsgrpc.RegisterSnapshotsServer(d.server, snapshotsService{d: d})
	tasksgrpc.RegisterTasksServer(d.server, tasksService{d: d})
}

// Fail makes a method fail, as "Containers/Create", from now on.
func (d *Daemon) Fail(method string, fate Fate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fates[method] = &fate
}

// Calls lists the calls of a method so far; of all if it is empty.
func (d *Daemon) Calls(method string) []Call {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.calls), func(c Call) bool { return method != "" && c.Method != method })
}

// Left lists what there is of containers, tasks, snapshots and leases.
func (d *Daemon) Left() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var left []string
	for id := range d.containers {
		left = append(left, "container "+id)
	}
	for id := range d.tasks {
		left = append(left, "task "+id)
	}
	for key := range d.snapshots {
		left = append(left, "snapshot "+key)
	}
	for id := range d.leases {
		left = append(left, "lease "+id)
	}
	slices.Sort(left)
	return left
}

// Container is a row as it is stored, nil if there is none.
func (d *Daemon) Container(id string) *containers.Container {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.containers[id]
}

// short is a method without the name of its package.
func short(full string) string { return full[strings.LastIndexByte(full, '.')+1:] }

// enter notes a call and gives its fate.
func (d *Daemon) enter(ctx context.Context, method string) *Fate {
	header, _ := metadata.FromIncomingContext(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, Call{
		Method:    method,
		Namespace: strings.Join(header.Get("containerd-namespace"), ","),
		Lease:     strings.Join(header.Get("containerd-lease"), ","),
	})
	fate := d.fates[method]
	if fate != nil && fate.Once {
		delete(d.fates, method)
	}
	return fate
}

func (d *Daemon) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	method := short(info.FullMethod)
	fate := d.enter(ctx, method)
	if err := d.hold(ctx, method); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if fate != nil && !fate.After {
		return nil, errgrpc.ToGRPC(fate.Err)
	}
	answer, err := handle(ctx, request)
	d.delay(method)
	if err == nil && fate != nil {
		err = fate.Err
	}
	return answer, errgrpc.ToGRPC(err)
}

func (d *Daemon) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	fate := d.enter(stream.Context(), short(info.FullMethod))
	if fate != nil && !fate.After {
		return errgrpc.ToGRPC(fate.Err)
	}
	err := handle(server, stream)
	if err == nil && fate != nil {
		err = fate.Err
	}
	return errgrpc.ToGRPC(err)
}

// leaseOf is the lease of a call.
func leaseOf(ctx context.Context) string {
	header, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(header.Get("containerd-lease"), ",")
}

// Hold makes the next call of a method wait until its caller gives up, after
// reached was called.
func (d *Daemon) Hold(method string, reached func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[method] = reached
}

// Delay makes answers of a method come late.
func (d *Daemon) Delay(method string, by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delays[method] = by
}

// delay waits if answers of the method are to come late.
func (d *Daemon) delay(method string) {
	d.mu.Lock()
	by := d.delays[method]
	d.mu.Unlock()
	time.Sleep(by)
}

// hold waits if the call is to be held.
func (d *Daemon) hold(ctx context.Context, method string) error {
	d.mu.Lock()
	reached := d.held[method]
	delete(d.held, method)
	d.mu.Unlock()
	if reached == nil {
		return nil
	}
	reached()
	<-ctx.Done()
	return ctx.Err()
}
