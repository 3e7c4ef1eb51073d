package archive

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lower is what stands before the layers under test.
var lower = []item{
	folder("d"), file("d/a", "1"), file("d/b", "1"), folder("d/sub"), file("d/sub/c", "1"),
	file("f", "1"), link("l", "d"), folder("e"),
}

var whiteoutCases = map[string]struct {
	layer []item
	want  string
}{
	"a file":           {[]item{file(".wh.f", "")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, l -> d"},
	"in a directory":   {[]item{file("d/.wh.a", "")}, "d/, d/b=1, d/sub/, d/sub/c=1, e/, f=1, l -> d"},
	"through a link":   {[]item{file("l/.wh.a", "")}, "d/, d/b=1, d/sub/, d/sub/c=1, e/, f=1, l -> d"},
	"a directory":      {[]item{file(".wh.d", "")}, "e/, f=1, l -> d"},
	"a link":           {[]item{file(".wh.l", "")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, f=1"},
	"nothing":          {[]item{file(".wh.none", ""), file("none/.wh.x", ""), file("e/.wh.x", ""), file("new/y", "2"), file("new/.wh.x", "")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, f=1, l -> d, new/, new/y=2"},
	"then a file":      {[]item{file(".wh.d", ""), file("d", "2")}, "d=2, e/, f=1, l -> d"},
	"after a file":     {[]item{file("f", "2"), file(".wh.f", "")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, f=2, l -> d"},
	"then a directory": {[]item{file(".wh.d", ""), folder("d"), file("d/x", "2")}, "d/, d/x=2, e/, f=1, l -> d"},
	"then below it":    {[]item{file(".wh.d", ""), file("d/sub/x", "2")}, "d/, d/sub/, d/sub/x=2, e/, f=1, l -> d"},
	"after a directory": {[]item{folder("d"), file("d/x", "2"), folder("d/sub"), file("d/sub/y", "2"), file(".wh.d", "")},
		"d/, d/sub/, d/sub/y=2, d/x=2, e/, f=1, l -> d"},
	"after something below":        {[]item{file("d/sub/y", "2"), file(".wh.d", "")}, "d/, d/sub/, d/sub/y=2, e/, f=1, l -> d"},
	"file then directory":          {[]item{file("d", "2"), folder("d"), file("d/x", "2")}, "d/, d/x=2, e/, f=1, l -> d"},
	"opaque first":                 {[]item{folder("d"), file("d/.wh..wh..opq", ""), file("d/x", "2"), file("d/a", "2")}, "d/, d/a=2, d/x=2, e/, f=1, l -> d"},
	"opaque last":                  {[]item{folder("d"), file("d/x", "2"), file("d/a", "2"), file("d/sub/z", "2"), file("d/.wh..wh..opq", "")}, "d/, d/a=2, d/sub/, d/sub/z=2, d/x=2, e/, f=1, l -> d"},
	"opaque alone":                 {[]item{file("d/.wh..wh..opq", "")}, "d/, e/, f=1, l -> d"},
	"opaque through a link":        {[]item{file("l/x", "2"), file("l/.wh..wh..opq", "")}, "d/, d/x=2, e/, f=1, l -> d"},
	"opaque nowhere":               {[]item{file("none/.wh..wh..opq", "")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, f=1, l -> d"},
	"opaque and whiteout":          {[]item{file("d/.wh..wh..opq", ""), file("d/.wh.a", ""), file("d/x", "2")}, "d/, d/x=2, e/, f=1, l -> d"},
	"opaque root first":            {[]item{file(".wh..wh..opq", ""), file("x", "2"), folder("d"), file("d/y", "2")}, "d/, d/y=2, x=2"},
	"opaque root last":             {[]item{file("x", "2"), file("d/y", "2"), file(".wh..wh..opq", "")}, "d/, d/y=2, x=2"},
	"link in place of a directory": {[]item{link("d", "e"), file("d/x", "2")}, "d -> e, e/, e/x=2, f=1, l -> d"},
	"directory for a link":         {[]item{folder("l"), file("l/x", "2")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, f=1, l/, l/x=2"},
	"hard link to below":           {[]item{hard("e/h", "d/a"), hard("h2", "l/sub/c")}, "d/, d/a=1, d/b=1, d/sub/, d/sub/c=1, e/, e/h=1, f=1, h2=1, l -> d"},
	"opaque spares a new link":     {[]item{hard("d/h", "f"), file("d/.wh..wh..opq", "")}, "d/, d/h=1, e/, f=1, l -> d"},
	"opaque takes the old name":    {[]item{hard("h", "d/a"), file("d/.wh..wh..opq", "")}, "d/, e/, f=1, h=1, l -> d"},
}

// eachForm lays layer down over the layers below in every form there is, and
// calls check with the directory in which all is merged.
func eachForm(t *testing.T, layers [][]item, check func(t *testing.T, root string)) {
	t.Helper()
	t.Run("plain", func(t *testing.T) {
		root := t.TempDir()
		for _, l := range layers {
			mustApply(t, root, Options{}, l...)
		}
		check(t, root)
	})
	t.Run("upper", func(t *testing.T) {
		var below []string
		for _, l := range layers {
			upper := t.TempDir()
			mustApply(t, upper, Options{Overlay: true, Lower: below}, l...)
			below = append([]string{upper}, below...)
		}
		check(t, merge(t, below[1:], below[0]))
	})
	t.Run("before what is below", func(t *testing.T) {
		// The top layer is begun first; those below it come when they are waited for,
		// or afterwards.
		uppers, done := make([]string, len(layers)), make([]bool, len(layers))
		for i := range layers {
			uppers[i] = t.TempDir()
		}
		under := func(i int) []string {
			below := slices.Clone(uppers[:i])
			slices.Reverse(below)
			return below
		}
		var lay func(i int)
		lay = func(i int) {
			if done[i] {
				return
			}
			done[i] = true
			mustApply(t, uppers[i], Options{Overlay: true, WaitLower: func() ([]string, error) {
				for j := range i {
					lay(j)
				}
				return under(i), nil
			}}, layers[i]...)
		}
		for i := range layers {
			lay(len(layers) - 1 - i)
		}
		top := len(layers) - 1
		check(t, merge(t, under(top), uppers[top]))
	})
	t.Run("one upper", func(t *testing.T) {
		// Several layers in one upper directory.
		upper, below := t.TempDir(), t.TempDir()
		mustApply(t, below, Options{Overlay: true}, layers[0]...)
		for _, l := range layers[1:] {
			mustApply(t, upper, Options{Overlay: true, Lower: []string{below}}, l...)
		}
		check(t, merge(t, []string{below}, upper))
	})
	t.Run("mounted", func(t *testing.T) {
		below := t.TempDir()
		mustApply(t, below, Options{Overlay: true}, layers[0]...)
		root := merge(t, []string{below}, t.TempDir())
		for _, l := range layers[1:] {
			mustApply(t, root, Options{}, l...)
		}
		check(t, root)
	})
}

// merge mounts an overlay.
func merge(t *testing.T, below []string, upper string) string {
	t.Helper()
	target := t.TempDir()
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(below, ":"), upper, t.TempDir())
	if err := unix.Mount("overlay", target, "overlay", 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

func TestWhiteouts(t *testing.T) {
	asRoot(t)
	for name, tc := range whiteoutCases {
		t.Run(name, func(t *testing.T) {
			eachForm(t, [][]item{lower, tc.layer}, func(t *testing.T, root string) {
				equal(t, strings.ReplaceAll(tree(t, root), " opaque", ""), tc.want)
			})
		})
	}
}

// A directory that the layer only goes through keeps what the layers below say
// of it.
func TestDirectoryFromBelow(t *testing.T) {
	asRoot(t)
	dir := folder("tmp")
	dir.Mode, dir.Uid, dir.Gid = 0o1777, 3, 4
	dir.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
	middle := folder("tmp/in")
	middle.Mode = 0o711
	eachForm(t, [][]item{{dir}, {middle}, {file("tmp/in/f", "")}}, func(t *testing.T, root string) {
		lines := strings.Join(fullTree(t, root), "\n")
		for _, want := range []string{
			"tmp 41777 3:4 1700000000.123456789 ", ` user.note="kept"`, "tmp/in 40711 0:0 1700000000.123456789 ",
		} {
			if !strings.Contains(lines, want) {
				t.Errorf("%q is missing in\n%s", want, lines)
			}
		}
	})
}

// TestLargeLinkBelow: what a hard link copies up keeps its holes, and counts as content.
func TestLargeLinkBelow(t *testing.T) {
	below := t.TempDir()
	if err := errors.Join(os.WriteFile(below+"/f", []byte("content"), 0o600), os.Truncate(below+"/f", 64<<20)); err != nil {
		t.Fatal(err)
	}
	upper := t.TempDir()
	o := Options{Overlay: true, Lower: []string{below}}
	mustApply(t, upper, o, hard("h", "f"))
	if info, err := os.Stat(upper + "/h"); err != nil || info.Size() != 64<<20 {
		t.Errorf("%v, %v", info, err)
	}
	if n := blocks(t, upper+"/h"); n >= 2048 {
		t.Errorf("it takes %d blocks", n)
	}
	o.MaxSize = 1 << 20
	if err := apply(t.TempDir(), tarOf(t, hard("h", "f")), o); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Error(err)
	}
}

// An overlay directory that is in the upper directory alone shows whiteouts as
// broken names: none must be made there.
func TestNoNeedlessWhiteouts(t *testing.T) {
	asRoot(t)
	below, upper := t.TempDir(), t.TempDir()
	mustApply(t, below, Options{}, lower...)
	mustApply(t, upper, Options{Overlay: true, Lower: []string{below}}, file("new/.wh.a", ""), folder("new2"), file("new2/.wh.b", ""),
		file("e/.wh.c", ""), file("d/.wh..wh..opq", ""), file("d/.wh.a", ""))
	equal(t, tree(t, upper), "d/ opaque, e/, new2/")
}

const seeds = 30

// TestRandomLayers lays random layers down in every form; all must agree.
func TestRandomLayers(t *testing.T) {
	asRoot(t)
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var layers [][]item
		for scratch := t.TempDir(); len(layers) < 3; {
			l := randomLayer(rng, 1+rng.IntN(12))
			if len(layers) == 0 {
				l = withoutWhiteouts(l)
			}
			// A file can't be the parent of what comes after it.
			if err := apply(scratch, tarOf(t, l...), Options{}); err == nil {
				layers = append(layers, l)
			} else if scratch = t.TempDir(); true {
				for _, l := range layers {
					mustApply(t, scratch, Options{}, l...)
				}
			}
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			first := ""
			eachForm(t, layers, func(t *testing.T, root string) {
				got := strings.ReplaceAll(tree(t, root), " opaque", "")
				if first == "" {
					first = got + " "
				}
				equal(t, got+" ", first)
			})
			if t.Failed() {
				for i, l := range layers {
					for _, it := range l {
						t.Logf("layer %d: %c %s %s", i, it.Typeflag, it.Name, it.Linkname)
					}
				}
			}
		})
	}
}

func randomLayer(rng *rand.Rand, n int) []item {
	name := func() string {
		parts := make([]string, 1+rng.IntN(3))
		for i := range parts {
			parts[i] = string("abcl"[rng.IntN(4)])
		}
		return strings.Join(parts, "/")
	}
	var items []item
	for len(items) < n {
		at := name()
		switch rng.IntN(11) {
		case 0, 1:
			items = append(items, folder(at))
		case 2:
			dir, base := split(at)
			if dir != "" {
				dir += "/"
			}
			items = append(items, file(dir+".wh."+base, ""))
		case 3:
			items = append(items, file(at+"/.wh..wh..opq", ""))
		case 4:
			items = append(items, link(at, []string{"", "/", "../"}[rng.IntN(3)]+name()))
		case 5:
			items = append(items, hard(at, name()))
		default:
			items = append(items, file(at, fmt.Sprint(rng.IntN(100))))
		}
	}
	return items
}

func withoutWhiteouts(items []item) []item {
	var rest []item
	for _, it := range items {
		if !strings.Contains(it.Name, ".wh.") {
			rest = append(rest, it)
		}
	}
	return rest
}

func TestMain(m *testing.M) {
	unix.Umask(0o077) // modes must not depend on it
	os.Exit(m.Run())
}
