package socket

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func options() Options { return Options{Mode: 0o660, UID: os.Getuid(), GID: os.Getgid()} }

func TestListenMakesDirectoryAndSetsMode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "deeper")
	path := filepath.Join(dir, "s.sock")
	o := options()
	if os.Getuid() == 0 {
		o.UID, o.GID = 12, 34
	}
	l, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", info.Mode())
	}
	if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != o.UID || int(st.Gid) != o.GID {
		t.Errorf("owner %d:%d, want %d:%d", st.Uid, st.Gid, o.UID, o.GID)
	}
	if d, err := os.Stat(dir); err != nil || d.Mode().Perm()&0o007 != 0 {
		t.Errorf("directory %v, error %v: others may enter", d.Mode(), err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is still there: %v", err)
	}
}

func TestListenReplacesOnlyAStaleSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if _, err := Listen(path, options()); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("somebody listens: error %v, want AlreadyExists", err)
	}
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path, options())
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, options()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a plain file: error %v, want FailedPrecondition", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q, error %v", b, err)
	}
}

func TestListenLeavesNothingAfterAnError(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, string(make([]byte, 120)))
	if _, err := Listen(long, options()); err == nil {
		t.Error("a path that is too long was taken")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, error %v", names, err)
	}
}

func TestCloseLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := Listen(path, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the second socket is gone: %v", err)
	}
	c.Close()
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// One of many that start at once on a stale socket gets it, whatever the order.
func TestOneOfManyWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	var wg sync.WaitGroup
	listeners, errs := make([]*Listener, 16), make([]error, 16)
	for i := range listeners {
		wg.Go(func() { listeners[i], errs[i] = Listen(path, options()) })
	}
	wg.Wait()
	won := 0
	for i, l := range listeners {
		if l != nil {
			won++
			defer l.Close()
		} else if !errors.Is(errs[i], errdefs.ErrAlreadyExists) {
			t.Errorf("a loser got %v, want AlreadyExists", errs[i])
		}
	}
	if won != 1 {
		t.Errorf("%d listen on one path", won)
	}
}
