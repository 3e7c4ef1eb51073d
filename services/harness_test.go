package services

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/gc"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/internal/socket"
	build "github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/runtime"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/native"
)

// daemon is the whole API over real stores in a directory of the test, served
// on real sockets.
type daemon struct {
	*grpc.ClientConn
	db      *metadata.DB
	journal *events.Journal
	logs    *logs.Store
	log     *syncBuffer
	root    string
	socket  string
	stop    func() error // ends Serve and gives its error; may be called twice
}

// start serves until the test ends. change may set what the test wants
// different.
func start(t testing.TB, change ...func(*Config)) *daemon {
	t.Helper()
	leak.Check(t)
	root := t.TempDir()
	state, err := os.MkdirTemp("", t.Name()) // shorter than TempDir, for socket paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(state); err != nil {
			t.Error(err)
		}
	})
	d := &daemon{root: root, socket: filepath.Join(state, "s.sock"), log: &syncBuffer{}}
	log, _ := obs.Logger(d.log, slog.LevelDebug, "text")
	closed := func(name string, close func() error) {
		t.Cleanup(func() {
			if err := close(); err != nil {
				t.Errorf("close %s: %v", name, err)
			}
		})
	}

	if d.journal, err = events.Open(events.Options{Dir: filepath.Join(state, "events"), MaxBytes: 8 << 20, Log: log}); err != nil {
		t.Fatal(err)
	}
	closed("journal", d.journal.Close)
	blobs, err := content.Open(filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	closed("content", blobs.Close)
	driver, err := native.Open(filepath.Join(root, "native"))
	if err != nil {
		t.Fatal(err)
	}
	closed("native", driver.Close)
	publish := func(ctx context.Context, ns, topic string, event proto.Message) {
		if err := d.journal.Publish(ctx, ns, topic, event); err != nil {
			t.Errorf("publish %s: %v", topic, err)
		}
	}
	d.db, err = metadata.Open(t.Context(), metadata.Options{
		Path: filepath.Join(root, "meta.db"), Content: blobs,
		Drivers: map[string]snapshots.Driver{"native": driver}, Publish: publish, Log: log,
		Mounts: &activate.Place{Root: filepath.Join(state, "mounts")}, BootID: "boot",
	})
	if err != nil {
		t.Fatal(err)
	}
	closed("metadata", d.db.Close)
	tasks, err := runtime.Open(runtime.Config{
		Root: root, State: state, Address: d.socket, TTRPCAddress: d.socket + ".ttrpc",
		Shim: "/bin/false", Publish: publish, Forward: d.journal.Forward, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	closed("runtime", tasks.Close)
	if d.logs, err = logs.Open(filepath.Join(root, "logs")); err != nil {
		t.Fatal(err)
	}
	closed("logs", d.logs.Close)

	collector := &gc.Scheduler{Store: d.db, Log: log}
	c := Config{
		DB: d.db, Tasks: tasks, Journal: d.journal, Logs: d.logs,
		Images:  &images.Store{DB: d.db, Platform: platforms.DefaultSpec(), Snapshotter: "native", Log: log},
		Collect: collector.Collect,
		RuntimeInfo: func(_ context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error) {
			return &types.RuntimeInfo{Name: r.GetRuntimePath()}, nil
		},
		Layout: Layout{
			Root: root, Database: filepath.Join(root, "meta.db"), Content: filepath.Join(root, "content"),
			Policy: "shared", OptPath: OptPath(root),
			Snapshotters: []Snapshotter{
				{Name: "native", Root: filepath.Join(root, "native"), Capabilities: driver.Capabilities()},
				{Name: "overlayfs", Root: "/x", Err: errNoOverlay},
			},
		},
		UUID: "11111111-2222-4333-8444-555555555555", Build: build.Info{Version: "v0.1.0", Revision: "abc"},
		Log: log, Drain: 10 * time.Second,
	}
	for _, f := range change {
		f(&c)
	}
	d.serve(t, c, collector)
	d.ClientConn = dial(t, d.socket)
	return d
}

// errNoOverlay is why the harness has no overlay.
var errNoOverlay = fmt.Errorf("no overlay here: %w", errdefs.ErrFailedPrecondition)

func (d *daemon) serve(t testing.TB, c Config, collector *gc.Scheduler) {
	t.Helper()
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	o := socket.Options{Mode: 0o660, UID: os.Getuid(), GID: os.Getgid()}
	var listeners []net.Listener
	for _, path := range []string{d.socket, d.socket + ".ttrpc"} {
		l, err := socket.Listen(path, o)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	collecting, stopCollecting := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = collector.Run(collecting) })
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listeners[0], listeners[1]) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		err := <-served
		stopCollecting()
		wg.Wait()
		return err
	})
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// in is a context for calls in a namespace, with further headers.
func in(t testing.TB, namespace string, headers ...string) context.Context {
	t.Helper()
	return grpcmetadata.AppendToOutgoingContext(t.Context(), append([]string{namespaceHeader, namespace}, headers...)...)
}
