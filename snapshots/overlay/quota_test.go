package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/snapshots"
	"github.com/berthd/berth/snapshots/snapshottest"
)

// quotaDisks are the file systems that can limit projects: how they are made, and
// the options without which they only count.
var quotaDisks = map[string]struct {
	mkfs            []string
	size            int64
	limit, noLimits []string
}{
	"ext4": {[]string{"mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"}, 64 << 20, []string{"prjquota"}, nil},
	"xfs":  {[]string{"mkfs.xfs", "-q"}, 320 << 20, []string{"prjquota"}, []string{"pqnoenforce"}},
}

// cant skips a test; in the virtual machine, which has all it needs, it fails.
func cant(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("BERTH_VM") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// quotaDisk mounts a disk of its own and gives its image.
func quotaDisk(t *testing.T, kind string, options []string) (image, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	how := quotaDisks[kind]
	mkfs, err := exec.LookPath(how.mkfs[0])
	if err != nil {
		cant(t, "%v", err)
	}
	leak.Check(t)
	image = filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, how.size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, append(how.mkfs[1:], image)...).CombinedOutput(); err != nil {
		cant(t, "%s: %s", mkfs, out)
	}
	return image, mountDisk(t, kind, image, options...)
}

func mountDisk(t *testing.T, kind, image string, options ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := (mount.Mount{Type: kind, Source: image, Options: append([]string{"loop"}, options...)}).Do(root); err != nil {
		cant(t, "this kernel has no project quotas: %v", err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(root); err != nil {
			t.Error(err)
		}
	})
	return root
}

// onQuotaDisks runs a test on each file system that can limit projects.
func onQuotaDisks(t *testing.T, test func(t *testing.T, kind, image, root string)) {
	for kind, how := range quotaDisks {
		t.Run(kind, func(t *testing.T) {
			image, root := quotaDisk(t, kind, how.limit)
			if err := ProbeQuota(root); err != nil {
				t.Fatal(err)
			}
			test(t, kind, image, root)
		})
	}
}

// limited opens a driver whose snapshots may take 4 MiB.
func limited(t *testing.T, root string) *Driver {
	t.Helper()
	d, err := Open(Config{Root: root, Quota: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// made makes a snapshot and gives its project.
func made(t *testing.T, d *Driver, id snapshots.ID, parents ...snapshots.ID) uint32 {
	t.Helper()
	if err := d.Create(context.Background(), id, parents, snapshots.CreateOptions{Kind: snapshots.Active}); err != nil {
		t.Fatal(err)
	}
	own, err := projectAt(filepath.Join(d.dirs.Path(id), workDir))
	if err != nil || !own.known || own.id < firstProject {
		t.Fatalf("project %+v, %v", own, err)
	}
	return own.id
}

// limitAt is the limit of a project, in bytes.
func limitAt(t *testing.T, root string, p uint32) uint64 {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	is, err := usage(f, p)
	if err != nil {
		t.Fatal(err)
	}
	return is.hard * quotaBlock
}

// unprivileged calls do as root without the right to go beyond limits.
func unprivileged(t *testing.T, do func() error) (err error) {
	t.Helper()
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // for ever: the thread ends with its rights
		var data [2]unix.CapUserData
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err = unix.Capget(&header, &data[0]); err != nil {
			return
		}
		data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if err = unix.Capset(&header, &data[0]); err == nil {
			err = do()
		}
	})
	done.Wait()
	return err
}

// fill writes a file of some MiB.
func fill(path string, mib int) error {
	return os.WriteFile(path, make([]byte, mib<<20), 0o644)
}

func full(err error) bool { return errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC) }

// TestQuota writes more than a layer may take.
func TestQuota(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, _, _, root string) {
		s := snapshottest.NewStore(limited(t, root))
		mounts, err := s.Create(snapshots.Active, "small", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(mounts[0].Source, "file")
		if err := unprivileged(t, func() error { return fill(file, 8) }); !full(err) {
			t.Errorf("more than the limit: %v", err)
		}
		// What is only flushed, for a commit that may fail yet, keeps its limit.
		if err := s.Driver.Flush(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if err := unprivileged(t, func() error { return fill(file, 8) }); !full(err) {
			t.Errorf("more than the limit, after a flush: %v", err)
		}
		if err := errors.Join(os.Remove(file), s.Commit("layer", "small", "")); err != nil {
			t.Fatal(err)
		}
		mounts, err = s.Create(snapshots.Active, "unpacking", "", map[string]string{labelDiffID: "sha256:x"})
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(filepath.Join(mounts[0].Source, "file"), 8); err != nil {
			t.Errorf("a layer of an image: %v", err)
		}
		if _, err := s.Create(snapshots.Active, "any", "layer", map[string]string{labelMaxSize: "0"}); err != nil {
			t.Fatal(err)
		}
		if err := fill(filepath.Join(root, "snapshots/3/fs/file"), 8); err != nil {
			t.Errorf("no limit: %v", err)
		}
		if err := s.Commit("image", "unpacking", ""); err != nil {
			t.Fatal(err)
		}
		if mounts, err = s.Create(snapshots.Active, "work", "image", map[string]string{labelMaxSize: "2MiB"}); err != nil {
			t.Fatal(err)
		}
		inOverlay(t, mounts)
	})
}

