package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/metadata"
)

// TestImport takes an image in through every kind of archive there is.
func TestImport(t *testing.T) {
	w := newWorld(t)
	image := small(t, "demo:1", here)
	const name = "docker.io/library/demo:1"
	archives := map[string][]byte{}
	for _, compression := range []string{testimage.None, testimage.Gzip, testimage.Zstd} {
		archives["oci "+compression] = archiveOf(t, layout(t, compression, image))
		archives["docker "+compression] = tarOf(t, docker(t, compression, image))
	}
	archives["oci in gzip"] = gzipped(t, archives["oci none"])
	archives["docker in zstd"] = zstded(t, archives["docker gzip"])
	both, err := layout(t, testimage.Gzip, image).Files()
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(both, docker(t, testimage.None, testimage.Image{Name: "wrong:name"}))
	archives["both"] = tarOf(t, both)
	for kind, archive := range archives {
		t.Run(kind, func(t *testing.T) {
			w.t = t
			made := w.mustImport(archive, ImportOptions{})
			if made.Name != name || w.names() != name || made.ChainID == "" {
				t.Fatalf("made %+v, have %s", made, w.names())
			}
			w.collect() // what belongs to the image stays
			w.look("overlayfs", made.ChainID.String(), func(root string) {
				wantFile(t, root+"/etc/arch", here.Architecture)
				wantFile(t, root+"/etc/new", "2")
				wantFile(t, root+"/etc/gone", "")
				if info, err := os.Stat(root + "/etc/new"); err != nil || !info.ModTime().Equal(testimage.Time) {
					t.Errorf("%v, %v", info.ModTime(), err)
				}
			})
			if err := w.db.Images(scope).Delete(bg, name, nil); err != nil {
				t.Fatal(err)
			}
			w.empty()
		})
	}
}

// TestLabels: each blob keeps the next, the config keeps the snapshot.
func TestLabels(t *testing.T) {
	w := newWorld(t)
	l, index, both := several(t, "demo", small(t, "", other), small(t, "", here))
	theirs, mine := both[0], both[1]
	made := w.mustImport(archiveOf(t, l), ImportOptions{})
	if made.Target.Digest != index.Digest || made.Target.MediaType != index.MediaType {
		t.Errorf("target %+v", made.Target)
	}
	w.collect()
	labelsOf := func(d digest.Digest) map[string]string {
		info, err := w.db.Blobs(scope).Info(bg, d)
		if err != nil {
			t.Fatal(err)
		}
		return info.Labels
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(l.Blobs[mine.Digest], &manifest); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest]map[string]string{
		index.Digest: {"containerd.io/gc.ref.content.m.1": mine.Digest.String()},
		mine.Digest: {
			"containerd.io/gc.ref.content.config": manifest.Config.Digest.String(),
			"containerd.io/gc.ref.content.l.0":    manifest.Layers[0].Digest.String(),
			"containerd.io/gc.ref.content.l.1":    manifest.Layers[1].Digest.String(),
		},
		manifest.Config.Digest:    {"containerd.io/gc.ref.snapshot.overlayfs": made.ChainID.String()},
		manifest.Layers[0].Digest: {labels.Uncompressed: digest.FromBytes(small(t, "", here).Layers[0]).String()},
	} {
		if got := labelsOf(d); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", d, got, want)
		}
	}
	if all := w.content(); len(all) != 5 {
		t.Errorf("content of another platform stayed: %d blobs", len(all))
	}
	w.mustImport(archiveOf(t, l), ImportOptions{AllPlatforms: true, NoUnpack: true})
	w.collect()
	// The second layers are the same.
	if all := w.content(); len(all) != 8 {
		t.Errorf("with all platforms: %d blobs", len(all))
	}
	if got := labelsOf(index.Digest)["containerd.io/gc.ref.content.m.0"]; got != theirs.Digest.String() {
		t.Errorf("with all platforms: %q", got)
	}
}

func TestImportAgain(t *testing.T) {
	w := newWorld(t)
	first := w.mustImport(archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here))), ImportOptions{})
	changed := small(t, "demo", here)
	changed.Config.Cmd = []string{"sh"}
	second := w.mustImport(tarOf(t, docker(t, testimage.None, changed)), ImportOptions{})
	if first.Target.Digest == second.Target.Digest || first.ChainID != second.ChainID {
		t.Errorf("%+v, %+v", first, second)
	}
	image, err := w.db.Images(scope).Get(bg, "docker.io/library/demo:latest")
	if err != nil || image.Target.Digest != second.Target.Digest.String() {
		t.Errorf("%v, %v", image, err)
	}
	w.collect()
	if all := w.content(); len(all) != 4 {
		t.Errorf("%d blobs are left", len(all))
	}
}

