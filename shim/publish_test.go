package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/sys"
)

// TestPublishBy brings events by the daemon's program: in order, over a time in
// which it fails since the daemon is away, and past one that is refused.
func TestPublishBy(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	binary := script(t, fmt.Sprintf(`cd %s
[ -e up ] || exit 1
[ "$5" != /bad ] || { echo refused >&2; exit 1; }
cat >"event.$(wc -l <calls)"
echo "$@" >>calls
`, dir))
	if err := os.WriteFile(filepath.Join(dir, "calls"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(dir, "s")
	s, _ := loggerBench(t)
	p := newPublisher(t, "")
	p.Send = s.PublishBy(binary, address)
	p.Publish("/a", &apievents.TaskOOM{ContainerId: "c"})
	ended, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.Flush(ended); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("flush without a daemon: %v", err)
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(dir, "up"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Hurry()
	p.Publish("/bad", &apievents.TaskOOM{ContainerId: "c"})
	p.Publish("/b", &apievents.TaskOOM{ContainerId: "d"})
	flush(t, p)
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	want := fmt.Sprintf("--address %[1]s publish --topic /a --namespace n\n--address %[1]s publish --topic /b --namespace n\n", address)
	if err != nil || string(calls) != want {
		t.Errorf("called\n%swant\n%s%v", calls, want, err)
	}
	for i, id := range []string{"c", "d"} {
		data, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("event.%d", i)))
		var packed anypb.Any
		var event apievents.TaskOOM
		if err = errors.Join(err, proto.Unmarshal(data, &packed), proto.Unmarshal(packed.Value, &event)); err != nil || event.ContainerId != id || packed.TypeUrl != "containerd.events.TaskOOM" {
			t.Errorf("event %d: %v, %v, %v", i, &packed, &event, err)
		}
	}
}

// TestPublishByHangs kills a program that does not end, and what it has started.
func TestPublishByHangs(t *testing.T) {
	leak.Check(t)
	s, _ := loggerBench(t)
	pids := filepath.Join(t.TempDir(), "pids")
	send := s.PublishBy(script(t, "sleep 1000 & echo $$ $! >"+pids+"; wait"), "/none")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for data, _ := os.ReadFile(pids); len(strings.Fields(string(data))) < 2; data, _ = os.ReadFile(pids) {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if err := send(ctx, &types.Envelope{Event: &anypb.Any{}}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	data, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); unix.Kill(pid, 0) == nil && !sys.Zombie(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("process %d lives on", pid)
			}
		}
	}
	if err := s.PublishBy("/no/such/program", "/none")(t.Context(), &types.Envelope{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
