package diff

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
)

// trees are two trees as a snapshotter would give them: a layer, and an overlay over
// it that was changed through a mount.
type trees struct{ left, right []mount.Mount }

func newTrees(t *testing.T, options ...string) trees {
	t.Helper()
	base := t.TempDir()
	path := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"lower", "upper", "work", "merged", "lower/d"} {
		if err := os.Mkdir(path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lower/gone", "lower/d/kept", "lower/d/gone", "lower/changed"} {
		if err := os.WriteFile(path(name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append([]string{
		"workdir=" + path("work"), "upperdir=" + path("upper"), "lowerdir=" + path("lower"), "index=off",
	}, options...)}
	if err := m.Do(path("merged")); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	defer func() {
		if err := mount.UnmountAll(path("merged")); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range []string{"merged/gone", "merged/d/gone"} {
		if err := os.Remove(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"merged/changed", "merged/d/new"} {
		if err := os.WriteFile(path(name), bytes.Repeat([]byte(name), 5000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return trees{
		left:  []mount.Mount{{Type: "bind", Source: path("lower"), Options: []string{"ro", "rbind"}}},
		right: []mount.Mount{m},
	}
}

// listed makes a layer and lists what a directory has once it is applied over left.
func listed(t *testing.T, tr trees, layer []byte, mediaType string) string {
	t.Helper()
	to := t.TempDir()
	for _, name := range []string{"gone", "d/kept", "d/gone", "changed"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), []byte("lower/"+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Apply(t.Context(), bytes.NewReader(layer), mediaType, []mount.Mount{{Type: "bind", Source: to, Options: []string{"rbind"}}}, Options{}); err != nil {
		t.Fatal(err)
	}
	var names []string
	_ = filepath.WalkDir(to, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			data, _ := os.ReadFile(path)
			name, _ := filepath.Rel(to, path)
			names = append(names, name+"="+string(data[:min(14, len(data))]))
		}
		return err
	})
	slices.Sort(names)
	return strings.Join(names, " ")
}

const changedTree = "changed=merged/changed d/kept=lower/d/kept d/new=merged/d/newme"

// TestMake makes layers in every form, of an upper directory and of mounted trees.
func TestMake(t *testing.T) {
	leak.Check(t)
	tr := newTrees(t)
	apart := tr
	apart.left = append([]mount.Mount(nil), tr.left...)
	apart.left[0].Source += "/." // not what the overlay is over, as far as names tell
	for name, c := range map[string]struct {
		tr         trees
		mediaType  string
		compressed bool
	}{
		"default":    {tr, "", true},
		"plain":      {tr, ociLayer, false},
		"zstd":       {tr, ociLayer + "+zstd", true},
		"docker":     {tr, dockerLayer + ".gzip", true},
		"two mounts": {apart, "", true},
	} {
		var first, again bytes.Buffer
		made, err := Make(t.Context(), &first, c.tr.left, c.tr.right, MakeOptions{MediaType: c.mediaType})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if made.Compressed != c.compressed {
			t.Errorf("%s: compressed %t", name, made.Compressed)
		}
		if _, err := Make(t.Context(), &again, c.tr.left, c.tr.right, MakeOptions{MediaType: c.mediaType}); err != nil || !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Errorf("%s: made again it differs, %v", name, err)
		}
		if got := listed(t, c.tr, first.Bytes(), made.MediaType); got != changedTree {
			t.Errorf("%s: %s", name, got)
		}
		result, err := Apply(t.Context(), bytes.NewReader(first.Bytes()), made.MediaType, []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}}}, Options{})
		if err != nil || result.DiffID != made.DiffID || result.Size != made.Size {
			t.Errorf("%s: %+v, applied as %+v, %v", name, made, result, err)
		}
	}
}

// TestMakeInUse makes a layer of an overlay that is mounted, and of one without a
// tree below.
func TestMakeInUse(t *testing.T) {
	tr := newTrees(t)
	at := t.TempDir()
	if err := mount.All(tr.right, at); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(at); err != nil {
			t.Error(err)
		}
	}()
	for name, left := range map[string][]mount.Mount{"upper": tr.left, "all": nil} {
		var out bytes.Buffer
		if _, err := Make(t.Context(), &out, left, tr.right, MakeOptions{MediaType: ociLayer}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if has := bytes.Contains(out.Bytes(), []byte("lower/d/kept")); has != (left == nil) {
			t.Errorf("%s: what did not change is in it: %t", name, has)
		}
	}
}

// TestMakeMapped has the container's owners in the layer.
func TestMakeMapped(t *testing.T) {
	tr := newTrees(t)
	upper := ""
	for _, o := range tr.right[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	if err := unix.Lchown(filepath.Join(upper, "changed"), 100005, 200007); err != nil {
		t.Fatal(err)
	}
	// user 100005 and group 200007 may read and write, as do owner, group, mask.
	acl := func(uid, gid uint32) []byte {
		out := binary.LittleEndian.AppendUint32(nil, 2)
		for _, e := range []struct {
			tag, perm uint16
			id        uint32
		}{{0x01, 6, 1<<32 - 1}, {0x02, 6, uid}, {0x04, 4, 1<<32 - 1}, {0x08, 6, gid}, {0x10, 6, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
			out = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(out, e.tag), e.perm)
			out = binary.LittleEndian.AppendUint32(out, e.id)
		}
		return out
	}
	const aclName = "system.posix_acl_access"
	hasACL := unix.Setxattr(filepath.Join(upper, "changed"), aclName, acl(100005, 200007), 0) == nil
	tr.right[0].Options = append([]string{"uidmap=0:300000:5,5:100005:65536", "gidmap=0:200000:65536"}, tr.right[0].Options...)
	var out bytes.Buffer
	made, err := Make(t.Context(), &out, tr.left, tr.right, MakeOptions{Epoch: time.Unix(1000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if _, err := Apply(t.Context(), &out, made.MediaType, []mount.Mount{{Type: "bind", Source: to, Options: []string{"rbind"}}}, Options{}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(to, "changed"), &st); err != nil || st.Uid != 5 || st.Gid != 7 || st.Mtim.Sec != 1000 {
		t.Errorf("owner %d:%d at %d, %v", st.Uid, st.Gid, st.Mtim.Sec, err)
	}
	if !hasACL {
		t.Log("this file system has no access control lists")
		return
	}
	got := make([]byte, 256)
	n, err := unix.Getxattr(filepath.Join(to, "changed"), aclName, got)
	if err != nil || !bytes.Equal(got[:n], acl(5, 7)) {
		t.Errorf("access control list %x, %v; want %x", got[:max(n, 0)], err, acl(5, 7))
	}
}

func TestMakeRefuses(t *testing.T) {
	leak.Check(t)
	tr := newTrees(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx       context.Context
		right     []mount.Mount
		mediaType string
		kind      func(error) bool
	}{
		"no mounts": {t.Context(), nil, "", errdefs.IsInvalidArgument},
		"type":      {t.Context(), tr.right, "text/plain", errdefs.IsNotImplemented},
		"wrapped":   {t.Context(), tr.right, ociLayer + "+encrypted", errdefs.IsNotImplemented},
		"cancelled": {cancelled, tr.right, "", errdefs.IsCanceled},
		"mapping":   {t.Context(), []mount.Mount{{Type: "bind", Source: "/", Options: []string{"uidmap=5:1", "gidmap=0:1:1"}}}, "", errdefs.IsInvalidArgument},
	} {
		if _, err := Make(c.ctx, io.Discard, tr.left, c.right, MakeOptions{MediaType: c.mediaType}); !c.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestChanges tells the same of an upper directory and of mounted trees.
func TestChanges(t *testing.T) {
	leak.Check(t)
	tr := newTrees(t)
	apart := append([]mount.Mount(nil), tr.left...)
	apart[0].Source += "/."
	mapped := append([]mount.Mount(nil), tr.right...)
	mapped[0].Options = append([]string{"uidmap=0:100000:65536", "gidmap=0:100000:65536"}, tr.right[0].Options...)
	const want = "C /changed,C /d,D /d/gone,A /d/new,D /gone"
	for name, c := range map[string]trees{
		"upper": tr, "mounts": {apart, tr.right}, "mapped": {tr.left, mapped},
	} {
		var all []string
		err := Changes(t.Context(), c.left, c.right, func(c archive.Change) error {
			all = append(all, c.Kind.String()+" "+c.Path)
			return nil
		})
		slices.SortFunc(all, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
		if got := strings.Join(all, ","); got != want || err != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if err := Changes(t.Context(), tr.left, nil, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no mounts: %v", err)
	}
}
