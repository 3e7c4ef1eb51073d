package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
)

// shelf is a content store in memory.
type shelf struct {
	mu    sync.Mutex
	blobs map[string][]byte
	full  bool
}

func (s *shelf) Put(_ context.Context, mediaType string, write func(io.Writer) error) (*types.Descriptor, error) {
	var data bytes.Buffer
	if err := write(&data); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return nil, unix.ENOSPC
	}
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	d := &types.Descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(data.Bytes())), Size: int64(data.Len())}
	s.blobs[d.Digest] = data.Bytes()
	return d, nil
}

func (s *shelf) Open(_ context.Context, d *types.Descriptor) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[d.GetDigest()]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.GetDigest(), errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (d *daemon) checkpoint(id string, s *shelf, o *runc.CheckpointOptions) (*tasks.CheckpointTaskResponse, error) {
	d.m.t.Helper()
	r := &tasks.CheckpointTaskRequest{ContainerId: id}
	if o != nil {
		r.Options = packed(d.m.t, o)
	}
	return d.Checkpoint(d.m.t.Context(), testNS, containerOf(id, script{}), r, s)
}

func (d *daemon) createFrom(id string, s *shelf, r *tasks.CreateTaskRequest) (*tasks.CreateTaskResponse, error) {
	d.m.t.Helper()
	r.ContainerId = id
	return d.CreateFrom(d.m.t.Context(), testNS, containerOf(id, script{}), r, s)
}

