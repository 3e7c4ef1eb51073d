package snapshots

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
)

// Names in a driver's directory beside the plain numbers.
const (
	newPrefix = ".new-" // a number's directory that is being made
	oldPrefix = ".old-" // one that is being removed
)

// Dirs are the numbered directories of a driver, one for each snapshot:
//
//	ROOT/snapshots/
//	├── N/         whole: it was renamed into place
//	├── .new-N/    being made
//	└── .old-N/    being removed
//
// A process that dies leaves the latter two behind. IDs lists them with the
// rest, and Remove removes them, so the orphan sweep needs no special case.
type Dirs struct {
	root string
	// inOrder tells that the file system keeps all names in one journal: to flush
	// a directory flushes all names and attributes that were made before, anywhere
	// in it, and nothing but the bytes of files is left.
	inOrder bool
	apart   bool     // see Mkdirs
	hold    *os.File // of root, open for the errors that Flush has to report
	dir     string   // ROOT/snapshots
}

// OpenDirs opens the directories under root, which it makes if need be.
func OpenDirs(root string) (*Dirs, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	d := &Dirs{root: root, dir: filepath.Join(root, "snapshots")}
	if err := durable.MkdirAll("snapshots.open", d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if d.hold, err = os.Open(d.dir); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	d.look()
	return d, nil
}

// topDir is ext4's flag of a directory whose subdirectories have nothing to do with
// each other (FS_TOPDIR_FL of linux/fs.h, chattr's T).
const topDir = 0x00020000

// Mkdirs makes the directories of a snapshot in dir: the one for its files, and others.
//
// Without a journal, ext4 doesn't give out an inode again for up to five minutes: it
// looks at each of them for every file, and an image that is pulled after another was
// removed takes several times as long. There the files of a layer begin in a part of
// the disk that has room. Where ext4 begins to seek such a part depends on the name
// alone, so the directory has a random one at first. To seek takes a time that grows
// with the disk, so it is not for what holds few files.
func (d *Dirs) Mkdirs(dir string, layer bool, files string, others ...string) error {
	const mode = 0o711
	for _, name := range others {
		if err := os.Mkdir(filepath.Join(dir, name), mode); err != nil {
			return err
		}
	}
	if !layer || !d.apart {
		return os.Mkdir(filepath.Join(dir, files), mode)
	}
	spread(dir)
	first := filepath.Join(dir, files+"-"+rand.Text())
	if err := os.Mkdir(first, mode); err != nil {
		return err
	}
	return durable.RenameVolatile("snapshots.create.apart", first, filepath.Join(dir, files))
}

// spread gives a directory topDir, where it can.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	fd := int(f.Fd())
	if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// look knows xfs, and ext4 with and without a journal. The first two have one log for
// all names, and write it in order.
func (d *Dirs) look() {
	var (
		fs unix.Statfs_t
		st unix.Stat_t
	)
	fd := int(d.hold.Fd())
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil {
		return
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		d.inOrder = fs.Type == unix.XFS_SUPER_MAGIC
		return
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return
	}
	task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "journal_task"))
	if err == nil {
		d.inOrder, d.apart = journal(string(task))
	}
}

// journal reads what ext4's journal_task says: the process that writes the journal, or
// "<none>". It is 0 where that one is in no pid namespace that we see, which tells
// neither.
func journal(task string) (has, hasNone bool) {
	task = strings.TrimSpace(task)
	n, err := strconv.Atoi(task)
	return err == nil && n > 0, task == "<none>"
}

// Close lets go of the directory.
func (d *Dirs) Close() error { return d.hold.Close() }

// Root is the directory that OpenDirs was given.
func (d *Dirs) Root() string { return d.root }

// Path is where the directory of id is, once it is made.
func (d *Dirs) Path(id ID) string { return filepath.Join(d.dir, id.String()) }

// Places are where the directory of id may be, whole or not.
func (d *Dirs) Places(id ID) []string {
	return []string{d.Path(id), d.temp(newPrefix, id), d.temp(oldPrefix, id)}
}

// Create makes the directory of id. fill puts into it what belongs there; then
// it gets its name, which is flushed together with the directories in it that made
// names. What else fill makes it has to flush itself. After an error nothing is
// left. AlreadyExists: it is there, whoever made it.
//
// Flushing comes after the rename so that one journal commit of the file system
// covers both. A power cut between them leaves a number without a row.
func (d *Dirs) Create(ctx context.Context, id ID, fill func(dir string) error, made ...string) (err error) {
	path := d.Path(id)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("snapshot directory %s: %w", path, errdefs.ErrAlreadyExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	temp := d.temp(newPrefix, id)
	if err := removeTree(temp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create snapshot directory %s: %w", path, err), d.Remove(context.WithoutCancel(ctx), id))
		}
	}()
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	if err := fill(temp); err != nil {
		return err
	}
	if err := durable.RenameVolatile("snapshots.create", temp, path); err != nil {
		return err
	}
	flushed := []string{d.dir}
	if !d.inOrder {
		flushed = append(flushed, path)
		for _, name := range made {
			flushed = append(flushed, filepath.Join(path, name))
		}
	}
	return durable.SyncDir("snapshots.create", flushed...)
}

// Flush returns once everything that was written below the root is on disk.
// That is the whole file system: one call for many small files, which would
// take a flush each.
func (d *Dirs) Flush() error {
	return durable.SyncFSOf("snapshots.flush", d.hold)
}

// Remove removes the directory of id. It loses its number first, so that no
// half of it can be taken for the snapshot, and mounts in it go before files
// do. That it is gone already is no error. The removal is not flushed: a power
// cut may bring back a number, which has no row then.
func (d *Dirs) Remove(_ context.Context, id ID) error {
	old := d.temp(oldPrefix, id)
	if err := removeTree(old); err != nil {
		return fmt.Errorf("remove snapshot directory %s: %w", id, err)
	}
	err := durable.RenameVolatile("snapshots.remove", d.Path(id), old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove snapshot directory %s: %w", id, err)
	}
	if err := errors.Join(removeTree(old), removeTree(d.temp(newPrefix, id))); err != nil {
		return fmt.Errorf("remove snapshot directory %s: %w", id, err)
	}
	return nil
}

// IDs lists the numbers that are on disk, whole or not. A number may come
// twice. Other names are passed over.
func (d *Dirs) IDs(ctx context.Context) iter.Seq2[ID, error] {
	return func(yield func(ID, error) bool) {
		f, err := os.Open(d.dir)
		if err != nil {
			yield(0, fmt.Errorf("list snapshot directories: %w", err))
			return
		}
		defer f.Close()
		for {
			if err := context.Cause(ctx); err != nil {
				yield(0, fmt.Errorf("list snapshot directories: %w", err))
				return
			}
			names, err := f.Readdirnames(batch)
			for _, name := range names {
				if id, ok := number(name); ok && !yield(id, nil) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(0, fmt.Errorf("list snapshot directories: %w", err))
				return
			}
		}
	}
}

// number reads the number in a name, whole or temporary.
func number(name string) (ID, bool) {
	name = strings.TrimPrefix(strings.TrimPrefix(name, newPrefix), oldPrefix)
	n, err := strconv.ParseUint(name, 10, 64)
	return ID(n), err == nil && ID(n).String() == name
}

func (d *Dirs) temp(prefix string, id ID) string {
	return filepath.Join(d.dir, prefix+id.String())
}
