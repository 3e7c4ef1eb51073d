package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

func TestFind(t *testing.T) {
	leak.Check(t)
	base := t.TempDir()
	root := filepath.Join(base, "root")
	for _, dir := range []string{"a/b", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(base+"/outside", nil, 0o600), os.WriteFile(root+"/a/f", nil, 0o600),
		os.Symlink("/run", root+"/a/run"), os.Symlink("../../../outside", root+"/a/out"), os.Symlink("f", root+"/a/l"),
		os.Symlink("/a/l", root+"/ll"), os.Symlink("loop", root+"/loop"), os.Symlink("gone", root+"/a/dangling"),
		os.Symlink("/no/where", root+"/a/lost"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		follow bool
		want   string // "?": not there, "/": a directory
		kind   func(error) bool
	}{
		{"", false, "/", nil},
		{"/", true, "/", nil},
		{".", true, "/", nil},
		{"../..", true, "/", nil},
		{"/a/f", false, "a/f", nil},
		{"a//b/../f", false, "a/f", nil},
		{"a/b/", false, "a/b/", nil},
		{"a/b/.", false, "a/b/", nil},
		{"a/run/x", false, "run/x?", nil},
		{"a/run", false, "a/run", nil},
		{"a/run", true, "run/", nil},
		{"a/run/", false, "run/", nil},
		{"a/run/..", false, "/", nil},
		{"a/l", false, "a/l", nil},
		{"a/l", true, "a/f", nil},
		{"ll", true, "a/f", nil},
		{"a/out", true, "outside?", nil},
		{"a/dangling", false, "a/dangling", nil},
		{"a/dangling", true, "a/gone?", nil},
		{"a/lost", true, "", errdefs.IsNotFound},
		{"a/f/", false, "", errdefs.IsNotFound},
		{"a/f/x", false, "", errdefs.IsNotFound},
		{"no/where", false, "", errdefs.IsNotFound},
		{"loop", false, "loop", nil},
		{"loop", true, "", func(err error) bool { return errors.Is(err, errLinks) }},
	} {
		f, err := Find(root, c.name, c.follow)
		if c.kind != nil {
			if !c.kind(err) {
				t.Errorf("%q: %+v, %v", c.name, f, err)
			}
			continue
		}
		got := f.Name
		switch {
		case f.IsDir():
			got += "/"
		case !f.Exists:
			got += "?"
		}
		if got != c.want || err != nil {
			t.Errorf("%q, follow %t: %s, want %s, %v", c.name, c.follow, got, c.want, err)
		}
	}
}

// TestPack: what is packed and laid down is the same tree, under another name.
func TestPack(t *testing.T) {
	asRoot(t)
	leak.Check(t)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 4))
		root := t.TempDir()
		if err := os.MkdirAll(root+"/some/where", 0o755); err != nil {
			t.Fatal(err)
		}
		scribble(t, r, root+"/some/where", 40)
		if err := os.WriteFile(root+"/some/where/.wh.name", []byte("a name like others"), 0o640); err != nil {
			t.Fatal(err)
		}
		for _, as := range []string{"other", "other/name", ""} {
			var data bytes.Buffer
			if err := Pack(t.Context(), &data, root, "some/where", as, DiffOptions{}); err != nil {
				t.Fatal(err)
			}
			to := t.TempDir()
			var st unix.Stat_t
			if err := errors.Join(unix.Stat(root+"/some/where", &st), os.Chown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.MkdirAll(to+"/"+filepath.Dir(as), 0o755), apply(to, data.Bytes(), Options{Copy: true})); err != nil {
				t.Fatal(err)
			}
			sameTree(t, filepath.Join(to, as), root+"/some/where")
		}
	}
}

