package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

func open(t *testing.T, root string) snapshots.Driver {
	t.Helper()
	d, err := Open(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestSuite(t *testing.T) { snapshottest.Run(t, open) }

// kinds are the results that the vectors name.
var kinds = map[string]error{
	"ok": nil, "already_exists": errdefs.ErrAlreadyExists, "not_found": errdefs.ErrNotFound,
	"failed_precondition": errdefs.ErrFailedPrecondition, "invalid_argument": errdefs.ErrInvalidArgument,
}

// TestVectors makes the calls of the recorded session and compares every answer
// and every mount, to the order of the options.
func TestVectors(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	data, err := os.ReadFile("testdata/overlay-mounts.json")
	if err != nil {
		t.Fatal(err)
	}
	var session struct {
		Steps []struct {
			Op, Key, Name, Parent, Result string
			Labels                        map[string]string
			Mounts                        []mount.Mount
		}
	}
	if err := json.Unmarshal(data, &session); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	d, err := Open(Config{Root: root, Options: []string{"userxattr", "index"}, Remap: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := snapshottest.NewStore(d)
	for i, step := range session.Steps {
		var mounts []mount.Mount
		var err error
		switch step.Op {
		case "prepare":
			mounts, err = s.Create(snapshots.Active, step.Key, step.Parent, step.Labels)
		case "view":
			mounts, err = s.Create(snapshots.View, step.Key, step.Parent, step.Labels)
		case "mounts":
			mounts, err = s.Mounts(step.Key)
		case "commit":
			err = s.Commit(step.Name, step.Key, "")
		case "remove":
			err = s.Remove(step.Key)
		default:
			t.Fatalf("step %d: unknown call %q", i, step.Op)
		}
		want, known := kinds[step.Result]
		if !known || !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("step %d, %s %s: %v; want %s", i, step.Op, step.Key, err, step.Result)
		}
		equal := func(a, b mount.Mount) bool {
			return a.Type == b.Type && strings.ReplaceAll(a.Source, root, "ROOT") == b.Source && a.Target == b.Target &&
				slices.EqualFunc(a.Options, b.Options, func(a, b string) bool { return strings.ReplaceAll(a, root, "ROOT") == b })
		}
		if !slices.EqualFunc(mounts, step.Mounts, equal) {
			t.Errorf("step %d, %s %s: mounts %v; want %v", i, step.Op, step.Key, mounts, step.Mounts)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(root, "snapshots", "7", "fs"), &st); err != nil || st.Uid != 100000 || st.Gid != 100000 {
		t.Errorf("the mapped root does not own its layer: %d:%d, %v", st.Uid, st.Gid, err)
	}
}

func TestLayout(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	d := open(t, root)
	for id, o := range map[snapshots.ID]snapshots.CreateOptions{1: {Kind: snapshots.Active}, 2: {Kind: snapshots.View}} {
		if err := d.Create(t.Context(), id, nil, o); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]os.FileMode{"": 0o700, "snapshots": 0o700, "snapshots/1": 0o700, "snapshots/1/fs": 0o755, "snapshots/1/work": 0o711, "snapshots/2/fs": 0o755} {
		fi, err := os.Stat(filepath.Join(root, path))
		if err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, fi, err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "snapshots/2/work")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a view has a work directory: %v", err)
	}
}

// TestApart: on ext4 without a journal a layer's tree begins apart from others', a
// container's doesn't.
func TestApart(t *testing.T) {
	root := t.TempDir()
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(root, &fs), unix.Stat(root, &st)); err != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("needs ext4: %#x, %v", fs.Type, err)
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		t.Skip(err)
	}
	journal, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "journal_task"))
	if err != nil {
		t.Skip(err)
	}
	d := open(t, root)
	for id, layer := range map[snapshots.ID]bool{1: true, 2: false} {
		if err := d.Create(t.Context(), id, nil, snapshots.CreateOptions{Kind: snapshots.Active, Layer: layer}); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(root, "snapshots", id.String()))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const topDir = 0x20000 // FS_TOPDIR_FL of linux/fs.h
		want := layer && string(journal) == "<none>\n"
		if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err != nil || flags&topDir != 0 != want {
			t.Errorf("layer %v, journal %q: flags %#x, %v", layer, journal, flags, err)
		}
	}
}

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	root := filepath.Join(t.TempDir(), "root")
	// What a process leaves that is killed while probing.
	merged := filepath.Join(root, probeDir, "merged")
	if err := os.MkdirAll(merged, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (mount.Mount{Type: "tmpfs", Source: "tmpfs"}).Do(merged); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Probe(root); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	for _, bad := range []string{"relative", "/tmp/a:b", "/tmp/a,b", `/tmp/a\b`} {
		if err := Probe(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", bad, err)
		}
		if _, err := Open(Config{Root: bad}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestProbeSaysWhy asks for a root on file systems that can't hold an upper
// directory.
func TestProbeSaysWhy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	root := t.TempDir()
	for name, m := range map[string]mount.Mount{
		"upper": {Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/usr/bin:/usr/lib"}},
		"ro":    {Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
	} {
		if err := m.Do(root); err != nil {
			t.Fatal(err)
		}
		err := Probe(root)
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
		if err := mount.UnmountAll(root); err != nil {
			t.Fatal(err)
		}
	}
	// An overlay with an upper directory can be written to, but not be one.
	base := t.TempDir()
	for _, name := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + base + "/l", "upperdir=" + base + "/u", "workdir=" + base + "/w"}}
	if err := m.Do(root); err != nil {
		t.Fatal(err)
	}
	err := Probe(root)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "upper") {
		t.Errorf("%v", err)
	}
	t.Log(err)
	if err := mount.UnmountAll(root); err != nil {
		t.Fatal(err)
	}
}

func TestMappedRoot(t *testing.T) {
	for mapping, want := range map[string]int{"0:100000:65536": 100000, "1:5:10,0:7:1": 7, "0:0:4294967295": 0} {
		if got, err := mappedRoot(mapping); err != nil || got != want {
			t.Errorf("%s: %d, %v", mapping, got, err)
		}
	}
	for _, mapping := range []string{"", "0", "0:1", "0:1:2:3", "1:1:1", "0:1:0", "a:b:c", "0:-1:5", "0:99999999999:1"} {
		if got, err := mappedRoot(mapping); err == nil {
			t.Errorf("%q: %d", mapping, got)
		}
	}
	d, err := Open(Config{Root: filepath.Join(t.TempDir(), "root"), Remap: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	o := snapshots.CreateOptions{Kind: snapshots.Active, Labels: map[string]string{labelUIDMapping: "nonsense"}}
	if err := d.Create(t.Context(), 1, nil, o); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%v", err)
	}
}

// TestHostOptions reads the module's parameters as different kernels show them.
func TestHostOptions(t *testing.T) {
	for name, c := range map[string]struct {
		parameters map[string]string
		mapped     bool
		want       string
	}{
		"defaults":         {map[string]string{"index": "N\n", "metacopy": "N\n", "redirect_dir": "N\n"}, false, "index=off"},
		"built otherwise":  {map[string]string{"index": "Y\n", "metacopy": "Y\n", "redirect_dir": "Y\n"}, false, "index=off,metacopy=off,redirect_dir=off"},
		"older than 4.13":  {map[string]string{"redirect_dir": "Y\n"}, false, "redirect_dir=off"},
		"user namespace":   {map[string]string{"index": "N\n", "metacopy": "Y\n", "redirect_dir": "Y\n"}, true, "index=off,userxattr"},
		"no module at all": {nil, false, ""},
	} {
		dir := t.TempDir()
		for parameter, value := range c.parameters {
			if err := os.WriteFile(filepath.Join(dir, parameter), []byte(value), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(hostOptions(dir, c.mapped), ","); got != c.want {
			t.Errorf("%s: %s; want %s", name, got, c.want)
		}
	}
}

// TestLayersKeepTheirBytes mounts with the module's defaults for metacopy and
// redirect_dir turned the wrong way by options before ours: ours win, and the
// layer holds the bytes of a file of which only the owner changed.
func TestLayersKeepTheirBytes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	leak.Check(t)
	d, err := Open(Config{Root: filepath.Join(t.TempDir(), "root"), Options: []string{"metacopy=on", "redirect_dir=on", "metacopy=off", "redirect_dir=off"}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	active := snapshots.CreateOptions{Kind: snapshots.Active}
	for id, parents := range [][]snapshots.ID{1: nil, 2: {1}} {
		if id == 0 {
			continue
		}
		if err := d.Create(t.Context(), snapshots.ID(id), parents, active); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.fs(1), "file"), []byte("bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounts, err := d.Mounts(2, []snapshots.ID{1}, active)
	if err != nil {
		t.Fatal(err)
	}
	err = mount.WithTemp(t.Context(), mounts, func(root string) error {
		return os.Lchown(filepath.Join(root, "file"), 5, 6)
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(d.fs(2), "file"))
	if err != nil || string(data) != "bytes" {
		t.Errorf("the layer has %q, %v", data, err)
	}
}
