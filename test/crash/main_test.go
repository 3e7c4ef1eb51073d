// Package crash drives random operations against the real daemon, real shims
// and the real OCI runtime while both are killed at random instants and at
// named fault points, and compares what it sees with a small model: no exit
// status is lost or made up, no container is lost or comes back, every call can
// be repeated, and nothing is left in the end.
//
// BERTH_CRASH_DURATION (20s) bounds the run, BERTH_CRASH_SEED makes the choices
// of an earlier one, which it printed, and BERTH_CRASH_SLOTS (4) says how many
// containers there are at once.
package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/client"
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
	if programs, err = harness.BuildFaults(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// world is what all of a run share.
type world struct {
	t      *testing.T
	daemon *harness.Daemon
	client *client.Client
	mark   string // begins the id of every container of this run
	copied string // a shim that the daemon takes for another project's
	until  time.Time

	// mu guards what follows.
	mu     sync.Mutex
	starts int             // of the daemon
	armed  bool            // the daemon, and shims that it starts, have an armed fault point
	last   int             // the last start with an armed point
	doubt  map[string]bool // containers whose shim was killed, or may kill itself
	exited map[string]bool // containers that were deleted: whether their exit was seen
	counts map[string]int  // what was done, for the report
}

// count notes that something was done.
func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// doubtful tells whether a container's shim may be dead.
func (w *world) doubtful(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.doubt[id]
}

// born notes that the shim of a container is about to be started.
func (w *world) born(id string) (starts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.armed {
		w.doubt[id] = true
	}
	return w.starts
}

// made notes that the shim of a container was started, by a daemon of the
// start that born gave or of a later one.
func (w *world) made(id string, starts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last >= starts {
		w.doubt[id] = true
	}
}

// restarted tells how often the daemon has been started.
func (w *world) restarted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts
}

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func TestCrash(t *testing.T) {
	duration, err := time.ParseDuration(setting("BERTH_CRASH_DURATION", "20s"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(setting("BERTH_CRASH_SEED", fmt.Sprint(time.Now().UnixNano())), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	slots, err := strconv.Atoi(setting("BERTH_CRASH_SLOTS", "4"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("BERTH_CRASH_SEED=%d makes these choices again", seed)

	w := newWorld(t, duration)
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for n := range slots {
		s := &slot{world: w, number: n, rand: rand.New(rand.NewPCG(seed, uint64(n)))}
		all.Go(s.run)
	}
	chaosDone := make(chan struct{})
	go func() {
		defer close(chaosDone)
		w.chaos(ctx, rand.New(rand.NewPCG(seed, 1<<32)))
	}()
	all.Wait()
	stop()
	<-chaosDone
	w.end()
	t.Logf("done: %v", w.counts)
}

// newWorld starts a daemon with the test image in it.
func newWorld(t *testing.T, duration time.Duration) *world {
	d, err := harness.New(programs)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, daemon: d, starts: 1,
		mark:  "crash-" + strings.TrimPrefix(d.Dir, "/tmp/berth-t-") + "-",
		doubt: map[string]bool{}, counts: map[string]int{}, exited: map[string]bool{},
	}
	w.copied = filepath.Join(d.Dir, "containerd-shim-copy-v2")
	shim, err := os.ReadFile(programs.Path("berth-shim"))
	if err == nil {
		err = os.WriteFile(w.copied, shim, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.client = connect(t, d)
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	archive, err := os.Open(programs.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	if _, err := w.client.Import(ctx, archive, &images.ImportOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	w.until = time.Now().Add(duration)
	return w
}

// logTail is how much of the daemon's log a failure shows.
const logTail = 24 << 10

// connect starts a daemon, which is closed in the end, and dials it. A test that
// fails shows the end of the daemon's log, and writes all of it to the file that
// BERTH_CRASH_LOG names.
func connect(t *testing.T, d *harness.Daemon) *client.Client {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			keepLog(t, d.Log())
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	d.Args = []string{"--log-level", "info"}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	c, err := client.Dial(ctx, d.Address, client.Options{Namespace: "crash"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func keepLog(t *testing.T, log string) {
	if path := os.Getenv("BERTH_CRASH_LOG"); path != "" {
		if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Logf("the daemon's log, its end:\n%s", log[max(0, len(log)-logTail):])
}

// end looks for what is wrong once all containers are gone.
func (w *world) end() {
	t := w.t
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := w.daemon.Check(ctx); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := w.daemon.Stop(); err != nil {
		t.Error(err)
	}
	if err := w.daemon.Left(); err != nil {
		t.Errorf("left behind: %v", err)
	}
	groups, err := harness.Cgroups(w.mark)
	if err != nil || len(groups) > 0 {
		t.Errorf("control groups left: %v, %v", groups, err)
	}
	w.checkEvents()
}
