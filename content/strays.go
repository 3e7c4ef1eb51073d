package content

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
)

// Strays lists the names in the store's directory that are nothing of its own:
// no blob, no whole ingest, nothing that somebody is making or removing.
func (s *Disk) Strays(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, dir := range []string{".", blobsDir, ingestDir} {
			for entry, err := range s.entries(ctx, dir) {
				if errors.Is(err, fs.ErrNotExist) {
					break // the whole directory: what should be in there is missed elsewhere
				}
				if err != nil {
					yield("", err)
					return
				}
				name := filepath.Join(dir, entry.Name())
				if s.isStray(name) {
					if !yield(name, nil) {
						return
					}
				} else if dir == blobsDir && !s.strayBlobs(ctx, name, yield) {
					return
				}
			}
		}
	}
}

// strayBlobs yields what is among the blobs of an algorithm and is none.
func (s *Disk) strayBlobs(ctx context.Context, dir string, yield func(string, error) bool) bool {
	for entry, err := range s.entries(ctx, dir) {
		if errors.Is(err, fs.ErrNotExist) {
			return true
		}
		if err != nil {
			return yield("", err)
		}
		if name := filepath.Join(dir, entry.Name()); s.isStray(name) && !yield(name, nil) {
			return false
		}
	}
	return true
}

// isStray tells whether what is at a path of the store is nothing of its own.
func (s *Disk) isStray(name string) bool {
	fi, err := s.dir.Lstat(name)
	if err != nil {
		return false // gone meanwhile
	}
	parts := strings.Split(name, string(filepath.Separator))
	switch {
	case strings.HasPrefix(parts[len(parts)-1], durable.TempPrefix) && parts[0] == ingestDir:
		return false // a writer's, or swept at the next start
	case len(parts) == 1:
		return !fi.IsDir() || parts[0] != blobsDir && parts[0] != ingestDir
	case len(parts) == 2 && parts[0] == blobsDir:
		return !fi.IsDir() || !digest.Algorithm(parts[1]).Available()
	case len(parts) == 3 && parts[0] == blobsDir:
		return !fi.Mode().IsRegular() || digest.NewDigestFromEncoded(digest.Algorithm(parts[1]), parts[2]).Validate() != nil
	case len(parts) == 2 && parts[0] == ingestDir:
		if !fi.IsDir() {
			return true
		}
		_, err := s.status(name, "")
		return (errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged)) && !s.inHand(name) && s.present(name)
	}
	return false
}

func (s *Disk) present(name string) bool {
	_, err := s.dir.Lstat(name)
	return err == nil
}

// inHand tells whether somebody works on the ingest in dir.
func (s *Disk) inHand(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.held {
		if refDir(ref) == dir {
			return true
		}
	}
	return false
}

// RemoveStray removes what Strays has listed, unless it is a stray no more.
func (s *Disk) RemoveStray(_ context.Context, name string) error {
	if !filepath.IsLocal(name) || !s.isStray(name) {
		return nil
	}
	return s.dir.RemoveAll(name)
}
