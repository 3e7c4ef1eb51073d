package images

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/testimage"
)

// TestTogether: layers that are laid down side by side make the tree that they make
// one upon the other, whatever one has to know of those below it.
func TestTogether(t *testing.T) {
	type f = testimage.File
	for name, layers := range map[string][][]f{
		"apart": {
			{f{Name: "a/"}, f{Name: "a/1", Body: "1"}}, {f{Name: "b/"}, f{Name: "b/2", Body: "2"}}, {f{Name: "a/"}, f{Name: "a/3", Body: "3"}},
		},
		"directories from below": {
			{f{Name: "tmp/", Mode: 0o1777, Uid: 7}, f{Name: "tmp/in/", Mode: 0o700}}, {f{Name: "tmp/in/x", Body: "x"}}, {f{Name: "tmp/in/y", Body: "y"}, f{Name: "new/z", Body: "z"}},
		},
		"links from below": {
			{f{Name: "usr/lib/"}, f{Name: "lib", Link: "usr/lib"}, f{Name: "usr/lib/a", Body: "a"}}, {f{Name: "lib/b", Body: "b"}}, {f{Name: "lib/.wh.a"}, f{Name: "c", Hard: "lib/b"}},
		},
		"whiteouts": {
			{f{Name: "d/"}, f{Name: "d/1", Body: "1"}, f{Name: "d/2", Body: "2"}, f{Name: "e", Body: "e"}},
			{f{Name: "d/.wh..wh..opq"}, f{Name: "d/3", Body: "3"}}, {f{Name: ".wh.e"}, f{Name: "d/.wh.3"}, f{Name: ".wh.none"}}, {f{Name: "e/"}, f{Name: "e/4", Body: "4"}},
		},
		"the root": {
			{f{Name: "./", Mode: 0o711, Uid: 5}, f{Name: "a", Body: "a"}}, {f{Name: "b", Body: "b"}}, {f{Name: "./", Mode: 0o750, Uid: 6}, f{Name: "c", Body: "c"}}, {f{Name: "d", Body: "d"}},
		},
		"the same twice": {
			{f{Name: "a", Body: "a"}}, {f{Name: "a", Body: "a"}}, {f{Name: "b", Body: "b"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			image := testimage.Image{Platform: here}
			for _, files := range layers {
				image.Layers = append(image.Layers, layer(t, files...))
			}
			l := layout(t, testimage.Gzip)
			d, err := l.Add(testimage.Gzip, image)
			if err != nil {
				t.Fatal(err)
			}
			trees := map[string]string{}
			for _, snapshotter := range []string{"native", "overlayfs"} {
				made, err := w.Pull(bg, scope, shelve(t, l, d), PullOptions{Unpack: []UnpackOptions{{Snapshotter: snapshotter}}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if n := len(w.snapshots(snapshotter)); n != len(layers) {
					t.Errorf("%s: %d snapshots of %d layers", snapshotter, n, len(layers))
				}
				w.look(snapshotter, made.ChainID.String(), func(root string) { trees[snapshotter] = listing(t, root) })
				w.mustBeWhole(CheckOptions{Deep: true})
			}
			if trees["native"] != trees["overlayfs"] {
				t.Errorf("one upon the other:\n%s\nside by side:\n%s", trees["native"], trees["overlayfs"])
			}
			w.drop("registry.test/a/b:1")
		})
	}
}

// listing tells what is in a tree.
func listing(t *testing.T, root string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		body := ""
		switch entry.Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			body = string(data)
		case fs.ModeSymlink:
			if body, err = os.Readlink(path); err != nil {
				return err
			}
		}
		fmt.Fprintf(&text, "%s %o %d:%d %s\n", rel, st.Mode, st.Uid, st.Gid, body)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}
