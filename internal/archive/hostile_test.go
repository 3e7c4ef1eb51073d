package archive

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// guarded makes a root with a directory and files around it that must stay as
// they are, and checks that in the end.
func guarded(t testing.TB) (root string, unharmed func()) {
	t.Helper()
	guard, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(guard, "top", "root")
	for _, dir := range []string{root, guard + "/etc", guard + "/top/etc"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != root {
			if err := os.WriteFile(dir+"/secret", []byte("secret"), 0o640); err != nil {
				t.Fatal(err)
			}
		}
	}
	outside := func() string {
		var lines []string
		for _, line := range fullTree(t, guard) {
			if !strings.HasPrefix(line, "top/root") {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "\n")
	}
	before := outside()
	return root, func() {
		t.Helper()
		equal(t, outside(), before)
	}
}

func node(name string, kind byte) item {
	return item{tar.Header{Name: name, Typeflag: kind, Devmajor: 1, Devminor: 3}, ""}
}

const secret = "OUTSIDE/secret" // OUTSIDE stands for a directory outside

// hostile are all known ways out of the root.
var hostile = map[string]struct {
	items []item
	want  string // the tree
	fails string // or part of the error
}{
	"dot dot":                 {items: []item{file("../etc/secret", "x")}, want: "etc/, etc/secret=x"},
	"many dot dots":           {items: []item{file("a/../../../../../../etc/secret", "x")}, want: "etc/, etc/secret=x"},
	"absolute":                {items: []item{file("/etc/secret", "x")}, want: "etc/, etc/secret=x"},
	"only dot dot":            {items: []item{folder("..")}, want: ""},
	"file named dot dot":      {items: []item{file("..", "x")}, fails: "root directory"},
	"file with no name":       {items: []item{file("", "x")}, fails: "root directory"},
	"link out, then below it": {items: []item{link("l", "OUTSIDE"), file("l/secret", "x")}, want: "...l -> OUTSIDE"},
	"relative link out":       {items: []item{link("l", "../etc"), file("l/secret", "x")}, want: "etc/, etc/secret=x, l -> ../etc"},
	"link to itself":          {items: []item{link("l", "l"), file("l/x", "x")}, fails: "too many symbolic links"},
	"links in a ring":         {items: []item{link("a", "b/x"), link("b", "a/x"), file("a/x", "x")}, fails: "too many symbolic links"},
	"link swapped in": {items: []item{folder("d"), file("d/a", ""), link("d", "../etc"), file("d/secret", "x")},
		want: "d -> ../etc, etc/, etc/secret=x"},
	"link through proc":                {items: []item{link("l", "/proc/self/root"), file("l/etc/secret", "x")}, want: "l -> /proc/self/root, proc/, proc/self/, proc/self/root/, proc/self/root/etc/, proc/self/root/etc/secret=x"},
	"write through a link":             {items: []item{link("l", secret), file("l", "x")}, want: "l=x"},
	"directory over a link":            {items: []item{link("l", "OUTSIDE"), folder("l"), file("l/secret", "x")}, want: "l/, l/secret=x"},
	"hard link out":                    {items: []item{hard("h", secret)}, fails: "target"},
	"hard link out by dot dot":         {items: []item{hard("h", "../etc/secret")}, fails: "target"},
	"hard link through a link":         {items: []item{link("l", "OUTSIDE"), hard("h", "l/secret")}, fails: "target"},
	"hard link to a link, written":     {items: []item{link("l", secret), hard("h", "l"), file("h", "x")}, want: "h=x, l -> " + secret},
	"hard link to a directory":         {items: []item{folder("d"), hard("h", "d")}, fails: "directory"},
	"hard link to the root":            {items: []item{hard("h", "/")}, fails: "root directory"},
	"hard link to nothing":             {items: []item{hard("h", "")}, fails: "root directory"},
	"hard link to itself":              {items: []item{hard("h", "h")}, fails: "target"},
	"link to nothing":                  {items: []item{link("l", "")}, fails: "symbolic link"},
	"device as parent":                 {items: []item{node("dev", tar.TypeChar), file("dev/x", "x")}, fails: "not a directory"},
	"fifo as parent":                   {items: []item{node("fifo", tar.TypeFifo), file("fifo/x", "x")}, fails: "not a directory"},
	"file as parent":                   {items: []item{file("f", ""), file("f/x", "x")}, fails: "not a directory"},
	"written into a fifo":              {items: []item{node("fifo", tar.TypeFifo), file("fifo", "x")}, want: "fifo=x"},
	"written into a device":            {items: []item{node("dev", tar.TypeChar), file("dev", "x")}, want: "dev=x"},
	"device number":                    {items: []item{{tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1 << 20}, ""}}, fails: "device number"},
	"unknown type":                     {items: []item{{tar.Header{Name: "x", Typeflag: 'Z'}, ""}}, fails: "none that a layer can have"},
	"whiteout of dot dot":              {items: []item{file(".wh...", "")}, fails: "whiteout"},
	"whiteout of dot":                  {items: []item{file(".wh..", "")}, fails: "whiteout"},
	"whiteout of nothing":              {items: []item{file(".wh.", "")}, fails: "whiteout"},
	"whiteout in a link's target":      {items: []item{link("l", "../etc"), file("l/.wh.secret", "")}, want: "l -> ../etc"},
	"whiteout below dot dot":           {items: []item{file("../etc/.wh.secret", "")}, want: ""},
	"opaque in a link's target":        {items: []item{link("l", "../etc"), file("l/.wh..wh..opq", "")}, want: "l -> ../etc"},
	"whiteout as parent":               {items: []item{file(".wh.d/x", "")}, fails: "whiteout"},
	"whiteout in a file":               {items: []item{file("f", "x"), file("f/.wh.x", "")}, want: "f=x"},
	"aufs plumbing":                    {items: []item{folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("a/.wh..wh.x", "")}, want: ""},
	"root as a link":                   {items: []item{link("/", "OUTSIDE")}, fails: "root directory"},
	"root as a whiteout's target":      {items: []item{file("a/../.wh..", "")}, fails: "whiteout"},
	"deep and removed":                 {items: []item{file(strings.Repeat("d/", 1500)+"f", ""), file("d", "x")}, want: "d=x"},
	"name with a newline and a quote":  {items: []item{file("a\n\"b", "x")}, want: "a\n\"b=x"},
	"hard link over its own directory": {items: []item{folder("d"), file("d/f", "x"), hard("d", "d/f")}, fails: "hard link"},
}