func TestSeveralImages(t *testing.T) {
	for kind, make := range map[string]func(...testimage.Image) []byte{
		"oci":    func(i ...testimage.Image) []byte { return archiveOf(t, layout(t, testimage.Gzip, i...)) },
		"docker": func(i ...testimage.Image) []byte { return tarOf(t, docker(t, testimage.None, i...)) },
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t)
			one, two := small(t, "one", here), small(t, "two", here)
			two.Layers = append(two.Layers, layer(t, testimage.File{Name: "two", Body: "2"}))
			made, err := w.Import(bg, scope, bytes.NewReader(make(one, two)), ImportOptions{}, nil)
			if err != nil || len(made) != 2 {
				t.Fatal(made, err)
			}
			if got := w.names(); got != "docker.io/library/one:latest docker.io/library/two:latest" {
				t.Error(got)
			}
			// The two lower layers are the same snapshots.
			if all := w.snapshots("overlayfs"); len(all) != 3 {
				t.Errorf("snapshots: %v", all)
			}
			// If one is not whole none is named.
			broken := small(t, "broken", here)
			broken.Layers[1] = []byte("no tar")
			if _, err := w.Import(bg, scope, bytes.NewReader(make(small(t, "fresh", here), broken)), ImportOptions{}, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Error(err)
			}
			if got := w.names(); strings.Contains(got, "fresh") || strings.Contains(got, "broken") {
				t.Error(got)
			}
		})
	}
}

// index.json may have the platforms of one image side by side.
func TestPlatformsSideBySide(t *testing.T) {
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", other), small(t, "demo", here)))
	made := w.mustImport(archive, ImportOptions{})
	if KindOf(made.Target.MediaType) != Index {
		t.Errorf("%+v", made)
	}
	w.look("overlayfs", made.ChainID.String(), func(root string) { wantFile(t, root+"/etc/arch", here.Architecture) })
	theirs := w.mustImport(archive, ImportOptions{Platform: "linux/s390x", Snapshotter: "native"})
	w.look("native", theirs.ChainID.String(), func(root string) {
		wantFile(t, root+"/etc/arch", "s390x")
		wantFile(t, root+"/etc/gone", "")
	})
}

func TestOldDockerArchives(t *testing.T) {
	w := newWorld(t)
	image := small(t, "demo", here)
	files := docker(t, testimage.None, image)
	// As other tools have it: layers side by side, links where docker looks.
	var list []dockerImage
	if err := json.Unmarshal(files["manifest.json"], &list); err != nil {
		t.Fatal(err)
	}
	links := map[string]string{}
	for i, name := range list[0].Layers {
		target := fmt.Sprintf("layer%d.tar", i)
		files[target] = files[name]
		delete(files, name)
		links[name] = "../" + target
	}
	var buf bytes.Buffer
	if err := testimage.WriteFiles(&buf, files); err != nil {
		t.Fatal(err)
	}
	var items []testimage.File
	for name, target := range links {
		items = append(items, testimage.File{Name: name, Link: target})
	}
	linked := append(layer(t, items...), buf.Bytes()...)
	// Two tars in a row: the first without its end.
	made := w.mustImport(bytes.Replace(linked, make([]byte, 1024), nil, 1), ImportOptions{})
	w.look("overlayfs", made.ChainID.String(), func(root string) { wantFile(t, root+"/etc/new", "2") })
}

func TestImportCancelled(t *testing.T) {
	w := newWorld(t)
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo", here)))
	// At every status that is told.
	for _, at := range []string{Loading, Loaded, Unpacking, Unpacked} {
		ctx, cancel := context.WithCancel(bg)
		made, err := w.Import(ctx, scope, bytes.NewReader(archive), ImportOptions{}, func(p Progress) {
			if p.Status == at {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, %v", at, made, err)
		}
		w.empty()
	}
}

func TestProgress(t *testing.T) {
	w := newWorld(t)
	l := layout(t, testimage.Gzip, small(t, "demo", here))
	seen := map[digest.Digest][]string{}
	_, err := w.Import(bg, scope, bytes.NewReader(archiveOf(t, l)), ImportOptions{}, func(p Progress) {
		if p.Offset > p.Total || p.Total != int64(len(l.Blobs[p.Digest])) {
			t.Errorf("%+v", p)
		}
		if got := seen[p.Digest]; len(got) == 0 || got[len(got)-1] != p.Status {
			seen[p.Digest] = append(got, p.Status)
		}
	})
	if err != nil || len(seen) != 4 {
		t.Fatal(len(seen), err)
	}
	for d, got := range seen {
		want := []string{Loading, Loaded}
		if bytes.HasPrefix(l.Blobs[d], []byte{0x1f, 0x8b}) {
			want = append(want, Unpacking, Unpacked)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", d, got)
		}
	}
}

// onMessage is a log that calls do when there is a message.
type onMessage struct {
	slog.Handler
	message string
	do      func()
}

func (o onMessage) Enabled(context.Context, slog.Level) bool { return true }

func (o onMessage) Handle(_ context.Context, r slog.Record) error {
	if r.Message == o.message {
		o.do()
	}
	return nil
}

// TestLeaseEndsMeanwhile: where the lease of the client goes, and what came with it, no
// image is named.
func TestLeaseEndsMeanwhile(t *testing.T) {
	w := newWorld(t)
	leases := w.db.Leases(scope)
	if _, err := leases.Create(bg, "mine", nil); err != nil {
		t.Fatal(err)
	}
	w.Log = slog.New(onMessage{slog.DiscardHandler, "image unpacked", func() {
		if err := leases.Delete(bg, "mine"); err != nil {
			t.Error(err)
		}
		w.collect()
	}})
	leased := metadata.Scope{Namespace: scope.Namespace, Lease: "mine"}
	archive := archiveOf(t, layout(t, testimage.Gzip, small(t, "demo:1", here)))
	_, err := w.Import(bg, leased, bytes.NewReader(archive), ImportOptions{}, nil)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "lease") {
		t.Error(err)
	}
	w.empty()
}
