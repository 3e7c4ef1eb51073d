package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
)

const (
	refFile   = "ref"
	stateFile = "state.json"
	dataFile  = "data"

	maxRef   = 64 << 10 // bytes
	maxState = 64 << 10 // bytes
)

// state is what is kept beside an ingest's bytes.
type state struct {
	StartedAt time.Time     `json:"started_at"`
	Total     int64         `json:"total,omitempty"`
	Expected  digest.Digest `json:"expected,omitempty"`
	Boot      string        `json:"boot"` // id of the boot that the bytes are from
}

// errDamaged says that a directory is no whole ingest.
var errDamaged = errors.New("not a whole ingest")

// Ingest implements Store. A digest in want that is none is passed over.
func (s *Disk) Ingest(ctx context.Context, ref string, want Expect) (Ingest, error) {
	if ref == "" || len(ref) > maxRef {
		return nil, fmt.Errorf("ingest ref of %d bytes (1 to %d): %w", len(ref), maxRef, errdefs.ErrInvalidArgument)
	}
	if want.Digest.Validate() != nil {
		want.Digest = ""
	}
	if err := s.hold(ref); err != nil {
		return nil, err
	}
	w, err := s.openIngest(ctx, ref, want)
	if err != nil {
		s.release(ref)
		return nil, fmt.Errorf("ingest %q: %w", ref, err)
	}
	return w, nil
}

// openIngest opens or makes the ingest of a ref that is held.
func (s *Disk) openIngest(ctx context.Context, ref string, want Expect) (*ingest, error) {
	dir := refDir(ref)
	st, err := s.readState(dir, ref)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errDamaged):
		st, err = s.makeIngest(dir, ref, want)
	case err != nil:
	case st.Boot != s.boot || st.Total > 0 && want.Size > 0 && st.Total != want.Size:
		st, err = s.makeIngest(dir, ref, want)
	default:
		err = s.updateState(dir, &st, want)
	}
	if err != nil {
		return nil, err
	}
	return s.newWriter(ctx, dir, ref, st)
}

// makeIngest makes the directory of an ingest with no bytes in it, in place of
// whatever is there. It gets its name when it is whole.
func (s *Disk) makeIngest(dir, ref string, want Expect) (state, error) {
	st := state{StartedAt: s.now().UTC(), Total: max(want.Size, 0), Expected: want.Digest, Boot: s.boot}
	if err := s.discard(dir); err != nil {
		return st, err
	}
	data, err := json.Marshal(st)
	if err != nil {
		return st, err
	}
	temp := tempName(dir)
	if err := s.dir.Mkdir(temp, 0o700); err != nil {
		return st, err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{refFile, []byte(ref)}, {stateFile, data}, {dataFile, nil}} {
		if err := s.dir.WriteFile(filepath.Join(temp, file.name), file.data, 0o600); err != nil {
			return st, errors.Join(err, s.dir.RemoveAll(temp))
		}
	}
	if err := durable.RenameVolatile("content.ingest", s.path(temp), s.path(dir)); err != nil {
		return st, errors.Join(err, s.dir.RemoveAll(temp))
	}
	return st, nil
}

// updateState notes what a later writer knows better.
func (s *Disk) updateState(dir string, st *state, want Expect) error {
	was := *st
	if want.Size > 0 {
		st.Total = want.Size
	}
	if want.Digest != "" {
		st.Expected = want.Digest
	}
	if *st == was {
		return nil
	}
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return durable.WriteVolatile("content.ingest", s.path(filepath.Join(dir, stateFile)), data, 0o600)
}

// readState reads what is known of the ingest in dir. ref "" stands for any.
// fs.ErrNotExist: there is none; errDamaged: what is there is not whole.
func (s *Disk) readState(dir, ref string) (state, error) {
	var st state
	if _, err := s.dir.Lstat(dir); err != nil {
		return st, err
	}
	if stored, err := s.readSmall(filepath.Join(dir, refFile), maxRef); err != nil {
		return st, err
	} else if ref != "" && ref != string(stored) {
		return st, fmt.Errorf("another ref in %s: %w", dir, errDamaged)
	}
	data, err := s.readSmall(filepath.Join(dir, stateFile), maxState)
	if err != nil {
		return st, err
	}
	err = json.Unmarshal(data, &st)
	if err == nil && st.Expected != "" {
		err = st.Expected.Validate()
	}
	if err != nil {
		return st, fmt.Errorf("%s: %w: %w", stateFile, err, errDamaged)
	}
	return st, nil
}

// readSmall reads a small file of an ingest. Missing or too long is damage.
func (s *Disk) readSmall(path string, limit int64) ([]byte, error) {
	f, err := s.dir.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, errDamaged)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes: %w", path, limit, errDamaged)
	}
	return data, err
}