// images lists what there is of checkpoints on disk.
func (m *machine) images() (found []string) {
	_ = filepath.WalkDir(filepath.Join(m.dir, "root", checkpointsDir), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// finish kills a task and deletes it.
func (d *daemon) finish(id string) {
	d.m.t.Helper()
	if err := d.kill(id, int(unix.SIGKILL)); err != nil {
		d.m.t.Fatal(err)
	}
	d.end(id, 128+uint32(unix.SIGKILL))
}

// TestCheckpointRestore dumps a task into the content store and makes another of
// it, with a daemon that ends between each two steps.
func TestCheckpointRestore(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	again := func() {
		d.stop()
		d = m.start()
	}
	var store shelf
	d.run("a", script{})
	m.expect("/tasks/create a", "/tasks/start a")
	got, err := d.checkpoint("a", &store, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.GetDescriptors()); n != 2 || got.Descriptors[0].MediaType != mediaTypeImages || got.Descriptors[1].MediaType != mediaTypeConfig {
		t.Fatalf("descriptors %v", got.GetDescriptors())
	}
	m.expect("/tasks/checkpointed a")
	if left := m.images(); len(left) > 0 {
		t.Errorf("left of the dump: %v", left)
	}
	spec := containerOf("a", script{}).GetSpec()
	if config := store.blobs[got.Descriptors[1].Digest]; !bytes.Contains(config, spec.GetValue()) {
		t.Errorf("config %q without the spec %q", config, spec.GetValue())
	}
	d.finish("a")

	if r, err := d.createFrom("b", &store, &tasks.CreateTaskRequest{Checkpoint: got.Descriptors[0]}); err != nil || r.Pid != 0 {
		t.Fatalf("created %v, %v", r, err)
	}
	again()
	d.verdict("b", "connected")
	if s := d.state("b"); s != "CREATED 0" {
		t.Errorf("before its restore %v", s)
	}
	started, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if left := m.images(); len(left) > 0 {
		t.Errorf("left of the restore: %v", left)
	}
	again()
	d.verdict("b", "connected")
	if s := d.state("b"); s != "RUNNING 0" {
		t.Errorf("after its restore %v", s)
	}
	// Its status is known without its shim: the daemon has a handle on it.
	if pid := d.find(testNS, "b").view().init.PID; pid != int(started.Pid) {
		t.Errorf("init is %d, started was %d", pid, started.Pid)
	}
	d.finish("b")
}

// TestRestoreFromPath restores from a directory, and starts at once.
func TestRestoreFromPath(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	var store shelf
	d.run("a", script{})
	path := filepath.Join(m.dir, "dump")
	if r, err := d.checkpoint("a", &store, &runc.CheckpointOptions{ImagePath: path}); err != nil || len(r.Descriptors) > 0 || len(store.blobs) > 0 {
		t.Fatalf("%v, %v, stored %d", r, err, len(store.blobs))
	}
	d.finish("a")
	from := &types.Descriptor{Annotations: map[string]string{restoreAnnotation: path}}
	r, err := d.createFrom("b", &store, &tasks.CreateTaskRequest{Checkpoint: from})
	if err != nil || r.Pid == 0 || d.state("b") != "RUNNING 0" {
		t.Fatalf("%v, %v", r, err)
	}
	d.finish("b")
	if _, err := os.Stat(filepath.Join(path, "pages-1.img")); err != nil {
		t.Errorf("the caller's images: %v", err)
	}
	// A restore that fails leaves no task.
	if err := os.Remove(filepath.Join(path, "pages-1.img")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.createFrom("c", &store, &tasks.CreateTaskRequest{Checkpoint: from}); err == nil || !strings.Contains(err.Error(), "pages-1.img") {
		t.Errorf("restored from broken images: %v", err)
	}
	if _, err := d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: "c"}); !errdefs.IsNotFound(err) {
		t.Errorf("the task of a failed restore: %v", err)
	}
}

// TestRestoreNotStarted deletes a task that waits for its restore: its images go.
func TestRestoreNotStarted(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	var store shelf
	d.run("a", script{})
	got, err := d.checkpoint("a", &store, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.finish("a")
	if _, err := d.createFrom("b", &store, &tasks.CreateTaskRequest{Checkpoint: got.Descriptors[0]}); err != nil {
		t.Fatal(err)
	}
	if len(m.images()) != len(fakeImages) {
		t.Errorf("images %v", m.images())
	}
	if _, err := d.delete("b"); err != nil {
		t.Fatal(err)
	}
	if left := m.images(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestCheckpointFails leaves nothing of dumps and restores that fail.
func TestCheckpointFails(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	d.run("a", script{})
	d.run("f", script{Mode: "full"})
	good := &types.Descriptor{MediaType: mediaTypeImages, Digest: "sha256:none"}
	for name, c := range map[string]struct {
		call func() error
		kind func(error) bool
		want string
	}{
		"the dump":  {func() error { _, err := d.checkpoint("f", &shelf{}, nil); return err }, nil, "no space left"},
		"the store": {func() error { _, err := d.checkpoint("a", &shelf{full: true}, nil); return err }, nil, unix.ENOSPC.Error()},
		"no task":   {func() error { _, err := d.checkpoint("x", &shelf{}, nil); return err }, errdefs.IsNotFound, `"x"`},
		"relative path": {func() error {
			_, err := d.checkpoint("a", &shelf{}, &runc.CheckpointOptions{ImagePath: "x"})
			return err
		}, errdefs.IsInvalidArgument, "not absolute"},
		"no blob": {func() error {
			_, err := d.createFrom("b", &shelf{}, &tasks.CreateTaskRequest{Checkpoint: good})
			return err
		}, errdefs.IsNotFound, "sha256:none"},
		"no store": {func() error {
			_, err := d.Create(t.Context(), testNS, containerOf("b", script{}), &tasks.CreateTaskRequest{ContainerId: "b", Checkpoint: good})
			return err
		}, errdefs.IsNotImplemented, "content store"},
		"no archive": {func() error {
			s := &shelf{blobs: map[string][]byte{"sha256:none": []byte("x")}}
			_, err := d.createFrom("b", s, &tasks.CreateTaskRequest{Checkpoint: &types.Descriptor{MediaType: mediaTypeImages, Digest: "sha256:none", Size: 1}})
			return err
		}, errdefs.IsInvalidArgument, "unpack checkpoint sha256:none"},
	} {
		err := c.call()
		if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !c.kind(err) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if left := m.images(); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
		if _, err := d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: "b"}); !errdefs.IsNotFound(err) {
			t.Errorf("%s: the task: %v", name, err)
		}
	}
	d.finish("a")
	d.finish("f")
}

// TestSweepImages starts a daemon over what another has left that was killed.
func TestSweepImages(t *testing.T) {
	m := newMachine(t)
	base := filepath.Join(m.dir, "root", checkpointsDir, testNS)
	for _, name := range []string{dumpPrefix + "a-123", "gone"} {
		if err := os.MkdirAll(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(base, name, "pages-1.img"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	if left, err := os.ReadDir(base); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
