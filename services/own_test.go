package services

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	logsapi "github.com/berthd/berth/api/berth/logs/v1"
	"github.com/berthd/berth/api/berth/logs/v1/logsgrpc"
	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/api/berth/maintenance/v1/maintenancegrpc"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/services/namespaces/v1/namespacesgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/services/tasks/v1/tasksgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/protobuf"
)

func TestLogLivesAsLongAsItsContainer(t *testing.T) {
	d := start(t)
	c, l := containersgrpc.NewContainersClient(d), logsgrpc.NewLogsClient(d)
	ctx := in(t, "ns")
	if _, err := c.Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "c1", Runtime: &containers.Container_Runtime{Name: "r"}, Spec: spec(),
	}}); err != nil {
		t.Fatal(err)
	}
	p, err := l.Prepare(ctx, &logsapi.PrepareRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.GetUri())
	if err != nil || u.Scheme != "log" || u.Path != filepath.Join(d.root, "logs", "ns", "c1", "output.log") {
		t.Fatalf("uri %q, error %v", p.GetUri(), err)
	}
	if err := os.WriteFile(u.Path, []byte("one\ntwo\n"), 0); err != nil {
		t.Fatal(err)
	}
	for _, follow := range []bool{false, true} { // it has no task, so there is nothing to wait for
		s, err := l.Read(ctx, &logsapi.ReadRequest{ContainerId: "c1", Tail: 1, Follow: follow})
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := collectAll(s.Recv, func(r *logsapi.ReadResponse) { got.Write(r.GetData()) }); err != nil || got.String() != "two\n" {
			t.Errorf("follow %v: %q, error %v", follow, got.String(), err)
		}
	}
	if _, err := c.Delete(ctx, &containers.DeleteContainerRequest{Id: "c1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(u.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log outlives its container: %v", err)
	}
	s, err := l.Read(ctx, &logsapi.ReadRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.NotFound {
		t.Errorf("no log: %v", err)
	}
	if _, err := l.Prepare(ctx, &logsapi.PrepareRequest{ContainerId: "../x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("bad id: %v", err)
	}
	if _, err := l.Prepare(t.Context(), &logsapi.PrepareRequest{ContainerId: "c1"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("no namespace: %v", err)
	}
}

// TestLogEntries reads a log as entries, goes on behind a part of it, and finds no
// shim for a container that does not run.
func TestLogEntries(t *testing.T) {
	d := start(t)
	l := logsgrpc.NewLogsClient(d)
	ctx := in(t, "ns")
	p, err := l.Prepare(ctx, &logsapi.PrepareRequest{ContainerId: "c1", Input: true, MaxSize: 1 << 20, MaxFiles: 3})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(p.GetUri())
	if err != nil || u.RawQuery != "format=cri&input=true&max-files=3&max-size=1048576" {
		t.Fatalf("uri %q, error %v", p.GetUri(), err)
	}
	write := func(text string) {
		f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func(r *logsapi.ReadRequest) (entries []*logsapi.Entry, position string) {
		r.ContainerId, r.Entries = "c1", true
		s, err := l.Read(ctx, r)
		if err == nil {
			err = collectAll(s.Recv, func(r *logsapi.ReadResponse) {
				if entries, position = append(entries, r.GetEntries()...), r.GetPosition(); len(r.GetData()) > 0 || r.GetLost() {
					t.Errorf("data beside entries, or lost: %v", r)
				}
			})
		}
		if err != nil {
			t.Fatal(err)
		}
		return entries, position
	}
	write("2026-01-02T03:04:05.000000006Z stderr P hal\n2026-01-02T03:04:06Z stderr F f\n")
	entries, position := read(&logsapi.ReadRequest{Tail: -1})
	if len(entries) != 2 || string(entries[0].GetData()) != "hal" || string(entries[1].GetData()) != "f\n" || !entries[0].GetStderr() || entries[0].GetTime() != 1767323045000000006 {
		t.Errorf("%v", entries)
	}
	write("2026-01-02T03:04:07Z stdout F more\n")
	if entries, _ := read(&logsapi.ReadRequest{Position: position, Follow: true}); len(entries) != 1 || string(entries[0].GetData()) != "more\n" || entries[0].GetStderr() {
		t.Errorf("%v", entries)
	}
	if entries, _ := read(&logsapi.ReadRequest{Tail: -1, Since: entries[1].GetTime(), Until: entries[1].GetTime()}); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
	s, err := l.Read(ctx, &logsapi.ReadRequest{ContainerId: "c1", Position: "nonsense"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a position that was never given: %v", err)
	}
	if _, err := l.Locate(ctx, &logsapi.LocateRequest{ContainerId: "c1"}); status.Code(err) != codes.NotFound {
		t.Errorf("the shim of what does not run: %v", err)
	}
}

// Create and delete of a lease with sync is how clients say "collect now".
func TestSyncCollects(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "ns")
	dgst := put(ctx, t, d, []byte("garbage to be")).String()
	l := leasesgrpc.NewLeasesClient(d)
	list, err := l.List(ctx, &leases.ListRequest{})
	if err != nil || len(list.GetLeases()) != 1 {
		t.Fatalf("leases %v, error %v", list, err)
	}
	if _, err := l.Delete(ctx, &leases.DeleteRequest{Id: list.GetLeases()[0].GetId(), Sync: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := contentgrpc.NewContentClient(d).Info(in(t, "ns"), &content.InfoRequest{Digest: dgst}); status.Code(err) != codes.NotFound {
		t.Errorf("after a sync delete: %v", err)
	}
	if matches, err := filepath.Glob(filepath.Join(d.root, "content", "blobs", "*", "*")); err != nil || len(matches) > 0 {
		t.Errorf("left on disk: %v, error %v", matches, err)
	}
}

func TestMaintenance(t *testing.T) {
	d := start(t)
	m := maintenancegrpc.NewMaintenanceClient(d)
	if r, err := m.Collect(t.Context(), &maintenance.CollectRequest{}); err != nil || r.GetDurationNs() <= 0 {
		t.Errorf("collect: %v, error %v", r, err)
	}
	if r, err := m.Tasks(t.Context(), &maintenance.TasksRequest{}); err != nil || len(r.GetTasks()) != 0 {
		t.Errorf("tasks: %v, error %v", r, err)
	}
	ctx := lease(t, d, "ns")
	dgst := put(ctx, t, d, []byte("to be lost"))
	check := func(read bool) (problems []*maintenance.Problem) {
		t.Helper()
		s, err := m.Check(t.Context(), &maintenance.CheckRequest{ReadContent: read})
		if err != nil {
			t.Fatal(err)
		}
		if err := collectAll(s.Recv, func(p *maintenance.Problem) { problems = append(problems, p) }); err != nil {
			t.Fatal(err)
		}
		return problems
	}
	if p := check(true); len(p) > 0 {
		t.Errorf("all is well, but: %v", p)
	}
	if err := os.Remove(filepath.Join(d.root, "content", "blobs", "sha256", dgst.Encoded())); err != nil {
		t.Fatal(err)
	}
	if p := check(false); len(p) != 1 || p[0].GetKind() != "blob" || p[0].GetNamespace() != "ns" || p[0].GetObject() != dgst.String() {
		t.Errorf("a lost blob: %v", p)
	}
}

// A task is out of reach without its container's record, and without its
// namespace.
func TestTasksNeedNamespaceAndRecord(t *testing.T) {
	d := start(t)
	c := tasksgrpc.NewTasksClient(d)
	calls := map[string]func(context.Context) error{
		"create": func(ctx context.Context) error {
			return lastErr(c.Create(ctx, &tasks.CreateTaskRequest{ContainerId: "c1"}))
		},
		"start": func(ctx context.Context) error { return lastErr(c.Start(ctx, &tasks.StartRequest{ContainerId: "c1"})) },
		"delete": func(ctx context.Context) error {
			return lastErr(c.Delete(ctx, &tasks.DeleteTaskRequest{ContainerId: "c1"}))
		},
		"delete process": func(ctx context.Context) error {
			return lastErr(c.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerId: "c1", ExecId: "e1"}))
		},
		"get":  func(ctx context.Context) error { return lastErr(c.Get(ctx, &tasks.GetRequest{ContainerId: "c1"})) },
		"kill": func(ctx context.Context) error { return lastErr(c.Kill(ctx, &tasks.KillRequest{ContainerId: "c1"})) },
		"exec": func(ctx context.Context) error {
			return lastErr(c.Exec(ctx, &tasks.ExecProcessRequest{ContainerId: "c1", ExecId: "e1"}))
		},
		"resize": func(ctx context.Context) error {
			return lastErr(c.ResizePty(ctx, &tasks.ResizePtyRequest{ContainerId: "c1"}))
		},
		"closeio": func(ctx context.Context) error {
			return lastErr(c.CloseIO(ctx, &tasks.CloseIORequest{ContainerId: "c1"}))
		},
		"pause": func(ctx context.Context) error {
			return lastErr(c.Pause(ctx, &tasks.PauseTaskRequest{ContainerId: "c1"}))
		},
		"resume": func(ctx context.Context) error {
			return lastErr(c.Resume(ctx, &tasks.ResumeTaskRequest{ContainerId: "c1"}))
		},
		"update": func(ctx context.Context) error {
			return lastErr(c.Update(ctx, &tasks.UpdateTaskRequest{ContainerId: "c1"}))
		},
		"pids": func(ctx context.Context) error {
			return lastErr(c.ListPids(ctx, &tasks.ListPidsRequest{ContainerId: "c1"}))
		},
		"wait": func(ctx context.Context) error { return lastErr(c.Wait(ctx, &tasks.WaitRequest{ContainerId: "c1"})) },
		"checkpoint": func(ctx context.Context) error {
			return lastErr(c.Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerId: "c1"}))
		},
	}
	for name, call := range calls {
		if err := call(t.Context()); status.Code(err) != codes.FailedPrecondition || !strings.HasSuffix(status.Convert(err).Message(), "namespace is required: failed precondition") {
			t.Errorf("%s without a namespace: %v", name, err)
		}
		if err := call(in(t, "ns")); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "c1") {
			t.Errorf("%s without a record: %v", name, err)
		}
	}
	if _, err := containersgrpc.NewContainersClient(d).Create(in(t, "ns"), &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "c1", Runtime: &containers.Container_Runtime{Name: "io.containerd.runc.v2"}, Spec: spec(),
	}}); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		if name == "create" {
			continue // the harness has no shim
		}
		if err := call(in(t, "ns")); status.Code(err) != codes.NotFound {
			t.Errorf("%s without a task: %v", name, err)
		}
	}
	if l, err := c.List(in(t, "ns"), &tasks.ListTasksRequest{}); err != nil || len(l.GetTasks()) != 0 {
		t.Errorf("list: %v, error %v", l, err)
	}
	if err := lastErr(c.List(t.Context(), &tasks.ListTasksRequest{})); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("list without a namespace: %v", err)
	}
	if err := lastErr(c.Metrics(t.Context(), &tasks.MetricsRequest{})); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("metrics without a namespace: %v", err)
	}
}