// TestPackOne packs a single file, and refuses what is none.
func TestPackOne(t *testing.T) {
	asRoot(t)
	root := t.TempDir()
	mustApply(t, root, Options{}, folder("d"), file("d/f", "text"), link("l", "d"), file("d/g", "g"))
	for name, want := range map[string]string{"d/f": "new", "l": "new->d", "d": "new/ new/f new/g"} {
		var data bytes.Buffer
		if err := Pack(t.Context(), &data, root, name, "new", DiffOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := namesOf(t, data.Bytes()); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	err = errors.Join(err, unix.Bind(fd, &unix.SockaddrUnix{Name: root + "/s"}), unix.Close(fd))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"s", "none", "l/f"} {
		var data bytes.Buffer
		if err := Pack(t.Context(), &data, root, name, "new", DiffOptions{}); err == nil {
			t.Errorf("%s: packed %s", name, namesOf(t, data.Bytes()))
		}
	}
	// What the kernel makes up has no size to pack.
	if err := unix.Mount("proc", root+"/d", "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(root+"/d", 0); err != nil {
			t.Error(err)
		}
	}()
	var data bytes.Buffer
	if err := Pack(t.Context(), &data, root, "", "all", DiffOptions{}); err != nil || namesOf(t, data.Bytes()) != "all/ all/d/ all/l->d" {
		t.Errorf("%s, %v", namesOf(t, data.Bytes()), err)
	}
}

// TestCopy: what is there stays what it is.
func TestCopy(t *testing.T) {
	asRoot(t)
	for name, c := range map[string]struct {
		items []item
		kind  func(error) bool
		want  string
	}{
		"directory stays as it is": {[]item{folder("d"), file("d/new", "n")}, nil, "d d/f d/l d/new"},
		"file is replaced":         {[]item{file("d/f", "n")}, nil, "d d/f d/l"},
		"link is replaced":         {[]item{file("d/l", "n")}, nil, "d d/f d/l"},
		"file for directory":       {[]item{file("d", "n")}, errdefs.IsFailedPrecondition, "d d/f d/l"},
		"directory for file":       {[]item{folder("d/f")}, errdefs.IsFailedPrecondition, "d d/f d/l"},
		"directory for link":       {[]item{folder("d/l"), file("d/l/x", "")}, errdefs.IsFailedPrecondition, "d d/f d/l"},
		"below a file":             {[]item{file("d/f/x", "n")}, func(err error) bool { return err != nil }, "d d/f d/l"},
		"link for directory":       {[]item{link("d", "/")}, errdefs.IsFailedPrecondition, "d d/f d/l"},
		"no whiteouts":             {[]item{file("d/.wh.f", ""), file(".wh..wh..opq", "")}, nil, ".wh..wh..opq d d/.wh.f d/f d/l"},
		"root":                     {[]item{folder("./")}, nil, "d d/f d/l"},
	} {
		root := t.TempDir()
		mustApply(t, root, Options{}, folder("d"), file("d/f", "x"), link("d/l", "/etc"))
		if err := errors.Join(os.Chmod(root+"/d", 0o710), os.Chmod(root, 0o711)); err != nil {
			t.Fatal(err)
		}
		err := apply(root, tarOf(t, c.items...), Options{Copy: true})
		if c.kind == nil && err != nil || c.kind != nil && !c.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
		var got string
		_ = filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
			if at, _ := filepath.Rel(root, path); at != "." {
				got += at + " "
			}
			return err
		})
		if got != c.want+" " {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for path, want := range map[string]os.FileMode{root: 0o711, root + "/d": 0o710} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s: %v, %v", name, path, info.Mode(), err)
			}
		}
	}
}

// TestHeader changes entries, or refuses them.
func TestHeader(t *testing.T) {
	asRoot(t)
	root, stop := t.TempDir(), errors.New("stop")
	err := apply(root, tarOf(t, file("a", "x"), file("b", "y")), Options{Header: func(h *tar.Header) error {
		if h.Name == "b" {
			return stop
		}
		h.Name, h.Uid = "c", 17
		return nil
	}})
	var st unix.Stat_t
	if statErr := unix.Stat(root+"/c", &st); !errors.Is(err, stop) || statErr != nil || st.Uid != 17 {
		t.Errorf("%v, owner %d, %v", err, st.Uid, statErr)
	}
	if _, err := os.Lstat(root + "/b"); !os.IsNotExist(err) {
		t.Errorf("b: %v", err)
	}
}
