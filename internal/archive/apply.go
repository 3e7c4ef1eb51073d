package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// DefaultMaxSize is the limit on a layer's content where Options has none.
const DefaultMaxSize = 1 << 40

const (
	bufferSize = 256 << 10 // bytes read or written at once
	maxName    = 4095      // bytes in a name or link target, as the kernel has it
)

// Options say in which form a layer is laid down. The zero value is the plain
// form.
type Options struct {
	// Overlay chooses overlayfs's form of whiteouts, for a root that is an
	// upper directory.
	Overlay bool
	// Lower are the directories below that upper directory, nearest first.
	// Without them directories that the layer does not bring are made with
	// mode 0755, and every whiteout is made whether it hides anything or not.
	Lower []string
	// WaitLower gives those directories instead of Lower, for a layer that is laid
	// down while the ones below it are not there yet. It is called once, when
	// something depends on them, if anything does, and may block.
	WaitLower func() ([]string, error)
	// UserNS is for a process in a user namespace: device nodes and extended
	// attributes that only the initial namespace may set are left out, and
	// overlayfs's attributes are those of its option userxattr.
	UserNS bool
	// UserXattr is for an overlay that is mounted with its option userxattr: its
	// attributes are those in user.*.
	UserXattr bool
	// Copy says that the tar is no layer, but has files for a tree that is in use:
	// there are no whiteouts, directories that are there stay as they are, and a
	// directory is neither replaced by another file nor the other way round, which is
	// FailedPrecondition.
	Copy bool
	// Header may change an entry before it is laid down; nil: nothing. Its error ends
	// Apply.
	Header func(*tar.Header) error
	// MaxSize is how many bytes the content of all files may have together,
	// holes included; 0 is DefaultMaxSize. Beyond it is ResourceExhausted.
	MaxSize int64
}

// applier applies one layer. It is not safe for concurrent use.
type applier struct {
	ctx   context.Context
	o     Options
	open  *dirs
	below *below
	shown shown
	buf   []byte
	left  int64 // of Options.MaxSize
	// brought is what this layer has laid down; nil when the root was empty, as
	// then all there is comes from this layer.
	brought map[mark]struct{}
	// borrowed is what was copied up from below to have a place for something
	// of this layer; nil if nothing was.
	borrowed  map[mark]struct{}
	whiteouts bool // this layer has made some, in overlay form
	seed      maphash.Seed
}

// Apply lays the layer tar r down over the directory root and returns how many
// bytes of file content it wrote. It may read beyond the end of the tar. After
// an error root holds part of the layer. What the tar is to blame for is
// InvalidArgument; errors of r and of ctx are returned as they are.
func Apply(ctx context.Context, root string, r io.Reader, o Options) (size int64, err error) {
	a, err := newApplier(ctx, root, o)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	src := &source{ctx: ctx, r: r}
	tr := tar.NewReader(bufio.NewReaderSize(src, bufferSize))
	limit := a.left
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && src.failed == nil {
			return limit - a.left, nil
		}
		if err == nil {
			err = a.entry(h, tr)
		} else {
			err = src.blame(err)
		}
		if err == nil {
			continue
		}
		if src.failed != nil { // whatever came of it
			err = src.failed
		}
		if h != nil {
			what := "layer entry"
			if o.Copy {
				what = "file"
			}
			err = fmt.Errorf("%s %q: %w", what, shorten(h.Name), kind(err))
		}
		return limit - a.left, err
	}
}

func newApplier(ctx context.Context, root string, o Options) (*applier, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", root, err)
	}
	a := &applier{ctx: ctx, o: o, buf: make([]byte, bufferSize), left: o.MaxSize, seed: maphash.MakeSeed()}
	if a.left <= 0 {
		a.left = DefaultMaxSize
	}
	if a.open, err = newDirs(fd); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	empty, err := isEmpty(fd)
	if err == nil && !empty {
		a.brought = map[mark]struct{}{}
	}
	if err == nil {
		a.below, err = openBelow(o, a.opaqueName())
	}
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *applier) close() error {
	return errors.Join(a.open.close(), a.dropShown(), a.below.close())
}

// forget is for when a directory or link goes away: all that was looked up may
// be wrong then.
func (a *applier) forget() error { return errors.Join(a.open.forget(), a.dropShown()) }

// entry lays down one entry of the tar.
func (a *applier) entry(h *tar.Header, content io.Reader) (err error) {
	if err := context.Cause(a.ctx); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader { // comments, of git archive for one
		return nil
	}
	if a.o.Header != nil {
		if err := a.o.Header(h); err != nil {
			return err
		}
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	at, base := split(name)
	switch meaning, err := a.classify(at, base); {
	case err != nil:
		return err
	case meaning == plumbing:
		return nil
	case meaning == whiteout:
		return a.hide(at, strings.TrimPrefix(base, whiteoutPrefix))
	case meaning == opaque:
		return a.hideAll(at)
	case name == "" && a.o.Copy:
		return nil
	case name == "":
		return a.rootEntry(h)
	}
	parent, err := a.parent(at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.open.release(parent)) }()
	parent.touched = parent.touched || !a.o.Copy
	if err := a.create(parent, name, base, h, content); err != nil {
		return err
	}
	a.bring(parent, base)
	return nil
}

// classify tells what a name means in this tar.
func (a *applier) classify(dir, base string) (meaning, error) {
	if a.o.Copy {
		return ordinary, nil
	}
	return classify(dir, base)
}

func (a *applier) create(parent *dir, name, base string, h *tar.Header, content io.Reader) error {
	attrs, err := a.attributes(h)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return a.file(parent, base, attrs, h, content)
	case tar.TypeDir:
		return a.directory(parent, name, base, attrs)
	case tar.TypeSymlink:
		return a.symlink(parent, base, h.Linkname, attrs)
	case tar.TypeLink:
		return a.hardlink(parent, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.node(parent, base, attrs, h)
	}
	return invalid("type %q is none that a layer can have", h.Typeflag)
}

// clean turns a name of the tar into a path relative to the root, "" for the
// root itself. As in a process whose root directory it is, ".." at the top
// leads nowhere.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", invalid("the name has more than %d bytes", maxName)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", invalid("the name has a zero byte")
	}
	return path.Clean("/" + name)[1:], nil
}

// split cuts a clean path into its directory, "" for the root, and its last
// component.
func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// shorten keeps error texts readable.
func shorten(name string) string {
	const most = 256
	if len(name) > most {
		return name[:most] + "..."
	}
	return name
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

var errCut = invalid("the tar ends too early")

// kind gives errors of the file system the kind that a caller acts on.
func kind(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// source is the reader below the tar reader. It ends with the context, and
// remembers its own error, so that a failing disk is not called a bad tar.
type source struct {
	ctx    context.Context
	r      io.Reader
	failed error
}

func (s *source) Read(p []byte) (int, error) {
	if err := context.Cause(s.ctx); err != nil {
		s.failed = err
		return 0, err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.failed = err
	}
	return n, err
}

// blame says in words what the tar reader found wrong with the tar.
func (s *source) blame(err error) error {
	switch {
	case s.failed != nil:
		return s.failed
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errCut
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return invalid("not a tar, or a damaged one: %v", err)
	}
	return invalid("read the tar: %v", err)
}
