package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	bimagesgrpc "github.com/berthd/berth/api/berth/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/berth/maintenance/v1/maintenancegrpc"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/diff/v1/diffgrpc"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/mounts/v1/mountsgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	"github.com/berthd/berth/api/services/sandbox/v1/sandboxgrpc"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/services/streaming/v1/streaminggrpc"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/services/transfer/v1/transfergrpc"
	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/internal/obs"
	build "github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
	"github.com/berthd/berth/runtime"
)

// MaxMessage is how large a gRPC message may be, either way, in bytes.
const MaxMessage = 16 << 20

// Sizes of the transport, in bytes.
const (
	streamWindow = 2 << 20 // what a client may send on a stream before it is read
	connWindow   = 4 << 20 // and on a connection
	socketBuffer = 64 << 10
	callWorkers  = 4 // goroutines that stay for calls; what they are too few for gets its own
)

// forwardMethod is the one method of the ttrpc server.
const forwardMethod = "/containerd.services.events.ttrpc.v1.Events/Forward"

// Config is what the services stand on. Metrics and Failing may be nil; all else
// is required.
type Config struct {
	DB      *metadata.DB
	Tasks   *runtime.Tasks
	Journal *events.Journal
	Images  *images.Store
	Remotes *remotes.Client
	Logs    *logs.Store
	// Collect runs a garbage collection that starts after the call, and waits
	// for it.
	Collect func(ctx context.Context) (metadata.Report, error)
	// Failing tells what is wrong beside tasks: containers that can't be
	// restarted. It may be nil.
	Failing func() []runtime.Finding
	// RuntimeInfo tells what an OCI runtime can do.
	RuntimeInfo func(ctx context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error)
	Layout      Layout
	UUID        string // of this daemon, for ever
	Build       build.Info
	Log         *slog.Logger
	Metrics     *obs.Metrics
	Memory      Memory        // nil: nobody looks after it
	Drain       time.Duration // that calls in flight have to end once the daemon stops
}

// Memory is told of calls, so that what they took can be given back.
type Memory interface {
	Large() (ended func()) // one that may take much begins
	Small()                // any other ends
}

// Server is the whole API, not yet listening.
type Server struct {
	grpc   *grpc.Server
	ttrpc  *ttrpc.Server
	health *health.Server
	log    *slog.Logger
	drain  time.Duration
	stop   context.CancelFunc // ends the calls that have no end of their own
}

// New registers every service.
func New(c Config) (*Server, error) {
	var pidns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &pidns); err != nil {
		return nil, fmt.Errorf("pid namespace: %w", err)
	}
	running, stop := context.WithCancel(context.Background())
	e := &edge{memory: c.Memory, log: c.Log, metrics: c.Metrics, running: running}
	s := &Server{log: c.Log, drain: c.Drain, stop: stop, health: health.NewServer()}
	s.grpc = grpc.NewServer(
		grpc.UnaryInterceptor(e.unary), grpc.StreamInterceptor(e.stream), grpc.UnknownServiceHandler(unknown),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage), grpc.ForceServerCodecV2(newBulkCodec()),
		// So that a message of 1 MiB, as clients send content, is not waited for in parts.
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.ReadBufferSize(socketBuffer), grpc.WriteBufferSize(socketBuffer),
		grpc.ConnectionTimeout(20*time.Second), grpc.WaitForHandlers(true),
		// Goroutines that stay have stacks of the size that calls need; a new one's grows with each.
		grpc.NumStreamWorkers(callWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	s.register(c, uint64(pidns.Ino), running)
	e.known = methods(s.grpc)
	e.known[forwardMethod] = true

	// SO_PEERCRED is checked before the first byte is read: only the daemon's
	// own shims may tell what happened to tasks.
	var err error
	s.ttrpc, err = ttrpc.NewServer(
		ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireUidGid(os.Geteuid(), os.Getegid())),
		ttrpc.WithUnaryServerInterceptor(e.ttrpc))
	if err != nil {
		stop()
		return nil, fmt.Errorf("ttrpc server: %w", err)
	}
	forwardttrpc.RegisterEventsService(s.ttrpc, &forwardService{forward: c.Tasks.Forwarded})
	return s, nil
}

