package events

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/internal/leak"
)

// either matches what the filter does, and a topic.
type either struct {
	filter.Filter
	topic string
}

func (e either) Match(object filter.Adaptor) bool {
	topic, _ := object.Field([]string{"topic"})
	return topic == e.topic || e.Filter.Match(object)
}

// TestConcurrent: many publish, many read, some from the start; everyone sees
// all events in one order, and those of one publisher in its order.
func TestConcurrent(t *testing.T) {
	leak.Check(t)
	const publishers, each, readers = 8, 300, 6
	j := openAt(t, t.TempDir(), 4<<20)
	publish(t, j, "first")
	var group errgroup.Group
	seen := make([][]string, readers)
	var ready sync.WaitGroup
	for r := range readers {
		s := subscribe(t, j, 1000*uint64(r%2)) // 0: from now on; 1000: since the first one
		ready.Add(1)
		group.Go(func() error {
			ready.Done()
			var want uint64 = 1001
			for range publishers * each {
				envelope, number, err := s.Next(t.Context())
				if err != nil {
					return err
				}
				if number != want {
					return fmt.Errorf("number %d, want %d", number, want)
				}
				want++
				seen[r] = append(seen[r], envelope.Topic)
			}
			return nil
		})
	}
	ready.Wait()
	for p := range publishers {
		group.Go(func() error {
			for i := range each {
				if err := j.Publish(t.Context(), "ns", fmt.Sprintf("/p%d/%d", p, i), &apievents.TaskStart{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	next := map[string]int{}
	for i, topic := range seen[0] {
		for r := range readers {
			if seen[r][i] != topic {
				t.Fatalf("reader %d: event %d is %s, others have %s", r, i, seen[r][i], topic)
			}
		}
		_, publisher, _ := strings.Cut(topic, "/p")
		publisher, index, _ := strings.Cut(publisher, "/")
		if fmt.Sprint(next[publisher]) != index {
			t.Fatalf("publisher %s: event %s, want %d", publisher, index, next[publisher])
		}
		next[publisher]++
	}
}

// TestSlowSubscriber: one that reads nothing while much is published holds no
// memory and no file, and then reads all of it.
func TestSlowSubscriber(t *testing.T) {
	const events, subscribers = 50_000, 64
	j := openAt(t, t.TempDir(), 32<<20)
	var slow []*Subscription
	for range subscribers {
		slow = append(slow, subscribe(t, j, 0))
	}
	publish(t, j, "warm")
	files, before := openFiles(t), heap()
	for i := range events {
		publish(t, j, fmt.Sprint(i))
	}
	if grown := int64(heap()) - int64(before); grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if grown := openFiles(t) - files; grown > 1+segmentsKept {
		t.Errorf("%d more files are open", grown)
	}
	for _, s := range slow {
		next(t, s)
	}
	if each := (int64(heap()) - int64(before)) / subscribers; each > 2*readAhead {
		t.Errorf("a subscriber that is behind holds %d bytes", each)
	}
	for i := range events {
		if id, _ := next(t, slow[0]); id != fmt.Sprint(i) {
			t.Fatalf("event %s, want %d", id, i)
		}
	}
	nothing(t, slow[0])
	if slow[0].ahead != nil {
		t.Error("a subscriber that is not behind holds memory")
	}
	runtime.KeepAlive(slow)
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestRetention: the journal stays below its bound, and who fell behind is told.
func TestRetention(t *testing.T) {
	const bound = 64 << 10
	dir := t.TempDir()
	j := openAt(t, dir, bound)
	publish(t, j, "first")
	behind, reading, idle := subscribe(t, j, 999), subscribe(t, j, 999), subscribe(t, j, 0)
	next(t, reading) // has some of the first segment in memory
	for i := range 5000 {
		publish(t, j, fmt.Sprint(i))
		if i%100 == 0 {
			if size := diskUse(t, dir); size > bound {
				t.Fatalf("%d bytes on disk", size)
			}
			idle = subscribe(t, j, 0) // stands at the end each time
		}
	}
	for name, s := range map[string]*Subscription{"behind": behind, "reading": reading} {
		err := drain(t, s)
		if !errdefs.IsOutOfRange(err) || !strings.Contains(err.Error(), "fell behind: wants 10") {
			t.Errorf("%s: %v", name, err)
		}
	}
	next(t, idle)
	oldest, newest := j.Bounds()
	if newest != 1000+5000 || newest-oldest < 200 {
		t.Errorf("bounds %d, %d", oldest, newest)
	}
	if err := second(j.Subscribe(nil, oldest-2)); !errdefs.IsOutOfRange(err) {
		t.Errorf("since too long ago: %v", err)
	}
	all := subscribe(t, j, oldest-1)
	for want := oldest; want <= newest; want++ {
		if _, number := next(t, all); number != want {
			t.Fatalf("number %d, want %d", number, want)
		}
	}
	// A smaller bound at the next start.
	j.Close()
	j = openAt(t, dir, bound/4)
	if size := diskUse(t, dir); size > bound/4 {
		t.Errorf("%d bytes on disk after reopening", size)
	}
	if _, again := j.Bounds(); again != newest {
		t.Errorf("newest is %d, was %d", again, newest)
	}
}

// drain reads until an error.
func drain(t *testing.T, s *Subscription) error {
	for {
		if _, _, err := s.Next(t.Context()); err != nil {
			return err
		}
	}
}

// TestReadSegmentRemoved: one that had read all of a segment which is then
// removed goes on with what follows.
func TestReadSegmentRemoved(t *testing.T) {
	j := openAt(t, t.TempDir(), minMaxBytes)
	s := subscribe(t, j, 0)
	for i := range 500 {
		publish(t, j, fmt.Sprint(i))
		if id, _ := next(t, s); id != fmt.Sprint(i) {
			t.Fatalf("event %s, want %d", id, i)
		}
		if i%10 == 0 {
			j.lane.Lock()
			for j.dropOldest() {
			}
			j.lane.Unlock()
		}
	}
	if oldest, _ := j.Bounds(); oldest <= 1000 {
		t.Fatal("nothing was removed")
	}
}

func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return total
}

// TestLargeEvents: larger than what is read ahead, mixed with small ones.
func TestLargeEvents(t *testing.T) {
	j := openAt(t, t.TempDir(), 0)
	s := subscribe(t, j, 0)
	var want []string
	for i := range 40 {
		id := strings.Repeat(string(rune('a'+i%26)), i*3000%50000+1)
		publish(t, j, id)
		want = append(want, id)
	}
	expect(t, s, want...)
}

func BenchmarkPublish(b *testing.B) {
	j := openAt(b, b.TempDir(), 0)
	event := &apievents.TaskStart{ContainerId: "some-container", Pid: 7}
	b.ReportAllocs()
	for b.Loop() {
		if err := j.Publish(b.Context(), "default", "/tasks/start", event); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDeliver(b *testing.B) {
	j := openAt(b, b.TempDir(), 0)
	s := subscribe(b, j, 0, "namespace==default,topic~=|^/tasks/|")
	event := &apievents.TaskStart{ContainerId: "some-container", Pid: 7}
	b.ReportAllocs()
	for b.Loop() {
		if err := j.Publish(b.Context(), "default", "/tasks/start", event); err != nil {
			b.Fatal(err)
		}
		if _, _, err := s.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	j := openAt(b, dir, 0)
	for range 200_000 {
		publish(b, j, "some-container")
	}
	j.Close()
	for b.Loop() {
		openAt(b, dir, 0).Close()
	}
}

// TestFullFileSystem: when there is no space, old events go before new ones
// are refused; when that does not help, the error says so and the journal works
// again once there is space.
func TestFullFileSystem(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	j := openAt(t, dir, 256<<10)
	for i := range 5000 {
		publish(t, j, fmt.Sprint(i))
	}
	oldest, newest := j.Bounds()
	if newest != 1000+4999 || oldest == 1000 {
		t.Errorf("bounds %d, %d", oldest, newest)
	}
	hog := filepath.Join(dir, "hog")
	if err := os.WriteFile(hog, make([]byte, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	var failed error
	for i := 0; i < 10_000 && failed == nil; i++ {
		failed = j.Publish(t.Context(), "ns", "/a", &apievents.TaskStart{ContainerId: "x"})
		// Whatever the journal gives up is taken at once.
		if err := os.WriteFile(hog, make([]byte, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if !errdefs.IsUnavailable(failed) || !errors.Is(failed, unix.ENOSPC) {
		t.Fatalf("full: %v", failed)
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	s := subscribe(t, j, 0)
	publish(t, j, "after")
	expect(t, s, "after")
	j.Close()
	j = openAt(t, dir, 256<<10)
	if oldest, newest = j.Bounds(); newest <= 5999 {
		t.Errorf("bounds %d, %d", oldest, newest)
	}
	s = subscribe(t, j, newest-1)
	expect(t, s, "after")
	j.Close()
}
