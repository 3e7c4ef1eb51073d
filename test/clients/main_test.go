// Package clients drives berthd with clients that are not ours, unmodified:
// containerd's Go client, Debian's ctr and a current one.
package clients

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"

	"github.com/berthd/berth/test/harness"
)

// programs are built once, by TestMain.
var programs *harness.Programs

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers, so they have to run as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs, err = harness.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// namespace is the one that all tests here use.
const namespace = "clients"

// start runs a daemon for one test. When the test ends, the store has to be
// sound and nothing may be left.
func start(t *testing.T) *harness.Daemon {
	t.Helper()
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.PID() != 0 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := d.Check(ctx); err != nil {
				t.Errorf("store is not sound: %v", err)
			}
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", tail(d.Log(), 60))
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, err := harness.Cgroups(mark(t)); err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %v, %v", left, err)
		}
	})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// mark is part of the id of every container of a test, so that its cgroups can
// be told from others'.
func mark(t *testing.T) string {
	return fmt.Sprintf("%s-%d", strings.NewReplacer("/", "-", "_", "-").Replace(strings.ToLower(t.Name())), os.Getpid())
}

// connect opens containerd's Go client on the daemon. Its calls wait for a daemon that
// is being restarted, which gRPC else tries again only after a second.
func connect(t *testing.T, d *harness.Daemon) (*containerd.Client, context.Context) {
	t.Helper()
	waits := grpc.WithDefaultCallOptions(grpc.WaitForReady(true))
	client, err := containerd.New(d.Address, containerd.WithDefaultNamespace(namespace), containerd.WithExtraDialOpts([]grpc.DialOption{waits}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), 5*time.Minute)
	t.Cleanup(cancel)
	return client, ctx
}

func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