// register makes the services. Streams that nobody has taken end with running.
func (s *Server) register(c Config, pidns uint64, running context.Context) {
	g, open := s.grpc, newStreams(c.DB, running)
	grpc_health_v1.RegisterHealthServer(g, s.health)
	versiongrpc.RegisterVersionServer(g, &versionService{build: c.Build})
	introspectiongrpc.RegisterIntrospectionServer(g, &introspectionService{
		uuid: c.UUID, pidns: pidns, plugins: plugins(c.Layout), runtime: c.RuntimeInfo,
	})
	namespacesgrpc.RegisterNamespacesServer(g, &namespaceService{db: c.DB})
	containersgrpc.RegisterContainersServer(g, &containerService{db: c.DB, deleted: c.removeLog, expect: c.Tasks.Expect})
	sandboxgrpc.RegisterStoreServer(g, &sandboxStore{db: c.DB})
	sandboxgrpc.RegisterControllerServer(g, &sandboxController{tasks: c.Tasks})
	contentgrpc.RegisterContentServer(g, &contentService{db: c.DB})
	imagesgrpc.RegisterImagesServer(g, &imageService{db: c.DB, collect: c.Collect})
	snapshotsgrpc.RegisterSnapshotsServer(g, &snapshotService{db: c.DB})
	streaminggrpc.RegisterStreamingServer(g, open)
	transfergrpc.RegisterTransferServer(g, &transferService{db: c.DB, images: c.Images, streams: open, remotes: c.Remotes, log: c.Log})
	mountsgrpc.RegisterMountsServer(g, &mountService{db: c.DB})
	diffgrpc.RegisterDiffServer(g, &diffService{db: c.DB, layers: c.Images.Layers})
	leasesgrpc.RegisterLeasesServer(g, &leaseService{db: c.DB, collect: c.Collect})
	eventsgrpc.RegisterEventsServer(g, &eventService{journal: c.Journal, forward: c.Tasks.Forwarded, began: time.Now()})
	tasksgrpc.RegisterTasksServer(g, &taskService{db: c.DB, tasks: c.Tasks})
	bimagesgrpc.RegisterImagesServer(g, &importService{store: c.Images})
	maintenancegrpc.RegisterMaintenanceServer(g, &maintenanceService{
		db: c.DB, images: c.Images, fetch: NewFetcher(c.Remotes), logs: c.Logs, tasks: c.Tasks,
		collect: c.Collect, deleted: c.removeLog, failing: c.Failing,
	})
	logsgrpc.RegisterLogsServer(g, &logService{store: c.Logs, tasks: c.Tasks})
}

// removeLog removes the log of a container whose record is gone. That it could
// not is no error of the delete; the next start tries again.
func (c Config) removeLog(ctx context.Context, namespace, id string) {
	if err := c.Logs.Remove(ctx, namespace, id, Recorded(c.DB)); err != nil {
		c.Log.Warn("log of a deleted container stays", "namespace", namespace, "container", id, "error", err)
	}
}

// methods lists the full names of what a server serves.
func methods(g *grpc.Server) map[string]bool {
	known := map[string]bool{}
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			known["/"+service+"/"+m.Name] = true
		}
	}
	return known
}

// Serve answers calls from both listeners, which it closes, until ctx ends.
// Then it lets calls in flight end, within the bound that Config.Drain sets,
// and cancels those that do not. An error means that it could not serve, or
// that calls are at work even so: what they stand on must not be closed then.
func (s *Server) Serve(ctx context.Context, forGRPC, forTTRPC net.Listener) error {
	defer s.stop()
	failed := make(chan error, 2)
	go func() { failed <- s.grpc.Serve(forGRPC) }()
	go func() { failed <- s.ttrpc.Serve(withTTRPCLog(context.WithoutCancel(ctx), s.log), forTTRPC) }()
	left := 2
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		left--
		err = fmt.Errorf("serve: %w", err)
	}
	if stuck := s.end(); stuck != nil {
		return errors.Join(err, stuck)
	}
	for range left {
		<-failed // told to end; why it did says nothing new
	}
	return err
}

// end drains both servers: first the calls of clients, as they may still wait
// for events from shims.
func (s *Server) end() error {
	s.health.Shutdown()
	s.stop()
	err := s.endGRPC()
	s.endTTRPC()
	return err
}

// endGRPC waits for the calls of clients, then cancels those that are left, and
// tells if some do not end even so.
func (s *Server) endGRPC() error {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.grpc.GracefulStop()
	}()
	if s.within(drained) {
		return nil
	}
	s.log.Warn("calls in flight did not end in time and are cut off", "bound", s.drain)
	go s.grpc.Stop()
	if s.within(drained) {
		return nil
	}
	return fmt.Errorf("calls that were cut off are still at work after %s", s.drain)
}

// endTTRPC lets events that are on their way in arrive.
func (s *Server) endTTRPC() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.ttrpc.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.ttrpc.Close()
	}
	if err != nil {
		s.log.Warn("ttrpc server", "error", err)
	}
}

// within tells whether done is closed before the bound for draining has passed.
func (s *Server) within(done <-chan struct{}) bool {
	timer := time.NewTimer(s.drain)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
