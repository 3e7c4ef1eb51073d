package diff

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/mount"
)

const inside = "BERTH_TEST_USERNS"

// TestUserNamespace runs itself in a user namespace of its own. There devices
// and attributes of the initial namespace can't be made, and the overlay has to
// make its marks itself.
func TestUserNamespace(t *testing.T) {
	if os.Getenv(inside) != "" {
		inUserNamespace(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it maps ids")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1", "TMPDIR="+t.TempDir())
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Skip("no user namespaces here: ", err)
	}
	if err != nil || bytes.Contains(out, []byte("SKIP")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func inUserNamespace(t *testing.T) {
	if !userns.RunningInUserNS() {
		t.Fatal("not in a user namespace")
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "d/.wh.gone", Typeflag: tar.TypeReg},
		{Name: "d/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Name: "d/file", Typeflag: tar.TypeReg, Mode: 0o644, Uid: 1000, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.note": "can't be", "SCHILY.xattr.user.note": "kept",
		}},
		{Name: "o/.wh..wh..opq", Typeflag: tar.TypeReg},
		{Name: "o/new", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	lower, upper, work := t.TempDir(), t.TempDir(), t.TempDir()
	for _, f := range []string{"d/gone", "d/stays", "o/old"} {
		err := os.MkdirAll(filepath.Dir(lower+"/"+f), 0o755)
		if err = errors.Join(err, os.WriteFile(lower+"/"+f, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	mounts := overlay(lower, upper, work)
	mounts[0].Options = append(mounts[0].Options, "userxattr")
	if _, err := Apply(context.Background(), &buf, ociLayer, mounts, Options{}); err != nil {
		t.Fatal(err)
	}
	err := mount.WithTemp(context.Background(), mounts, func(root string) error {
		for dir, want := range map[string][]string{"d": {"file", "stays"}, "o": {"new"}} {
			entries, err := os.ReadDir(root + "/" + dir)
			var names []string
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if err != nil || !slices.Equal(names, want) {
				t.Errorf("%s: %v, %v", dir, names, err)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(root+"/d/file", &st); err != nil || st.Uid != 1000 {
			t.Errorf("owner %d, %v", st.Uid, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
