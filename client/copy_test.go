package client

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestOwners(t *testing.T) {
	none := owners{}
	mapped := owners{
		uids: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 10}, {ContainerID: 20, HostID: 5000, Size: 1}},
		gids: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 10}},
	}
	for _, c := range []struct {
		ids      owners
		uid, gid int
		out      [2]int // on this machine; -1: nobody
	}{
		{none, 7, 8, [2]int{7, 8}},
		{mapped, 0, 0, [2]int{100000, 200000}},
		{mapped, 9, 9, [2]int{100009, 200009}},
		{mapped, 20, 1, [2]int{5000, 200001}},
		{mapped, 10, 0, [2]int{-1, -1}},
		{mapped, 0, 20, [2]int{-1, -1}},
	} {
		h := tar.Header{Uid: c.uid, Gid: c.gid}
		err := c.ids.outside(&h)
		if c.out[0] < 0 {
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%d:%d: %d:%d, %v", c.uid, c.gid, h.Uid, h.Gid, err)
			}
			continue
		}
		if err != nil || h.Uid != c.out[0] || h.Gid != c.out[1] {
			t.Errorf("%d:%d: %d:%d, %v, want %v", c.uid, c.gid, h.Uid, h.Gid, err, c.out)
		}
		if uid, gid := c.ids.inside(h.Uid, h.Gid); uid != c.uid || gid != c.gid {
			t.Errorf("%d:%d came back as %d:%d", c.uid, c.gid, uid, gid)
		}
	}
}

// TestCopyOutKeeps: what would be more on this machine than in its container is not
// taken along unasked.
func TestCopyOutKeeps(t *testing.T) {
	file := tar.Header{Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 7, Gid: 8, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}
	plain, kept := file, file
	if err := (CopyOptions{}).out(&plain); err != nil || plain.Mode != 0o755 || plain.Uid != os.Geteuid() || plain.Gid != os.Getegid() || plain.PAXRecords != nil {
		t.Errorf("%+v, %v", plain, err)
	}
	if err := (CopyOptions{Archive: true}).out(&kept); err != nil || kept.Mode != 0o6755 || kept.Uid != 7 || kept.PAXRecords == nil {
		t.Errorf("%+v, %v", kept, err)
	}
	for _, kind := range []byte{tar.TypeChar, tar.TypeBlock} {
		if err := (CopyOptions{}).out(&tar.Header{Typeflag: kind}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("device: %v", err)
		}
	}
}

func TestAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"a": here + "/a", "a/": here + "/a/", "a/.": here + "/a/.", ".": here + "/.", "./": here + "/", "/": "//", "/x/../y": "/y", "/x/.": "/x/.",
	} {
		if got, err := absolute(name); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
}
