package client

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/client/fakedaemon"
	"github.com/berthd/berth/internal/leak"
)

// connectTo gives a client of a fake daemon, which ends with the test.
func connectTo(t *testing.T, d *fakedaemon.Daemon, o Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), d.Address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestDialErrors(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	listener, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	mute := filepath.Join(dir, "mute.sock")
	silent, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, test := range map[string]struct {
		address string
		want    error
	}{
		"no socket":      {filepath.Join(dir, "none.sock"), fs.ErrNotExist},
		"nobody listens": {"unix://" + stale, syscall.ECONNREFUSED},
		"no answer":      {mute, context.DeadlineExceeded},
		"too long":       {"/" + strings.Repeat("x", 200), errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(t.Context(), test.address, Options{Timeout: 300 * time.Millisecond})
			if c != nil {
				c.Close()
			}
			var dial *DialError
			if !errors.As(err, &dial) || !errors.Is(err, test.want) {
				t.Errorf("got %v, want a DialError of %v", err, test.want)
			}
		})
	}
}

func TestDialRefusesBadNamespace(t *testing.T) {
	if _, err := Dial(t.Context(), "/nowhere", Options{Namespace: "a b"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestHeaders(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{Namespace: "one"})
	for _, call := range []*Client{c, c.In("two"), c.Leased("l"), c.In("two").Leased("m"), c.Leased("l").In("three")} {
		if _, err := call.Images().List(t.Context(), &images.ListImagesRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []fakedaemon.Call{
		{Namespace: "one"}, {Namespace: "two"}, {Namespace: "one", Lease: "l"}, {Namespace: "two", Lease: "m"},
		{Namespace: "three"}, // a lease is of one namespace
	}
	calls := d.Calls("Images/List")
	for i, call := range calls {
		if call.Namespace != want[i].Namespace || call.Lease != want[i].Lease {
			t.Errorf("call %d: %+v, want %+v", i, call, want[i])
		}
	}
	if c.Namespace() != "one" || c.In("two").Namespace() != "two" {
		t.Error("In changed the client it was called on")
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{})
	_, err := c.Images().Get(t.Context(), &images.GetImageRequest{Name: "x"})
	if !errdefs.IsNotFound(err) || err.Error() != `image "x": not found` {
		t.Errorf("unary: %v", err)
	}
	_, err = c.ReadBlob(t.Context(), "sha256:"+"00000000000000000000000000000000000000000000000000000000000000aa", 10)
	if !errdefs.IsNotFound(err) {
		t.Errorf("stream: %v", err)
	}
}

func TestReadBlob(t *testing.T) {
	d := fakedaemon.New(t)
	c := connectTo(t, d, Options{})
	good := d.AddBlob([]byte("0123456789"))
	if data, err := c.ReadBlob(t.Context(), good.Digest, 10); err != nil || string(data) != "0123456789" {
		t.Errorf("got %q, %v", data, err)
	}
	if _, err := c.ReadBlob(t.Context(), good.Digest, 9); !errdefs.IsOutOfRange(err) {
		t.Errorf("beyond the limit: %v", err)
	}
	if _, err := c.ReadBlob(t.Context(), "sha256:short", 9); !errdefs.IsInvalidArgument(err) {
		t.Errorf("malformed digest: %v", err)
	}
	bad := d.AddBlob([]byte("right"))
	d.Corrupt(bad.Digest, []byte("wrong"))
	if _, err := c.ReadBlob(t.Context(), bad.Digest, 10); !errdefs.IsDataLoss(err) {
		t.Errorf("other bytes: %v", err)
	}
}

func TestFIFODirIsBesideTheSocket(t *testing.T) {
	d := fakedaemon.New(t)
	t.Chdir(filepath.Dir(d.Address))
	c, err := Dial(t.Context(), filepath.Base(d.Address), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewStdio("x", Streams{Out: os.Stdout})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, stdout, _ := s.paths(); !strings.HasPrefix(stdout, filepath.Dir(d.Address)+"/fifo/") {
		t.Errorf("stdout is %q", stdout)
	}
}

func TestProbeWaitsForRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	done := make(chan error, 1)
	go func() { done <- probe(t.Context(), path) }()
	select {
	case err := <-done:
		t.Fatalf("while the daemon is away: %v", err)
	case <-time.After(3 * restartPause):
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := <-done; err != nil {
		t.Errorf("with the daemon back: %v", err)
	}
}
