package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client/fakedaemon"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/runtime/spec"
)

// withImage gives a fake daemon that has the image "busybox", and a client.
func withImage(t *testing.T) (*fakedaemon.Daemon, *Client) {
	t.Helper()
	d := fakedaemon.New(t)
	d.AddImage("docker.io/library/busybox:latest", d.AddManifest(t, imagespec.Image{Config: imagespec.ImageConfig{
		Cmd: []string{"sh"}, StopSignal: "SIGQUIT",
	}}))
	return d, connectTo(t, d, Options{Namespace: "ns"})
}

func options(id string) ContainerOptions { return ContainerOptions{ID: id, Image: "busybox"} }

// buffer is a bytes.Buffer that a test may read once the writer is done.
type buffer struct{ bytes.Buffer }

func TestRunProcess(t *testing.T) {
	leak.Check(t)
	d, c := withImage(t)
	d.Behave = func(p *fakedaemon.Process) uint32 {
		input, err := io.ReadAll(p.Stdin)
		if err != nil {
			return 99
		}
		fmt.Fprintf(p.Stdout, "got %s", input)
		p.Stderr.Write(bytes.Repeat([]byte("e"), 300<<10)) // more than a pipe holds
		return 7
	}
	container, err := c.NewContainer(t.Context(), options("c1"))
	if err != nil {
		t.Fatal(err)
	}
	var out, errs buffer
	stdio, err := c.NewStdio("c1", Streams{In: strings.NewReader("input"), Out: &out, Err: &errs})
	if err != nil {
		t.Fatal(err)
	}
	defer stdio.Close()
	p, err := container.NewTask(t.Context(), TaskOptions{Stdio: stdio})
	if err != nil {
		t.Fatal(err)
	}
	exits, err := p.Launch(t.Context(), t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exit := <-exits
	if exit.Err != nil || exit.Status != 7 || exit.At.IsZero() {
		t.Errorf("exit %+v", exit)
	}
	if err := stdio.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "got input" || errs.Len() != 300<<10 {
		t.Errorf("stdout %q, %d bytes of stderr", out.String(), errs.Len())
	}
	if exit, err := p.Delete(t.Context()); err != nil || exit.Status != 7 {
		t.Errorf("delete: %+v, %v", exit, err)
	}
	if _, err := p.Wait(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("wait after delete: %v", err)
	}
	if err := stdio.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Remove(t.Context(), "c1", false); err != nil {
		t.Error(err)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	checkNoFIFOs(t, d)
}

// checkNoFIFOs finds what is left of fifos.
func checkNoFIFOs(t *testing.T, d *fakedaemon.Daemon) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(d.Address), "fifo"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if len(entries) > 0 {
		t.Errorf("fifos are left: %v", entries)
	}
}

func TestNewContainerRecord(t *testing.T) {
	d, c := withImage(t)
	o := options("c1")
	o.Labels = map[string]string{"a": "b"}
	o.Spec = spec.Options{Args: []string{"x"}, ID: "ignored"}
	container, err := c.NewContainer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	row := d.Container("c1")
	if row.Snapshotter != "native" || row.SnapshotKey != "c1" || row.Runtime.Name != DefaultRuntime || row.Image != "docker.io/library/busybox:latest" {
		t.Errorf("row %v", row)
	}
	if row.Labels["a"] != "b" || row.Labels[LabelStopSignal] != "SIGQUIT" {
		t.Errorf("labels %v", row.Labels)
	}
	s, err := container.Spec()
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.CgroupsPath != "/berth/ns/c1" || s.Process.Args[0] != "x" {
		t.Errorf("spec %+v", s)
	}
}

// TestNewContainerLeavesNothing makes each call fail, before it took effect and
// after: the two fates.
func TestNewContainerLeavesNothing(t *testing.T) {
	for _, method := range []string{"Images/Get", "Content/Read", "Namespaces/Get", "Introspection/Plugins", "Snapshots/Prepare", "Containers/Create"} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s after=%v", method, after), func(t *testing.T) {
				d, c := withImage(t)
				leased, end, err := c.Lease(t.Context(), time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				d.Fail(method, fakedaemon.Fate{Err: errdefs.ErrUnavailable, After: after})
				if _, err := leased.NewContainer(t.Context(), options("c1")); !errdefs.IsUnavailable(err) {
					t.Errorf("got %v", err)
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if left := d.Left(); left != nil {
					t.Errorf("left: %v", left)
				}
			})
		}
	}
}

func TestNewContainerLeavesOthersAlone(t *testing.T) {
	d, c := withImage(t)
	if _, err := c.NewContainer(t.Context(), options("c1")); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(){
		"taken":                   func() {},
		"taken, and cut off":      func() { d.Fail("Snapshots/Prepare", fakedaemon.Fate{Err: errdefs.ErrUnavailable, Once: true}) },
		"taken, and record fails": func() { d.Fail("Containers/Create", fakedaemon.Fate{Err: errdefs.ErrUnavailable, Once: true}) },
	} {
		prepare()
		if _, err := c.NewContainer(t.Context(), options("c1")); err == nil {
			t.Errorf("%s: no error", name)
		}
		if want := []string{"container c1", "snapshot c1"}; !slices.Equal(d.Left(), want) {
			t.Errorf("%s: left %v", name, d.Left())
		}
	}
}

