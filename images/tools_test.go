package images

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/berthd/berth/internal/needed"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
)

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	needed.Program(t, name)
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestForeignArchives takes in what other programs write.
func TestForeignArchives(t *testing.T) {
	image, err := testimage.Busybox("busybox", testimage.BusyboxPath)
	if err != nil {
		needed.Missing(t, err)
	}
	source := t.TempDir()
	if err := layout(t, testimage.Gzip, image).WriteDir(source); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, path string)
		name string // given to the import
		want string
	}{
		"skopeo oci-archive": {func(t *testing.T, path string) {
			tool(t, "skopeo", "--insecure-policy", "copy", "oci:"+source+":latest", "oci-archive:"+path+":example.com/a/b:1")
		}, "", "example.com/a/b:1"},
		"skopeo oci-archive, no name": {func(t *testing.T, path string) {
			tool(t, "skopeo", "--insecure-policy", "copy", "oci:"+source+":latest", "oci-archive:"+path)
		}, "mine:2", "docker.io/library/mine:2"},
		"skopeo docker-archive": {func(t *testing.T, path string) {
			tool(t, "skopeo", "--insecure-policy", "copy", "oci:"+source+":latest", "docker-archive:"+path+":example.com/a/b:1")
		}, "", "example.com/a/b:1"},
		"umoci": {func(t *testing.T, path string) {
			dir := t.TempDir() + "/layout"
			tool(t, "cp", "-a", source, dir)
			if err := os.WriteFile(dir+"/hello", []byte("hello"), 0o640); err != nil {
				t.Fatal(err)
			}
			tool(t, "umoci", "insert", "--image", dir+":latest", dir+"/hello", "/etc/hello")
			tool(t, "umoci", "insert", "--image", dir+":latest", "--whiteout", "/etc/hosts")
			tool(t, "tar", "-C", dir, "-cf", path, "oci-layout", "index.json", "blobs")
		}, "", "docker.io/library/busybox:latest"},
	} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir() + "/archive"
			tc.make(t, path)
			w := newWorld(t)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			made := w.mustImport(data, ImportOptions{Name: tc.name})
			if made.Name != tc.want {
				t.Errorf("name %s, want %s", made.Name, tc.want)
			}
			w.collect()
			w.look("overlayfs", made.ChainID.String(), func(root string) {
				if info, err := os.Stat(root + "/bin/busybox"); err != nil || info.Mode() != 0o755 {
					t.Error(info, err)
				}
				if name == "umoci" {
					wantFile(t, root+"/etc/hello", "hello")
					wantFile(t, root+"/etc/hosts", "")
				}
			})
		})
	}
}

// TestOtherNamespace: what one namespace has costs the next one no disk.
func TestOtherNamespace(t *testing.T) {
	w := newWorld(t)
	data := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here)))
	for _, ns := range []string{"one", "two"} {
		made, err := w.Import(bg, metadata.Scope{Namespace: ns}, bytes.NewReader(data), ImportOptions{}, nil)
		if err != nil || len(made) != 1 {
			t.Fatal(made, err)
		}
	}
	w.collect()
	for _, ns := range []string{"one", "two"} {
		list, err := w.db.Blobs(metadata.Scope{Namespace: ns}).List(bg)
		if err != nil || len(list) != 4 {
			t.Errorf("%s: %v, %v", ns, list, err)
		}
	}
	if _, err := w.Import(bg, metadata.Scope{}, bytes.NewReader(nil), ImportOptions{}, nil); err == nil || !strings.Contains(err.Error(), "namespace is required") {
		t.Errorf("without a namespace: %v", err)
	}
}