// inOverlay uses a layer of 2 MiB that lies on one of 8: there the limit holds for
// whoever writes, as the kernel writes in the name of who mounted, without the
// right to go beyond it.
func inOverlay(t *testing.T, mounts []mount.Mount) {
	at := t.TempDir()
	if err := mount.All(mounts, at); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(at); err != nil {
			t.Error(err)
		}
	}()
	if err := fill(at+"/new", 3); !full(err) {
		t.Errorf("more than the limit: %v", err)
	}
	if err := errors.Join(os.Remove(at+"/new"), fill(at+"/new", 1)); err != nil {
		t.Errorf("less than the limit: %v", err)
	}
	if f, err := os.OpenFile(at+"/file", os.O_WRONLY, 0); !full(err) {
		t.Errorf("copy up more than the limit: %v, %v", f, err)
	}
	// The upper and the working directory are of one project: nothing between
	// them, and nothing within the layer, is a move to another one.
	if err := errors.Join(os.Remove(at+"/file"), os.MkdirAll(at+"/a/b", 0o755), os.Mkdir(at+"/c", 0o755), os.WriteFile(at+"/a/b/f", []byte("x"), 0o644),
		os.Link(at+"/a/b/f", at+"/c/link"), durable.RenameVolatile("test", at+"/a", at+"/c/a"), durable.RenameVolatile("test", at+"/c/a/b/f", at+"/moved"),
		unix.Mknod(at+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Symlink("moved", at+"/symlink"), unix.Mkfifo(at+"/fifo", 0o600)); err != nil {
		t.Error(err)
	}
}

// movedDir tells a process that TestQuotaUserNamespace has started what to move.
const movedDir = "BERTH_TEST_MOVED_DIR"

// TestQuotaUserNamespace: who is root in a user namespace alone can't take a
// directory of a layer to another project, where no limit is.
func TestQuotaUserNamespace(t *testing.T) {
	if path := os.Getenv(movedDir); path != "" {
		if err := setProject(path, 0); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			t.Error(err)
		}
		return
	}
	onQuotaDisks(t, func(t *testing.T, _, _, root string) {
		const user = 100000
		s := snapshottest.NewStore(limited(t, root))
		if _, err := s.Create(snapshots.Active, "making", "", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit("layer", "making", ""); err != nil {
			t.Fatal(err)
		}
		mounts, err := s.Create(snapshots.Active, "work", "layer", nil)
		if err != nil {
			t.Fatal(err)
		}
		at, err := os.MkdirTemp("/tmp", "berth-t-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(at)
		if err := mount.All(mounts, at); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := mount.UnmountAll(at); err != nil {
				t.Error(err)
			}
		}()
		dir := filepath.Join(at, "dir")
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, user, user)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestQuotaUserNamespace$", "-test.v")
		cmd.Env = append(os.Environ(), movedDir+"="+dir)
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 65536}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		// The owner outside of one can (docs/operations.md says so).
		if err := setProject(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// TestQuotaProject: no two snapshots that are there, and nothing that somebody
// still has open, have one project; a limit goes with its snapshot and not before.
func TestQuotaProject(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, _, _, top string) {
		ctx := context.Background()
		root := filepath.Join(top, "one")
		d, other := limited(t, root), limited(t, filepath.Join(top, "other"))
		p := made(t, d, 1)
		if p != firstProject+1 {
			t.Errorf("project %d", p)
		}
		// The same number of another daemon on this file system.
		q := made(t, other, 1)
		if q == p {
			t.Errorf("project %d has two layers", p)
		}
		for _, layer := range []*Driver{d, other} {
			file := filepath.Join(layer.fs(1), "file")
			if err := unprivileged(t, func() error { return fill(file, 3) }); err != nil {
				t.Errorf("within its own limit: %v", err)
			}
		}
		// The next daemon.
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = limited(t, root)
		if err := unprivileged(t, func() error { return fill(filepath.Join(d.fs(1), "more"), 3) }); !full(err) {
			t.Errorf("with another daemon: %v", err)
		}
		open, err := os.Open(filepath.Join(d.fs(1), "file"))
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		if err := d.Remove(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if is := limitAt(t, top, p); is != 0 {
			t.Errorf("the limit of a removed snapshot: %d", is)
		}
		if is := limitAt(t, top, q); is != 4<<20 {
			t.Errorf("the limit of the other: %d", is)
		}
		// As after the loss of its database: the number comes again, and the file
		// that is open still counts.
		if again := made(t, d, 1); again == p || again == q {
			t.Errorf("project %d of %d and %d again", again, p, q)
		}
		// One whose making, or whose removal, was cut off.
		for i, prefix := range []string{".new-", ".old-"} {
			id := snapshots.ID(10 + i)
			p := made(t, d, id)
			if err := durable.RenameVolatile("test", d.dirs.Path(id), filepath.Join(root, "snapshots", prefix+id.String())); err != nil {
				t.Fatal(err)
			}
			if err := d.Remove(ctx, id); err != nil {
				t.Fatal(err)
			}
			if is := limitAt(t, top, p); is != 0 {
				t.Errorf("%s: limit %d", prefix, is)
			}
		}
		// One that the container has moved to the project of another.
		p = made(t, d, 20)
		if err := setProject(d.fs(20), q); err != nil {
			t.Fatal(err)
		}
		if err := d.Remove(ctx, 20); err != nil {
			t.Fatal(err)
		}
		if is, others := limitAt(t, top, p), limitAt(t, top, q); is != 0 || others != 4<<20 {
			t.Errorf("limits %d, %d", is, others)
		}
		// An administrator's own project of the whole directory.
		const admins = firstProject + 1<<20
		if err := setProject(filepath.Join(root, "snapshots"), admins); err != nil {
			t.Fatal(err)
		}
		within(t, top, admins, 32<<20)
		unlimited, err := Open(Config{Root: root})
		if err != nil {
			t.Fatal(err)
		}
		defer unlimited.Close()
		if err := unlimited.Create(ctx, 30, nil, snapshots.CreateOptions{Kind: snapshots.Active}); err != nil {
			t.Fatal(err)
		}
		made(t, d, 31)
		if err := errors.Join(d.Remove(ctx, 30), d.Remove(ctx, 31)); err != nil {
			t.Fatal(err)
		}
		if is := limitAt(t, top, admins); is != 32<<20 {
			t.Errorf("the administrator's limit: %d", is)
		}
	})
}

func within(t *testing.T, root string, p uint32, limit int64) {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := setLimit(f, p, limit); err != nil {
		t.Fatal(err)
	}
}

// TestQuotaAtOnce: daemons that make snapshots of the same numbers at the same
// time give each a project of its own.
func TestQuotaAtOnce(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, _, _, top string) {
		const daemons, each = 3, 8
		var (
			all  sync.WaitGroup
			mu   sync.Mutex
			seen = map[uint32]string{}
		)
		for i := range daemons {
			d := limited(t, filepath.Join(top, string(rune('a'+i))))
			all.Go(func() {
				for id := snapshots.ID(1); id <= each; id++ {
					if err := d.Create(context.Background(), id, nil, snapshots.CreateOptions{Kind: snapshots.Active}); err != nil {
						t.Error(err)
						return
					}
					work := filepath.Join(d.dirs.Path(id), workDir)
					own, err := projectAt(work)
					mu.Lock()
					if before := seen[own.id]; err != nil || before != "" {
						t.Errorf("%s has the project of %s: %d, %v", work, before, own.id, err)
					}
					seen[own.id] = work
					mu.Unlock()
				}
			})
		}
		all.Wait()
		for p := range seen {
			if is := limitAt(t, top, p); is != 4<<20 {
				t.Errorf("limit %d", is)
			}
		}
	})
}

