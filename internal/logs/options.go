package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
)

// OptionsFile is the name of the file in which a container's directory says how
// its log is kept. A log without it is of a time when all were plain.
const OptionsFile = "log.json"

// maxOptions bounds what is read of an OptionsFile.
const maxOptions = 64 << 10

// Bounds of Options.
const (
	minSize  = 4 << 10
	maxFiles = 1000
)

// Options say how a log is kept. The zero value is the default.
type Options struct {
	// Plain is a log of the bytes alone, in one file that grows: for shims that do
	// not know log://.
	Plain bool `json:"plain,omitempty"`
	// Input gives the process an input for those who attach.
	Input bool `json:"input,omitempty"`
	// MaxSize is the size in bytes at which a file is put aside; 0: 16 MiB.
	MaxSize int64 `json:"max_size,omitempty"`
	// MaxFiles is how many files there are at most; 0: four.
	MaxFiles int `json:"max_files,omitempty"`
}

func (o Options) check() error {
	switch {
	case o.MaxSize != 0 && o.MaxSize < minSize:
		return fmt.Errorf("a log's files of %d bytes; %d are the fewest: %w", o.MaxSize, minSize, errdefs.ErrInvalidArgument)
	case o.MaxFiles < 0 || o.MaxFiles > maxFiles:
		return fmt.Errorf("a log of %d files; %d are the most: %w", o.MaxFiles, maxFiles, errdefs.ErrInvalidArgument)
	case o.Plain && o.Input:
		return fmt.Errorf("an input for those who attach is not for a plain log: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// uri is the address for a shim.
func (o Options) uri(file string) string {
	if o.Plain {
		return (&url.URL{Scheme: "file", Path: file}).String()
	}
	query := url.Values{"format": {"cri"}}
	if o.MaxSize != 0 {
		query.Set("max-size", strconv.FormatInt(o.MaxSize, 10))
	}
	if o.MaxFiles != 0 {
		query.Set("max-files", strconv.Itoa(o.MaxFiles))
	}
	if o.Input {
		query.Set("input", "true")
	}
	return (&url.URL{Scheme: "log", Path: file, RawQuery: query.Encode()}).String()
}

// options reads how the log in a directory is kept. What can't be understood is the
// default: an entry that is none is given as it is.
func (s *Store) options(dir string) (Options, error) {
	f, err := s.root.Open(path.Join(dir, OptionsFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := s.root.Stat(path.Join(dir, File)); err != nil {
			return Options{}, err
		}
		return Options{Plain: true}, nil
	}
	if err != nil {
		return Options{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxOptions))
	if err != nil {
		return Options{}, err
	}
	var o Options
	if json.Unmarshal(data, &o) != nil || o.check() != nil {
		return Options{}, nil
	}
	return o, nil
}

// keep writes how a log is kept.
func (s *Store) keep(dir string, o Options) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	f, err := s.root.OpenFile(path.Join(dir, OptionsFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Prepare makes an empty log, or keeps the one that is there, and gives the address
// at which a shim writes to it. The options are those of a new log; one that is
// there stays as it was made.
func (s *Store) Prepare(namespace, id string, o Options) (uri string, err error) {
	dir, err := place(namespace, id)
	if err != nil {
		return "", err
	}
	if err := o.check(); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(err error) (string, error) { return "", fmt.Errorf("prepare log of container %q: %w", id, err) }
	if err := s.root.MkdirAll(dir, dirMode); err != nil {
		return fail(err)
	}
	switch there, err := s.options(dir); {
	case err == nil:
		o = there
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	default:
		if err := s.keep(dir, o); err != nil {
			return fail(err)
		}
	}
	f, err := s.root.OpenFile(path.Join(dir, File), os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return fail(err)
	}
	if err := f.Close(); err != nil {
		return fail(err)
	}
	return o.uri(filepath.Join(s.dir, dir, File)), nil
}
