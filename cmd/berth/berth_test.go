package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/client/fakedaemon"
)

// result is what a call of berth gave.
type result struct {
	status   int
	out, err string
}

// berth runs the command against a daemon, nil for none, with text as standard
// input.
func berth(t *testing.T, d *fakedaemon.Daemon, input string, args ...string) result {
	t.Helper()
	address := filepath.Join(t.TempDir(), "no-daemon.sock")
	if d != nil {
		address = d.Address
	}
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	in, out := open("in"), open("out")
	if _, err := in.WriteString(input); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	var errs lockedBuffer
	a := &app{in: in, out: out, err: &errs, now: time.Now}
	status := a.main(append([]string{"--address", address}, args...))
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return result{status, string(text), errs.String()}
}

// lockedBuffer is a buffer that several goroutines may write to.
type lockedBuffer struct {
	mu   sync.Mutex
	data bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// withImage gives a fake daemon that has the image "busybox".
func withImage(t *testing.T) *fakedaemon.Daemon {
	t.Helper()
	d := fakedaemon.New(t)
	d.AddImage("docker.io/library/busybox:latest", d.AddManifest(t, imagespec.Image{Config: imagespec.ImageConfig{Cmd: []string{"sh"}}}))
	return d
}

// want checks a result: the status, and texts that standard output and error
// have to hold.
func (r result) want(t *testing.T, status int, out, err string) {
	t.Helper()
	if r.status != status || !strings.Contains(r.out, out) || !strings.Contains(r.err, err) {
		t.Errorf("status %d, want %d\nstdout (want %q):\n%s\nstderr (want %q):\n%s", r.status, status, out, r.out, err, r.err)
	}
}
