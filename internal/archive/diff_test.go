package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/leak"
)

// diffOf makes the layer that leads from one tree to another.
func diffOf(t testing.TB, lower, upper string, o DiffOptions) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Diff(t.Context(), &out, lower, upper, o); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// names lists what a tar has, in its order.
func namesOf(t testing.TB, data []byte) string {
	t.Helper()
	var all []string
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return strings.Join(all, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		if h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink {
			name += "->" + h.Linkname
		}
		all = append(all, name)
	}
}

var links = regexp.MustCompile(` n\d+\b`)

// sameTree fails the test unless two trees are one, but for their roots' times and
// how many links overlayfs says that a file has.
func sameTree(t testing.TB, got, want string) {
	t.Helper()
	a, b := fullTree(t, got), fullTree(t, want)
	for _, lines := range [][]string{a, b} {
		for i, line := range lines {
			fields := strings.Fields(links.ReplaceAllString(line, ""))
			if i == 0 {
				fields = append(fields[:3], fields[4:]...)
			}
			lines[i] = strings.Replace(strings.Join(fields, " ")+" ", " first "+fields[0]+" ", " ", 1)
		}
	}
	if x, y := strings.Join(a, "\n"), strings.Join(b, "\n"); x != y {
		t.Fatalf("got\n%s\nwant\n%s", x, y)
	}
}

// copyTree copies a tree by way of a layer of all it has, which other tests trust.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := apply(to, diffOf(t, "", from, DiffOptions{}), Options{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Chown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777)); err != nil {
		t.Fatal(err)
	}
}

// scribble changes a tree at random: it makes, changes, renames, links and removes
// files and directories of every kind.
func scribble(t testing.TB, r *rand.Rand, root string, steps int) {
	t.Helper()
	var files, folders []string
	look := func() {
		files, folders = nil, []string{root}
		_ = filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
			switch {
			case err != nil || path == root:
			case e.IsDir():
				folders = append(folders, path)
			default:
				files = append(files, path)
			}
			return nil
		})
	}
	some := func(all []string) string {
		if len(all) == 0 {
			return filepath.Join(root, "nothing")
		}
		return all[r.IntN(len(all))]
	}
	for range steps {
		look()
		name := filepath.Join(some(folders), fmt.Sprintf("e%d", r.IntN(6)))
		stamp := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: r.Int64N(2e9), Nsec: r.Int64N(1e9)}}
		switch r.IntN(14) {
		case 0, 1:
			_ = os.Mkdir(name, 0o755)
		case 2, 3, 4:
			// Without waiting for who reads, should it be a fifo.
			if f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644); err == nil {
				_, _ = f.Write(bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(3)*200_000+r.IntN(50)))
				f.Close()
			}
		case 5:
			_ = os.Symlink(fmt.Sprintf("../e%d", r.IntN(6)), name)
		case 6:
			_ = unix.Mkfifo(name, 0o600)
		case 7:
			_ = unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		case 8, 9:
			_ = os.Link(some(files), name)
		case 10:
			_ = os.RemoveAll(some(append(files, folders[1:]...)))
		case 11:
			_ = os.Rename(some(append(files, folders[1:]...)), name)
		case 12:
			path := some(append(files, folders[1:]...))
			_ = os.Lchown(path, r.IntN(3), r.IntN(3))
			if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSymlink == 0 {
				_ = unix.Chmod(path, []uint32{0o600, 0o755, 0o4711, 0o1777}[r.IntN(4)])
			}
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, stamp, unix.AT_SYMLINK_NOFOLLOW)
		case 13:
			path := some(append(files, folders[1:]...))
			_ = unix.Lsetxattr(path, "user.note", []byte{0, byte(r.IntN(3)), 255}, 0)
			_ = unix.Lsetxattr(path, "trusted.note", []byte("x"), 0)
		}
	}
}

// TestDiffApply: a layer made of two trees turns the one into the other, and then
// there is no difference left.
func TestDiffApply(t *testing.T) {
	asRoot(t)
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		base := t.TempDir()
		lower, upper, got := filepath.Join(base, "lower"), filepath.Join(base, "upper"), filepath.Join(base, "got")
		if err := os.Mkdir(lower, 0o755); err != nil {
			t.Fatal(err)
		}
		scribble(t, r, lower, 40)
		copyTree(t, lower, upper)
		copyTree(t, lower, got)
		sameTree(t, upper, lower)
		scribble(t, r, upper, 30)
		layer := diffOf(t, lower, upper, DiffOptions{})
		if again := diffOf(t, lower, upper, DiffOptions{}); !bytes.Equal(layer, again) {
			t.Fatalf("seed %d: two layers of the same trees differ", seed)
		}
		if err := apply(got, layer, Options{}); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sameTree(t, got, upper)
		if rest := namesOf(t, diffOf(t, got, upper, DiffOptions{})); rest != "" {
			t.Fatalf("seed %d: still different: %s", seed, rest)
		}
	}
}

