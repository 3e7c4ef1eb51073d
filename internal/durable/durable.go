package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/fault"
)

// TempPrefix starts the name of every file that waits to be renamed. Whoever
// finds one whose writer is gone may remove it.
const TempPrefix = ".tmp-"

// step runs do between the two fates of a fault point.
func step(point string, do func() error) error {
	if err := fault.Before(point); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return fault.After(point)
}

// WriteFile makes the file at path hold data, or leaves it as it was: data is
// written to a temporary file beside it and flushed, the file is renamed and
// its directory flushed.
func WriteFile(op, path string, data []byte, perm fs.FileMode) error {
	return replace(op, path, data, perm, true)
}

// WriteVolatile is WriteFile without the flushes: whole after a crash of the
// process, undefined after a power cut.
func WriteVolatile(op, path string, data []byte, perm fs.FileMode) error {
	return replace(op, path, data, perm, false)
}

func replace(op, path string, data []byte, perm fs.FileMode, flush bool) (err error) {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, TempPrefix+name+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAndRemove(f))
		}
	}()
	err = step(op+".write", func() error {
		if err := f.Chmod(perm); err != nil {
			return err
		}
		_, err := f.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	if flush {
		if err := SyncFile(op, f); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if flush {
		return Rename(op, f.Name(), path)
	}
	return RenameVolatile(op, f.Name(), path)
}

// closeAndRemove drops a temporary file; that it is closed or renamed already
// is no error.
func closeAndRemove(f *os.File) error {
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// SyncFile flushes the file's data and size to disk. Point: op.sync.
func SyncFile(op string, f *os.File) error {
	return step(op+".sync", f.Sync)
}

// SyncDir flushes the names in directories to disk: of several side by side, which
// disks can make one flush of. Point: op.syncdir, once.
func SyncDir(op string, dirs ...string) error {
	return step(op+".syncdir", func() error {
		errs := make([]error, len(dirs))
		var group sync.WaitGroup
		for i, dir := range dirs[1:] {
			group.Go(func() { errs[i+1] = syncDir(dir) })
		}
		errs[0] = syncDir(dirs[0])
		group.Wait()
		return errors.Join(errs...)
	})
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// SyncFS flushes the whole file system that holds path (syncfs(2), which
// reports write errors since 5.8). Point: op.syncfs.
func SyncFS(op, path string) error {
	return step(op+".syncfs", func() error {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := unix.Syncfs(int(d.Fd())); err != nil {
			err = fmt.Errorf("syncfs %s: %w", path, err)
			return errors.Join(err, d.Close())
		}
		return d.Close()
	})
}

// Rename moves oldpath to newpath and flushes the directories of both. What
// oldpath holds must have been flushed before. Points: op.rename, op.syncdir.
func Rename(op, oldpath, newpath string) error {
	if err := RenameVolatile(op, oldpath, newpath); err != nil {
		return err
	}
	from, to := filepath.Dir(oldpath), filepath.Dir(newpath)
	if err := SyncDir(op, to); err != nil {
		return err
	}
	if from == to {
		return nil
	}
	return SyncDir(op, from)
}

// RenameVolatile moves oldpath to newpath and flushes nothing. Point:
// op.rename.
func RenameVolatile(op, oldpath, newpath string) error {
	return step(op+".rename", func() error { return os.Rename(oldpath, newpath) })
}

// Mkdir makes a directory and flushes its parent. Points: op.mkdir, op.syncdir.
func Mkdir(op, path string, perm fs.FileMode) error {
	if err := step(op+".mkdir", func() error { return os.Mkdir(path, perm) }); err != nil {
		return err
	}
	return SyncDir(op, filepath.Dir(path))
}

// MkdirAll makes a directory and whichever of its parents are missing, and
// flushes every directory that got a new name in it. Points: op.mkdir,
// op.syncdir.
func MkdirAll(op, path string, perm fs.FileMode) error {
	info, err := os.Stat(path)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := MkdirAll(op, parent, perm); err != nil {
			return err
		}
	}
	if err := Mkdir(op, path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Remove removes a file or an empty directory and flushes its parent, so that
// the removal is not undone by a power cut. That it is gone already is no
// error. Points: op.remove, op.syncdir.
func Remove(op, path string) error {
	err := step(op+".remove", func() error {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return SyncDir(op, filepath.Dir(path))
}

// Writeback tells the kernel to start writing n bytes of f from off on to disk
// and does not wait. It makes a later SyncFile short and promises nothing, so
// errors don't matter here: SyncFile reports them.
func Writeback(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// SyncFSOf flushes the whole file system that f is on. It reports what went
// wrong in writing back anything there since f was opened (since 5.8), so f
// should be opened before the writes that matter. Point: op.syncfs.
func SyncFSOf(op string, f *os.File) error {
	return step(op+".syncfs", func() error {
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return fmt.Errorf("syncfs %s: %w", f.Name(), err)
		}
		return nil
	})
}