func TestSnapshotsOverTheWire(t *testing.T) {
	d := start(t)
	c := snapshotsgrpc.NewSnapshotsClient(d)
	ctx := lease(t, d, "ns")
	for _, name := range []string{"", "nope", "overlayfs"} {
		if err := lastErr(c.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: name, Key: "k"})); status.Code(err) != codes.InvalidArgument {
			t.Errorf("snapshotter %q: %v", name, err)
		}
	}
	p, err := c.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "k", Labels: map[string]string{"a": "b"}})
	if err != nil || len(p.GetMounts()) != 1 || p.GetMounts()[0].GetType() != "bind" {
		t.Fatalf("mounts %v, error %v", p.GetMounts(), err)
	}
	if err := os.WriteFile(filepath.Join(p.GetMounts()[0].GetSource(), "f"), make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: "native", Key: "k"}); err != nil || u.GetSize() < 10000 || u.GetInodes() < 2 {
		t.Errorf("usage %v, error %v", u, err)
	}
	if i, err := c.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: "native", Key: "k"}); err != nil ||
		i.GetInfo().GetKind() != snapshotsapi.Kind_ACTIVE || i.GetInfo().GetLabels()["a"] != "b" || i.GetInfo().GetCreatedAt() == nil {
		t.Errorf("stat %v, error %v", i, err)
	}
	if err := lastErr(c.Cleanup(ctx, &snapshotsapi.CleanupRequest{Snapshotter: "native"})); status.Code(err) != codes.Unimplemented {
		t.Errorf("cleanup: %v", err)
	}
	for i := range 120 {
		if _, err := c.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: "native", Key: "k" + strings.Repeat("x", i)}); err != nil && i > 0 {
			t.Fatal(err)
		}
	}
	s, err := c.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "native"})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	if err := collectAll(s.Recv, func(r *snapshotsapi.ListSnapshotsResponse) { sizes = append(sizes, len(r.GetInfo())) }); err != nil || len(sizes) != 2 || sizes[0] != 100 || sizes[1] != 20 {
		t.Errorf("blocks of %v, error %v", sizes, err)
	}
}

