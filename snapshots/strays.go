package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
)

// Strays lists the names in the directory of snapshots that are no numbers.
func (d *Dirs) Strays(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		f, err := os.Open(d.dir)
		if err != nil {
			yield("", fmt.Errorf("list snapshot directories: %w", err))
			return
		}
		defer f.Close()
		for {
			if err := context.Cause(ctx); err != nil {
				yield("", fmt.Errorf("list snapshot directories: %w", err))
				return
			}
			entries, err := f.ReadDir(batch)
			for _, entry := range entries {
				if d.isStray(entry.Name()) && !yield(entry.Name(), nil) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield("", fmt.Errorf("list snapshot directories: %w", err))
				return
			}
		}
	}
}

// isStray tells whether what has a name is no directory of a snapshot.
func (d *Dirs) isStray(name string) bool {
	fi, err := os.Lstat(filepath.Join(d.dir, name))
	if err != nil {
		return false // gone meanwhile
	}
	_, ok := number(name)
	return !ok || !fi.IsDir()
}

// RemoveStray removes what Strays has listed, unless it is a stray no more.
func (d *Dirs) RemoveStray(_ context.Context, name string) error {
	if name == "" || filepath.Base(name) != name || !d.isStray(name) {
		return nil
	}
	path := filepath.Join(d.dir, name)
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return os.Remove(path)
	}
	return removeTree(path)
}

// Intact tells what is wrong with the directory of a snapshot, or with the
// directories in it that parts names.
func (d *Dirs) Intact(id ID, parts ...string) error {
	for _, part := range append([]string{""}, parts...) {
		path := filepath.Join(d.Path(id), part)
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return &os.PathError{Op: "look into", Path: path, Err: errors.New("it is no directory")}
		}
	}
	return nil
}