// overlay mounts one over lower, whose upper directory it gives.
func overlay(t testing.TB, lower, options string) (upper, merged string) {
	t.Helper()
	base := t.TempDir()
	upper, merged = filepath.Join(base, "upper"), filepath.Join(base, "merged")
	work := filepath.Join(base, "work")
	for _, dir := range []string{upper, merged, work} {
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+work+options)
	if err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	return upper, merged
}

// TestDiffOverlay changes a tree through a real overlay. Its upper directory as a
// layer, and the difference of the mounted trees, both lead from lower to it.
func TestDiffOverlay(t *testing.T) {
	asRoot(t)
	leak.Check(t)
	for seed := range uint64(25) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			lower, byUpper, byTrees := t.TempDir(), t.TempDir(), t.TempDir()
			if err := os.Chmod(lower, 0o755); err != nil {
				t.Fatal(err)
			}
			scribble(t, r, lower, 40)
			copyTree(t, lower, byUpper)
			copyTree(t, lower, byTrees)
			upper, merged := overlay(t, lower, ",index=off,redirect_dir=off,metacopy=off")
			scribble(t, r, merged, 30)
			var layer bytes.Buffer
			if err := DiffUpper(t.Context(), &layer, upper, DiffOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := apply(byUpper, layer.Bytes(), Options{}); err != nil {
				t.Fatal(err)
			}
			sameTree(t, byUpper, merged)
			if err := apply(byTrees, diffOf(t, lower, merged, DiffOptions{}), Options{}); err != nil {
				t.Fatal(err)
			}
			sameTree(t, byTrees, merged)
		})
	}
}

// TestNeedsMerge tells the overlays that have to be mounted.
func TestNeedsMerge(t *testing.T) {
	asRoot(t)
	for _, c := range []struct {
		options string
		change  func(merged string) error
		want    bool
	}{
		{",redirect_dir=on,metacopy=off", func(m string) error { return os.Rename(m+"/a/b", m+"/c") }, true},
		{",metacopy=on,redirect_dir=on", func(m string) error { return os.Chmod(m+"/a/f", 0o600) }, true},
		{",metacopy=off,redirect_dir=off", func(m string) error {
			return errors.Join(os.RemoveAll(m+"/a"), os.Mkdir(m+"/a", 0o755), os.WriteFile(m+"/a/x", nil, 0o600))
		}, false},
	} {
		lower := t.TempDir()
		mustApply(t, lower, Options{}, folder("a"), folder("a/b"), file("a/b/g", "g"), file("a/f", "f"))
		upper, merged := overlay(t, lower, c.options)
		if err := c.change(merged); err != nil {
			t.Fatal(err)
		}
		if got, err := NeedsMerge(t.Context(), upper); got != c.want || err != nil {
			t.Errorf("%s: %t, %v", c.options, got, err)
		}
	}
}

// TestDiffForms tells what is written of what.
func TestDiffForms(t *testing.T) {
	asRoot(t)
	for name, c := range map[string]struct {
		lower  []item
		change func(root string) error
		want   string
	}{
		"nothing": {[]item{folder("d"), file("d/f", "x")}, func(string) error { return nil }, ""},
		"removed": {[]item{folder("d"), file("d/f", "x"), file("g", "y")},
			func(r string) error { return errors.Join(os.RemoveAll(r+"/d"), os.Remove(r+"/g")) }, ".wh.d .wh.g"},
		"file for directory": {[]item{folder("d"), file("d/f", "x")},
			func(r string) error { return errors.Join(os.RemoveAll(r+"/d"), os.WriteFile(r+"/d", nil, 0o600)) }, "d"},
		"directory for file": {[]item{file("d", "x")},
			func(r string) error {
				return errors.Join(os.Remove(r+"/d"), os.Mkdir(r+"/d", 0o700), os.WriteFile(r+"/d/f", nil, 0o600))
			}, "d/ d/f"},
		"parents of what changed": {[]item{folder("d"), folder("d/e"), file("d/e/f", "x"), file("d/g", "y")},
			func(r string) error {
				return errors.Join(os.WriteFile(r+"/d/e/f", []byte("z"), 0o600), os.Chtimes(r+"/d/e/f", stamp, stamp))
			}, "d/ d/e/ d/e/f"},
		"second name": {[]item{file("b", "x")}, func(r string) error { return os.Link(r+"/b", r+"/a") }, "a b->a"},
		"same bytes, other time": {[]item{file("f", "x")},
			func(r string) error { return os.Chtimes(r+"/f", time.Time{}, time.Unix(5, 0)) }, "f"},
		"other bytes, same time": {[]item{file("f", "x")},
			func(r string) error {
				return errors.Join(os.WriteFile(r+"/f", []byte("y"), 0o644), os.Chtimes(r+"/f", stamp, stamp))
			}, "f"},
		"mode of the root": {nil, func(r string) error { return os.Chmod(r, 0o711) }, "./"},
	} {
		lower, upper := t.TempDir(), t.TempDir()
		mustApply(t, lower, Options{}, c.lower...)
		mustApply(t, upper, Options{}, c.lower...)
		if err := c.change(upper); err != nil {
			t.Fatal(err)
		}
		equal(t, name+": "+namesOf(t, diffOf(t, lower, upper, DiffOptions{})), name+": "+c.want)
	}
}