// A namespace needs no creation, and asking for one that is not there is no
// error.
func TestNamespaces(t *testing.T) {
	d := start(t)
	c := namespacesgrpc.NewNamespacesClient(d)
	if r, err := c.Get(t.Context(), &namespaces.GetNamespaceRequest{Name: "nobody"}); err != nil || r.GetNamespace().GetName() != "nobody" {
		t.Errorf("get: %v, error %v", r, err)
	}
	lease(t, d, "made-by-use")
	if r, err := c.List(t.Context(), &namespaces.ListNamespacesRequest{}); err != nil || len(r.GetNamespaces()) != 1 || r.GetNamespaces()[0].GetName() != "made-by-use" {
		t.Errorf("list: %v, error %v", r, err)
	}
	if err := lastErr(c.Update(t.Context(), &namespaces.UpdateNamespaceRequest{Namespace: &namespaces.Namespace{Name: "n"}, UpdateMask: mask("labels")})); status.Code(err) != codes.InvalidArgument {
		t.Errorf("mask labels: %v", err)
	}
}

// Serve ends in time: waits at once, calls in flight within the bound, and the
// sockets are gone.
func TestServerDrains(t *testing.T) {
	d := start(t, func(c *Config) { c.Drain = 100 * time.Millisecond })
	waiting := subscribe(t.Context(), t, d)
	held, err := contentgrpc.NewContentClient(d).Write(in(t, "ns")) // a client that never ends its call
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Send(&content.WriteContentRequest{Ref: "r", Action: content.WriteAction_WRITE, Data: []byte("kept")}); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Recv(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.stop() }()
	if _, err := waiting.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "berthd is stopping") {
		t.Errorf("a wait ended with %v", err)
	}
	if _, err := held.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a call that was cut off ended with %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if !strings.Contains(d.log.String(), "did not end in time") {
		t.Error("the log does not tell that a call was cut off")
	}
	for _, path := range []string{d.socket, d.socket + ".ttrpc"} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

// A call that does not even end when it is cancelled holds nothing up.
func TestServerLeavesAStuckCall(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	d := start(t, func(c *Config) {
		c.Drain = 50 * time.Millisecond
		c.RuntimeInfo = func(context.Context, *types.RuntimeRequest) (*types.RuntimeInfo, error) {
			close(entered)
			<-release
			return &types.RuntimeInfo{}, nil
		}
	})
	options, err := protobuf.MarshalAny(&types.RuntimeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := introspectiongrpc.NewIntrospectionClient(d).PluginInfo(context.Background(), &introspection.PluginInfoRequest{
			Type: "io.containerd.runtime.v2", Id: "task", Options: options,
		})
		answered <- err
	}()
	<-entered
	if err := d.stop(); err == nil || !strings.Contains(err.Error(), "still at work") {
		t.Errorf("serve: %v", err)
	}
	d.stop = func() error { return nil } // what it said is as it should be
	close(release)
	if err := <-answered; status.Code(err) != codes.Unavailable {
		t.Errorf("the call: %v", err)
	}
}
