package logs

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"syscall"
)

// Used is what a container's log takes on disk.
type Used struct {
	Namespace, ID string
	Bytes         int64
}

// blockSize is the unit in which files tell what they take.
const blockSize = 512

// Usage tells what each log takes.
func (s *Store) Usage(ctx context.Context) ([]Used, error) {
	var errs []error
	var out []Used
	for _, namespace := range s.list(".", &errs) {
		for _, id := range s.list(namespace, &errs) {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			used := Used{Namespace: namespace, ID: id}
			err := fs.WalkDir(s.root.FS(), path.Join(namespace, id), func(_ string, entry fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				info, err := entry.Info()
				if err != nil {
					return err
				}
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					used.Bytes += st.Blocks * blockSize
				}
				return nil
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed or rotated meanwhile
				errs = append(errs, err)
			}
			out = append(out, used)
		}
	}
	return out, errors.Join(errs...)
}