// TestDiffEpoch brings every time down to a limit.
func TestDiffEpoch(t *testing.T) {
	asRoot(t)
	lower, upper := t.TempDir(), t.TempDir()
	mustApply(t, lower, Options{}, file("gone", ""))
	mustApply(t, upper, Options{}, folder("d"), file("d/new", "x"), item{tar.Header{Name: "old", Typeflag: tar.TypeReg, ModTime: time.Unix(7, 0)}, ""})
	epoch := time.Unix(1000, 0)
	r := tar.NewReader(bytes.NewReader(diffOf(t, lower, upper, DiffOptions{Epoch: epoch})))
	want := map[string]int64{".wh.gone": 1000, "d/": 1000, "d/new": 1000, "old": 7}
	for range want {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if at := h.ModTime; at.Unix() != want[h.Name] || at.Nanosecond() != 0 {
			t.Errorf("%s is of %s", h.Name, at)
		}
	}
}

// TestDiffRefuses what no layer can have.
func TestDiffRefuses(t *testing.T) {
	asRoot(t)
	upper := t.TempDir()
	mustApply(t, upper, Options{}, folder("d"))
	if err := os.WriteFile(upper+"/d/.wh.x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Diff(t.Context(), io.Discard, "", upper, DiffOptions{})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"d/.wh.x"`) {
		t.Errorf("a name that is a whiteout: %v", err)
	}
	if err := Diff(t.Context(), io.Discard, "", upper+"/nowhere", DiffOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no tree: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Diff(ctx, io.Discard, "", upper, DiffOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// shrinking cuts a file as soon as its header has been written.
type shrinking struct {
	path string
	io.Writer
}

func (s shrinking) Write(p []byte) (int, error) {
	_ = os.Truncate(s.path, 10)
	return s.Writer.Write(p)
}

func TestDiffShrinking(t *testing.T) {
	upper := t.TempDir()
	path := filepath.Join(upper, "f")
	if err := os.WriteFile(path, make([]byte, 4*bufferSize), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Diff(t.Context(), shrinking{path, io.Discard}, "", upper, DiffOptions{})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a file that gets shorter: %v", err)
	}
}

// TestDiffDeep walks a tree deeper than there may be open files.
func TestDiffDeep(t *testing.T) {
	asRoot(t)
	upper, got := t.TempDir(), t.TempDir()
	deep := strings.Repeat("d/", 1500) + "f"
	mustApply(t, upper, Options{}, file(deep, "x"))
	layer := diffOf(t, "", upper, DiffOptions{})
	if err := apply(got, layer, Options{}); err != nil {
		t.Fatal(err)
	}
	if rest := namesOf(t, diffOf(t, got, upper, DiffOptions{})); rest != "" {
		t.Error("still different")
	}
}

// TestDiffCapability: a capability that counts in a user namespace counts where its
// root is the container's.
func TestDiffCapability(t *testing.T) {
	asRoot(t)
	upper := t.TempDir()
	mustApply(t, upper, Options{}, file("own", "x"), file("other", "x"), file("plain", "x"))
	version2 := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	version3 := func(root string) string { return version2[:3] + "\x03" + version2[4:] + root }
	for name, value := range map[string]string{
		"own": version3("\xa0\x86\x01\x00"), "other": version3("\x07\x00\x00\x00"), "plain": version2,
	} {
		if err := unix.Setxattr(filepath.Join(upper, name), capability, []byte(value), 0); err != nil {
			t.Skipf("no capabilities on files here: %v", err)
		}
	}
	for mapped, want := range map[bool]map[string]string{
		true:  {"own": version2, "other": version3("\x07\x00\x00\x00"), "plain": version2},
		false: {"own": version3("\xa0\x86\x01\x00"), "other": version3("\x07\x00\x00\x00"), "plain": version2},
	} {
		o := DiffOptions{}
		if mapped {
			o.Owner = func(uid, gid int) (int, int) {
				if uid >= 100000 {
					uid -= 100000
				}
				return uid, gid
			}
		}
		r := tar.NewReader(bytes.NewReader(diffOf(t, "", upper, o)))
		for range len(want) {
			h, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got := h.PAXRecords[xattrRecord+capability]; got != want[h.Name] {
				t.Errorf("mapped %t, %s: %x, want %x", mapped, h.Name, got, want[h.Name])
			}
		}
	}
}
