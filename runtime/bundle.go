package runtime

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/record"
)

// Names under STATE.
const (
	bundlesDir = "io.containerd.runtime.v2.task"
	socketsDir = "s"
	ociDir     = "runc"
	bootIDFile = "boot-id"
)

// A name in a namespace's directory that starts with a dot is no bundle: it is
// being made, or being removed. Whoever finds one at start removes it.
const (
	newPrefix  = ".new-"
	goneSuffix = "-gone-"
)

// socketPath is where the shim of a task listens.
func socketPath(state, ns, id string) string {
	sum := sha256.Sum256([]byte(ns + "/" + id))
	return filepath.Join(state, socketsDir, hex.EncodeToString(sum[:16]))
}

// bundles is the directory of all bundles, STATE/io.containerd.runtime.v2.task.
type bundles string

func (b bundles) path(ns, id string) string { return filepath.Join(string(b), ns, id) }

// make makes the bundle of a task: the intent to create it. It is there whole
// or not at all.
func (b bundles) make(in record.Intent, config []byte) (err error) {
	parent := filepath.Join(string(b), in.Namespace)
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, newPrefix+in.ID+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTree(dir))
		}
	}()
	if err := letPass(dir, config); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, record.ConfigFile), config, 0o600); err != nil {
		return err
	}
	if err := record.Write("runtime.intent", dir, record.IntentFile, in); err != nil {
		return err
	}
	// The process that is to run in rootfs may not be root; it needs no more of
	// the path to it than to pass.
	if err := os.Mkdir(filepath.Join(dir, record.RootfsDir), 0o711); err != nil {
		return err
	}
	final := b.path(in.Namespace, in.ID)
	if err := durable.RenameVolatile("runtime.bundle", dir, final); err != nil {
		if _, serr := os.Lstat(dir); errors.Is(serr, fs.ErrNotExist) {
			dir = final // it happened all the same
		}
		return err
	}
	return nil
}

// letPass lets the root of a container with a user namespace pass through its bundle
// to the root file system: it is another user, and the runtime mounts as that one.
// It is a group's right of one directory, as nobody else needs it.
func letPass(dir string, config []byte) error {
	var s struct {
		Linux struct {
			GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		} `json:"linux"`
	}
	if json.Unmarshal(config, &s) != nil {
		return nil // the runtime says what is wrong with it
	}
	for _, m := range s.Linux.GIDMappings {
		if m.ContainerID == 0 && m.HostID != 0 && m.Size > 0 {
			return errors.Join(os.Lchown(dir, -1, int(m.HostID)), os.Chmod(dir, 0o710))
		}
	}
	return nil
}

// remove unmounts what is mounted in a bundle and frees its name. It can be
// called again after it failed. What it returns is the bundle's new name, with a
// dot, which is to be removed; "" if there is none.
func (b bundles) remove(ns, id string) (gone string, err error) {
	dir := b.path(ns, id)
	if err := unmountRootfs(dir); err != nil {
		return "", err
	}
	gone = filepath.Join(string(b), ns, "."+id+goneSuffix+rand.Text()[:8])
	if err := durable.RenameVolatile("runtime.remove", dir, gone); err != nil {
		if _, serr := os.Lstat(dir); !errors.Is(serr, fs.ErrNotExist) {
			return "", err
		}
		if _, serr := os.Lstat(gone); errors.Is(serr, fs.ErrNotExist) {
			return "", nil // removed before
		}
	}
	return gone, nil
}

// unmountRootfs unmounts a bundle's root file system and all in it.
func unmountRootfs(dir string) error {
	rootfs := filepath.Join(dir, record.RootfsDir)
	// An empty directory that can be removed is no mount point: no need to read
	// the mount table, which has a line for each mount of the machine.
	if err := unix.Rmdir(rootfs); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err := mount.UnmountAll(rootfs); err != nil {
		return fmt.Errorf("unmount root file system: %w", err)
	}
	return nil
}

// name is a bundle's.
type name struct{ ns, id string }

// list finds the bundles, and the leftovers that are to be removed.
func (b bundles) list(log *slog.Logger) (found []name, leftovers []string, err error) {
	spaces, err := os.ReadDir(string(b))
	if err != nil {
		return nil, nil, err
	}
	for _, space := range spaces {
		dir := filepath.Join(string(b), space.Name())
		if !space.IsDir() || names.Namespace(space.Name()) != nil {
			log.Warn("not a namespace's directory, left alone", "path", dir)
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case strings.HasPrefix(e.Name(), "."):
				leftovers = append(leftovers, path)
			case !e.IsDir() || names.Identifier(e.Name()) != nil:
				log.Warn("not a bundle, left alone", "path", path)
			default:
				found = append(found, name{space.Name(), e.Name()})
			}
		}
	}
	return found, leftovers, nil
}

// sweep removes what list called leftovers, and what remove has left. What it
// can't remove is for the next start.
func sweep(log *slog.Logger, leftovers ...string) {
	for _, path := range leftovers {
		if err := removeGone(path); err != nil {
			log.Warn("leftover of a bundle not removed; the next start tries again", "path", path, "error", err)
		}
	}
}

// removeGone removes what is left of a bundle of whose task all is told. First goes
// what says that it was one: of half a bundle the next daemon would tell again, and
// wrongly, since the mark that it was told, or the exit, may be gone by then.
func removeGone(path string) error {
	if err := unmountRootfs(path); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(path, record.IntentFile)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	return removeTree(path)
}