func TestNewContainerErrors(t *testing.T) {
	d, c := withImage(t)
	for name, test := range map[string]struct {
		change func(*ContainerOptions)
		kind   func(error) bool
	}{
		"bad id":        {func(o *ContainerOptions) { o.ID = "a/b" }, errdefs.IsInvalidArgument},
		"no image":      {func(o *ContainerOptions) { o.Image = "none" }, errdefs.IsNotFound},
		"no such user":  {func(o *ContainerOptions) { o.Spec.User = "nobody" }, errdefs.IsNotFound},
		"relative path": {func(o *ContainerOptions) { o.Spec.Cwd = "x" }, errdefs.IsInvalidArgument},
	} {
		o := options("c1")
		test.change(&o)
		if _, err := c.NewContainer(t.Context(), o); !test.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.Pack()
	var packed *NotUnpackedError
	if _, err := c.NewContainer(t.Context(), options("c1")); !errors.As(err, &packed) || packed.Snapshotter != "native" {
		t.Errorf("packed image: %v", err)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

// start runs a process that lives until it gets a signal.
func start(t *testing.T, d *fakedaemon.Daemon, c *Client, id string, stdio *Stdio) *Process {
	t.Helper()
	d.Behave = fakedaemon.UntilKilled
	container, err := c.NewContainer(t.Context(), options(id))
	if err != nil {
		t.Fatal(err)
	}
	p, err := container.NewTask(t.Context(), TaskOptions{Stdio: stdio})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRemoveNeedsForce(t *testing.T) {
	d, c := withImage(t)
	start(t, d, c, "c1", nil)
	if err := c.Remove(t.Context(), "c1", false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without force: %v", err)
	}
	if err := c.Remove(t.Context(), "c1", true); err != nil {
		t.Errorf("with force: %v", err)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	if err := c.Remove(t.Context(), "c1", true); !errdefs.IsNotFound(err) {
		t.Errorf("again: %v", err)
	}
}

// TestRemoveWhileItStarts: a start that its caller gave up may come to its end
// after the state was asked for.
func TestRemoveWhileItStarts(t *testing.T) {
	d, c := withImage(t)
	start(t, d, c, "c1", nil)
	d.Fail("Tasks/Delete", fakedaemon.Fate{Err: errors.New("cannot delete a running process"), Once: true})
	if err := c.Remove(t.Context(), "c1", true); err != nil {
		t.Error(err)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	start(t, d, c, "c2", nil)
	d.Fail("Tasks/Delete", fakedaemon.Fate{Err: errors.New("boom")})
	if err := c.Remove(t.Context(), "c2", true); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if got := len(d.Calls("Tasks/Delete")); got != 2+removeTries {
		t.Errorf("%d tries", got)
	}
}

// TestRemoveTakesFIFOs: the client that made them may have been killed.
func TestRemoveTakesFIFOs(t *testing.T) {
	d, c := withImage(t)
	var out buffer
	stdio, err := c.NewStdio("c1", Streams{In: strings.NewReader(""), Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	start(t, d, c, "c1", stdio)
	elsewhere := t.TempDir()
	if err := c.removeFIFOs("c1", filepath.Join(elsewhere, "c1-stdout")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Errorf("a directory that is none of ours went: %v", err)
	}
	if err := c.Remove(t.Context(), "c1", true); err != nil {
		t.Fatal(err)
	}
	checkNoFIFOs(t, d)
	if err := stdio.Close(); err != nil {
		t.Errorf("close after that: %v", err)
	}
}

func TestWaitOutlivesTheDaemon(t *testing.T) {
	d, c := withImage(t)
	away := 0
	c.away = func(error) { away++ }
	p := start(t, d, c, "c1", nil)
	d.Fail("Tasks/Wait", fakedaemon.Fate{Err: errdefs.ErrUnavailable, Once: true})
	if err := p.Signal(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exit, err := p.Wait(t.Context())
	if err != nil || exit.Status != 128+15 {
		t.Errorf("got %+v, %v", exit, err)
	}
	if away != 1 {
		t.Errorf("told %d times that the daemon is away", away)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	d, c := withImage(t)
	p := start(t, d, c, "c1", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := p.Wait(ctx); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

func TestLaunchFailure(t *testing.T) {
	leak.Check(t)
	d, c := withImage(t)
	container, err := c.NewContainer(t.Context(), options("c1"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := container.NewTask(t.Context(), TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Fail("Tasks/Start", fakedaemon.Fate{Err: errors.New("boom")})
	if _, err := p.Launch(t.Context(), t.Context()); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if err := p.Discard(t.Context()); err != nil {
		t.Error(err)
	}
	if want := []string{"container c1", "snapshot c1"}; !slices.Equal(d.Left(), want) {
		t.Errorf("left %v", d.Left())
	}
}

func TestExecIsAProcessOfItsOwn(t *testing.T) {
	d, c := withImage(t)
	main := start(t, d, c, "c1", nil)
	container, err := c.Container(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	s, err := container.Spec()
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Exec(t.Context(), "c1", "e1", s.Process, TaskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	exits, err := p.Launch(t.Context(), t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if exit := <-exits; exit.Status != 130 {
		t.Errorf("exit %+v", exit)
	}
	if state, err := main.State(t.Context()); err != nil || state.GetStatus() != task.Status_RUNNING {
		t.Errorf("the first process is %v, %v", state, err)
	}
	if err := p.Discard(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Discard(t.Context()); err != nil {
		t.Errorf("twice: %v", err)
	}
	// One that runs.
	if p, err = c.Exec(t.Context(), "c1", "e2", s.Process, TaskOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Discard(t.Context()); err != nil {
		t.Errorf("of a running one: %v", err)
	}
	if left := d.Left(); slices.Contains(left, "task c1/e2") {
		t.Errorf("left: %v", left)
	}
}