// Status implements Store.
func (s *Disk) Status(_ context.Context, ref string) (IngestInfo, error) {
	st, err := s.status(refDir(ref), ref)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
		return IngestInfo{}, fmt.Errorf("ingest %q: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return IngestInfo{}, fmt.Errorf("ingest %q: %w", ref, err)
	}
	return st, nil
}

// status looks at the ingest in dir; ref "" stands for any.
func (s *Disk) status(dir, ref string) (IngestInfo, error) {
	st, err := s.readState(dir, ref)
	if err != nil {
		return IngestInfo{}, err
	}
	if ref == "" {
		text, err := s.readSmall(filepath.Join(dir, refFile), maxRef)
		if err != nil {
			return IngestInfo{}, err
		}
		if ref = string(text); refDir(ref) != dir {
			return IngestInfo{}, fmt.Errorf("another ref in %s: %w", dir, errDamaged)
		}
	}
	fi, err := s.dir.Lstat(filepath.Join(dir, dataFile))
	if err != nil {
		return IngestInfo{}, err
	}
	info := IngestInfo{Ref: ref, Total: st.Total, Expected: st.Expected, StartedAt: st.StartedAt}
	if st.Boot == s.boot {
		info.Offset = fi.Size()
	}
	info.UpdatedAt = fi.ModTime()
	return info, nil
}

// Ingests implements Store. Directories that are no ingests are passed over.
func (s *Disk) Ingests(ctx context.Context) iter.Seq2[IngestInfo, error] {
	return func(yield func(IngestInfo, error) bool) {
		for entry, err := range s.entries(ctx, ingestDir) {
			if err != nil {
				yield(IngestInfo{}, err)
				return
			}
			if !entry.IsDir() {
				continue
			}
			info, err := s.status(filepath.Join(ingestDir, entry.Name()), "")
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
				continue // ended meanwhile
			}
			if err != nil {
				err = fmt.Errorf("ingest in %s: %w", entry.Name(), err)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// Abort implements Store.
func (s *Disk) Abort(_ context.Context, ref string) error {
	if err := s.hold(ref); err != nil {
		return err
	}
	defer s.release(ref)
	dir := refDir(ref)
	if _, err := s.dir.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ingest %q: %w", ref, errdefs.ErrNotFound)
	}
	if err := s.discard(dir); err != nil {
		return fmt.Errorf("abort ingest %q: %w", ref, err)
	}
	return nil
}

// discard removes the directory of an ingest whose ref is held, and what an
// earlier attempt has left. It loses its name first, so that no half of it can
// be taken for an ingest.
func (s *Disk) discard(dir string) error {
	temp := tempName(dir)
	if err := s.dir.RemoveAll(temp); err != nil {
		return err
	}
	err := durable.RenameVolatile("content.discard", s.path(dir), s.path(temp))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.dir.RemoveAll(temp)
}

// tidy brings the store into the state that this process may rely on: names
// that the last one did not flush are flushed, leftovers of its writers gone.
func (s *Disk) tidy() error {
	algorithms, err := fs.ReadDir(s.dir.FS(), blobsDir)
	if err != nil {
		return err
	}
	for _, entry := range algorithms {
		if entry.IsDir() {
			if err := durable.SyncDir("content.open", s.path(filepath.Join(blobsDir, entry.Name()))); err != nil {
				return err
			}
		}
	}
	ingests, err := fs.ReadDir(s.dir.FS(), ingestDir)
	if err != nil {
		return err
	}
	for _, entry := range ingests {
		name := filepath.Join(ingestDir, entry.Name())
		// Without its bytes: a commit went that far. Not whole: a power cut took its
		// small files. Temporary: its writer is dead.
		if entry.IsDir() && !isTemp(entry.Name()) {
			_, err := s.status(name, "")
			if err == nil {
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
				return err
			}
		}
		if err := s.dir.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// hold makes the caller the only one to touch the ingest of ref.
func (s *Disk) hold(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.held[ref]; ok {
		return fmt.Errorf("ingest %q is locked by another writer: %w", ref, errdefs.ErrUnavailable)
	}
	s.held[ref] = struct{}{}
	return nil
}

func (s *Disk) release(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, ref)
}

// path makes a path within the store absolute. Only for paths of the store's
// own making: a digest's, a hash's.
func (s *Disk) path(name string) string { return filepath.Join(s.root, name) }

func refDir(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(ingestDir, hex.EncodeToString(sum[:]))
}

func tempName(dir string) string {
	return filepath.Join(filepath.Dir(dir), durable.TempPrefix+filepath.Base(dir))
}

func isTemp(name string) bool {
	return strings.HasPrefix(name, durable.TempPrefix)
}
