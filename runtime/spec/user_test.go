package spec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// testRoot makes a root file system with accounts.
func testRoot(t *testing.T) (*Root, string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1001::/home/u:/bin/sh\n")
	write(t, filepath.Join(dir, "etc/group"), "root:x:0:\nadm:x:4:root,u\nextra:x:2000:u\n")
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLookupUser(t *testing.T) {
	root, _ := testRoot(t)
	user := func(uid, gid uint32, groups ...uint32) specs.User {
		return specs.User{UID: uid, GID: gid, AdditionalGids: groups}
	}
	for _, test := range []struct {
		name string
		want specs.User
		home string
		kind func(error) bool
	}{
		{"", user(0, 0, 4), "/root", nil},
		{"u", user(1000, 1001, 4, 2000), "/home/u", nil},
		{"1000", user(1000, 1001, 4, 2000), "/home/u", nil},
		{"u:extra", user(1000, 2000), "/home/u", nil},
		{"u:7", user(1000, 7), "/home/u", nil},
		{"55", user(55, 0), "/", nil},
		{"55:66", user(55, 66), "/", nil},
		{"nobody", specs.User{}, "", errdefs.IsNotFound},
		{"u:nogroup", specs.User{}, "", errdefs.IsNotFound},
		{"99999999999", specs.User{}, "", errdefs.IsInvalidArgument},
		{"-1", specs.User{}, "", errdefs.IsInvalidArgument},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, home, err := LookupUser(root, test.name)
			if test.kind != nil {
				if !test.kind(err) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" || home != test.home {
				t.Errorf("home %q, user (-want +got):\n%s", home, diff)
			}
		})
	}
}

func TestLookupUserWithoutFiles(t *testing.T) {
	u, home, err := LookupUser(nil, "12:34")
	if err != nil || u.UID != 12 || u.GID != 34 || home != "/" {
		t.Errorf("got %v, %q, %v", u, home, err)
	}
	if _, _, err := LookupUser(nil, "root"); !errdefs.IsNotFound(err) {
		t.Errorf("a name without files: %v", err)
	}
}

// TestRootHoldsLinks checks that a link in an image means what it means to the
// container, wherever it points.
func TestRootHoldsLinks(t *testing.T) {
	for name, target := range map[string]string{
		"absolute":  "/usr/lib/passwd",
		"relative":  "../usr/lib/passwd",
		"above top": "../../../../../../../usr/lib/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			root, dir := testRoot(t)
			if err := os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755); err != nil {
				t.Fatal(err)
			}
			passwd := filepath.Join(dir, "etc/passwd")
			if err := os.Rename(passwd, filepath.Join(dir, "usr/lib/passwd")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(target, passwd); err != nil {
				t.Fatal(err)
			}
			if u, _, err := LookupUser(root, "u"); err != nil || u.UID != 1000 {
				t.Errorf("got %v, %v", u, err)
			}
		})
	}
}

func TestRootDoesNotLeadOut(t *testing.T) {
	root, dir := testRoot(t)
	outside := filepath.Join(t.TempDir(), "secret")
	write(t, outside, "secret")
	for name, target := range map[string]string{
		"link to a file outside": outside,
		"link to a directory":    filepath.Dir(outside) + "/secret",
		"climb":                  strings.Repeat("../", 40) + outside[1:],
		"magic link":             "/proc/self/root" + outside,
	} {
		link := filepath.Join(dir, "link")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if data, err := root.ReadFile("/link", 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: read %q, %v", name, data, err)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootReadsOnlyPlainFiles(t *testing.T) {
	root, dir := testRoot(t)
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/fifo", "/etc"} {
		if _, err := root.ReadFile(name, 100); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	write(t, filepath.Join(dir, "big"), strings.Repeat("x", 101))
	if _, err := root.ReadFile("/big", 100); err == nil {
		t.Error("a file beyond the limit was read")
	}
	if data, err := root.ReadFile("/big", 101); err != nil || len(data) != 101 {
		t.Errorf("a file at the limit: %d bytes, %v", len(data), err)
	}
}

func TestExec(t *testing.T) {
	root, _ := testRoot(t)
	s := &specs.Spec{Process: &specs.Process{
		Args: []string{"init"}, Env: []string{"A=1", "HOME=/root"}, Cwd: "/w", Terminal: true,
		Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}},
	}}
	p, err := Exec(s, ExecOptions{Args: []string{"ls"}, Env: []string{"A=2"}, User: "u", Cwd: "/x"}, root, testHost())
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.Process{
		Args: []string{"ls"}, Env: []string{"A=2", "HOME=/home/u"}, Cwd: "/x",
		User:         specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{4, 2000}},
		Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s.Process.Args[0] != "init" || s.Process.Env[0] != "A=1" || len(s.Process.Capabilities.Effective) != 1 {
		t.Errorf("the container's own process changed: %v", s.Process)
	}
	p, err = Exec(s, ExecOptions{Args: []string{"ls"}, Terminal: true, Privileged: true}, nil, testHost())
	if err != nil {
		t.Fatal(err)
	}
	if p.Cwd != "/w" || !p.Terminal || len(p.Capabilities.Effective) != 4 || p.Env[0] != "TERM=xterm" {
		t.Errorf("got %+v", p)
	}
	for _, o := range []ExecOptions{{}, {Args: []string{""}}, {Args: []string{"x"}, Cwd: "rel"}} {
		if _, err := Exec(s, o, nil, testHost()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