// TestHostile: what does no harm is laid down as in a process whose root
// directory it is; the rest is refused.
func TestHostile(t *testing.T) {
	asRoot(t)
	for name, tc := range hostile {
		t.Run(name, func(t *testing.T) {
			for _, o := range []Options{{}, {Overlay: true}, {Overlay: true, Lower: []string{t.TempDir()}}} {
				root, unharmed := guarded(t)
				outside := filepath.Dir(root) + "/etc"
				items := slices.Clone(tc.items)
				for i := range items {
					items[i].Linkname = strings.Replace(items[i].Linkname, "OUTSIDE", outside, 1)
				}
				err := apply(root, tarOf(t, items...), o)
				unharmed()
				if tc.fails != "" {
					if err == nil || !strings.Contains(err.Error(), tc.fails) {
						t.Fatalf("error %v, want %q", err, tc.fails)
					}
					if !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, unix.ENOENT) {
						t.Errorf("kind of %v", err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if o.Overlay && len(o.Lower) == 0 {
					continue // whiteouts stay to be seen
				}
				want := strings.Replace(tc.want, "OUTSIDE", outside, 1)
				got := strings.ReplaceAll(tree(t, root), " opaque", "")
				if some, ok := strings.CutPrefix(want, "..."); ok {
					if !strings.Contains(got, some) {
						t.Errorf("got %s, want %s", got, want)
					}
					continue
				}
				equal(t, got, want)
			}
		})
	}
}

// TestDeeperThanNames: links lead a layer to where no name does. What it has nested there
// does not use up the open files of this process when it is to go.
func TestDeeperThanNames(t *testing.T) {
	for _, last := range []item{file("d", "x"), file(".wh.d", ""), file(".wh..wh..opq", "")} {
		root := t.TempDir()
		mustApply(t, root, Options{}, file("old", "x")) // so that not all there is comes from the layer
		deep := strings.TrimSuffix(strings.Repeat("d/", 1500), "/")
		err := apply(root, tarOf(t, file(deep+"/f", ""), link("l", deep), file("l/"+deep+"/f", ""), last), Options{})
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "directories deep") {
			t.Errorf("%s: %.300v", last.Name, err)
		}
	}
}

// FuzzApply: whatever the bytes, nothing outside the root appears or changes.
func FuzzApply(f *testing.F) {
	f.Add(tarOf(f, file("../etc/secret", "x"), link("l", "/"), file("l/etc/secret", "y"), hard("h", "l")), uint8(0))
	f.Add(tarOf(f, folder("d"), file("d/.wh..wh..opq", ""), file("d/.wh.x", ""), file(".wh.etc", ""), file("etc/a", "")), uint8(1))
	f.Add(tarOf(f, link("d", "../etc"), file("d/secret", "x"), link("d", "x"), folder("d"), hard("d/a", "d/b"), file("usr/x", "")), uint8(2))
	f.Add([]byte("no tar"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		root, unharmed := guarded(t)
		o := Options{Overlay: form&1 != 0, MaxSize: 1 << 20}
		if form&2 != 0 {
			below := t.TempDir()
			mustApply(t, below, Options{}, file("etc/a", "1"), link("lib", "etc"), file("usr/lib/b", ""))
			if o.Overlay {
				o.Lower = []string{below}
			} else {
				mustApply(t, root, Options{}, file("etc/a", "1"), link("lib", "../../etc"), file("usr/lib/b", ""))
			}
		}
		_ = apply(root, data, o)
		unharmed()
	})
}