// TestQuotaPowerCut: a limit is on disk once its snapshot is.
func TestQuotaPowerCut(t *testing.T) {
	onQuotaDisks(t, func(t *testing.T, kind, image, root string) {
		d := limited(t, root)
		p := made(t, d, 1)
		after := filepath.Join(t.TempDir(), "disk")
		if out, err := exec.Command("cp", "--sparse=always", image, after).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		options := quotaDisks[kind].limit
		if kind == "xfs" {
			options = append([]string{"nouuid"}, options...) // its twin is mounted
		}
		next := limited(t, mountDisk(t, kind, after, options...))
		own, err := projectAt(filepath.Join(next.dirs.Path(1), workDir))
		if err != nil || own.id != p {
			t.Errorf("project %d became %+v, %v", p, own, err)
		}
		if is := limitAt(t, next.Root(), p); is != 4<<20 {
			t.Errorf("limit %d", is)
		}
	})
}

// TestQuotaNotKept: a file system that has projects and keeps no limits is none
// that limits can be asked of; what was limited before can be removed.
func TestQuotaNotKept(t *testing.T) {
	for kind, how := range quotaDisks {
		t.Run(kind, func(t *testing.T) {
			image, root := quotaDisk(t, kind, how.limit)
			d := limited(t, root)
			made(t, d, 1)
			if err := errors.Join(d.Close(), mount.UnmountAll(root)); err != nil {
				t.Fatal(err)
			}
			for _, options := range [][]string{how.noLimits, {"noquota"}} {
				root := mountDisk(t, kind, image, options...)
				if err := ProbeQuota(root); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "prjquota") {
					t.Errorf("%v: %v", options, err)
				} else {
					t.Log(err)
				}
				if len(options) == 0 || options[0] != "noquota" {
					if err := mount.UnmountAll(root); err != nil {
						t.Fatal(err)
					}
					continue
				}
				d := limited(t, root)
				if err := d.Create(context.Background(), 2, nil, snapshots.CreateOptions{Kind: snapshots.Active}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
					t.Errorf("create: %v", err)
				}
				if err := d.Remove(context.Background(), 1); err != nil {
					t.Errorf("remove: %v", err)
				}
				if _, err := os.Stat(d.dirs.Path(1)); !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		})
	}
}
