// Package logs owns the files that keep the output of detached containers: where
// they are, reading them while they grow and are put aside, and their removal with
// the container's record. It writes nothing into them; shims do.
//
//	DIR/NAMESPACE/ID/
//	├── log.json          how the log is kept (options.go)
//	├── output.log        the current file
//	└── output.log.1 ...  earlier ones, the youngest first
package logs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"

	"github.com/berthd/berth/internal/names"
)

// File is the name of a log in its container's directory.
const File = "output.log"

const (
	dirMode  = 0o700
	fileMode = 0o640
)

// Store is the directory of all logs. Namespaces and ids become names in it, so
// every one is checked first, and nothing is reached through a link that leads
// out of it.
type Store struct {
	dir  string
	root *os.Root

	// mu keeps a log from being removed while it is made: what was looked up
	// before Remove's question about the record stays true until it acted.
	mu sync.Mutex
}

// Open makes the directory if it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("open logs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open logs: %w", err)
	}
	return &Store{dir: dir, root: root}, nil
}

// Close lets go of the directory.
func (s *Store) Close() error { return s.root.Close() }

// place checks both names and gives the path of the container's directory below
// the store's.
func place(namespace, id string) (string, error) {
	if err := names.Namespace(namespace); err != nil {
		return "", err
	}
	if err := names.Identifier(id); err != nil {
		return "", fmt.Errorf("container: %w", err)
	}
	return path.Join(namespace, id), nil
}

// Recorded tells whether a container has a record.
type Recorded func(ctx context.Context, namespace, id string) (bool, error)

// Remove removes a container's log unless there is a record of that name
// (again).
func (s *Store) Remove(ctx context.Context, namespace, id string, recorded Recorded) error {
	dir, err := place(namespace, id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if is, err := recorded(ctx, namespace, id); err != nil || is {
		return err
	}
	if err := s.root.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove log of container %q: %w", id, err)
	}
	// A namespace whose last log is gone leaves no directory; one that has more
	// refuses.
	_ = s.root.Remove(namespace)
	return nil
}

// Sweep removes the log of every container without a record. It is for the
// start, before anybody can Prepare: a log may be made before its record.
func (s *Store) Sweep(ctx context.Context, recorded Recorded) error {
	var errs []error
	for _, namespace := range s.list(".", &errs) {
		for _, id := range s.list(namespace, &errs) {
			if _, err := place(namespace, id); err != nil {
				continue // not ours
			}
			if err := s.Remove(ctx, namespace, id, recorded); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Store) list(dir string, errs *[]error) []string {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil {
		*errs = append(*errs, fmt.Errorf("list logs: %w", err))
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}
