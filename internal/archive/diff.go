package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// DiffOptions say how a layer is made. The zero value keeps every time.
type DiffOptions struct {
	// Epoch is the latest time that an entry may have, later ones are set to it; the
	// zero time is no limit. See the specification of SOURCE_DATE_EPOCH.
	Epoch time.Time
	// Owner gives the ids that an entry is to have in the layer for those on disk; nil:
	// the same.
	Owner func(uid, gid int) (int, int)
}

// Diff writes to w, as a layer tar, what has to be laid down over the tree lower to
// have the tree upper; without a lower, "", that is all of upper. Files are the same
// if all their attributes and their contents are. The same two trees give the same
// bytes.
//
// Of sockets and of the times of the root directory nothing is kept. A name that
// begins with ".wh." is FailedPrecondition, as it means something else in a layer,
// and so is a file that gets shorter while it is read. After an error w has part of
// a tar.
func Diff(ctx context.Context, w io.Writer, lower, upper string, o DiffOptions) error {
	return diff(ctx, w, lower, upper, &differ{o: o})
}

// DiffUpper is Diff for a tree that is the upper directory of an overlay: its marks
// become whiteouts, and what is below is not looked at. NeedsMerge tells whether
// that will do.
func DiffUpper(ctx context.Context, w io.Writer, upper string, o DiffOptions) error {
	return diff(ctx, w, "", upper, &differ{o: o, marks: true})
}

// NeedsMerge tells whether an upper directory has what DiffUpper can't tell: only
// the kernel knows where a redirected directory is from, what a file has of which
// nothing but the attributes was copied up, and what another form of whiteouts
// hides. See "Documentation/filesystems/overlayfs.rst" of Linux. Such an overlay
// has to be mounted, for Diff.
func NeedsMerge(ctx context.Context, upper string) (found bool, err error) {
	d := &differ{ctx: ctx, lower: -1}
	if d.upper, err = openTop(upper); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Close(d.upper)) }()
	err = d.walk(&folderNode{}, func(n *folderNode, p *pair) (*folderNode, error) {
		if p.upper == nil {
			return nil, nil
		}
		_, marks, err := xattrs(p.upDir, p.base)
		if err != nil {
			return nil, err
		}
		_, redirect := marks["redirect"]
		_, metacopy := marks["metacopy"]
		if found = redirect || metacopy || marks["opaque"] == "x"; found {
			return nil, errFound
		}
		if p.isDir() {
			return &folderNode{name: n.join(p.base)}, nil
		}
		return nil, nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return found, err
}

var errFound = errors.New("found")

func diff(ctx context.Context, w io.Writer, lower, upper string, d *differ) (err error) {
	d.ctx, d.tar, d.links = ctx, tar.NewWriter(w), map[inode]string{}
	d.buf, d.other = make([]byte, bufferSize), make([]byte, bufferSize)
	d.lower = -1
	if d.upper, err = openTop(upper); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(d.upper)) }()
	if lower != "" {
		if d.lower, err = openTop(lower); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(d.lower)) }()
	}
	if lower != "" {
		d.linked = map[inode]struct{}{}
		if err := d.walk(&folderNode{written: true, below: true}, d.noteLinks); err != nil {
			return err
		}
	}
	top, err := d.top()
	if err != nil {
		return err
	}
	if err := d.walk(top, d.write); err != nil {
		return err
	}
	return d.tar.Close()
}

func openTop(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", path, err)
	}
	return fd, nil
}

// differ writes one layer.
type differ struct {
	ctx          context.Context
	o            DiffOptions
	tar          *tar.Writer
	lower, upper int  // open directories; lower may be -1
	marks        bool // upper is an overlay's
	// pack says that no layer is made, but a tar of files; as is then the name that
	// they have in it.
	pack bool
	as   string
	// links is the first name in the tar of files that have several.
	links map[inode]string
	// linked are files of upper with several names, one of which is new or changed:
	// all of them are written, so that they are links of one file again. nil: every
	// name is written anyway.
	linked     map[inode]struct{}
	buf, other []byte
}

// folderNode is a directory of upper whose entries are being written. A directory
// that did not change is written only once something in it has to be.
type folderNode struct {
	parent  *folderNode
	name    string // without a slash at its end; "" is the root
	below   bool   // lower has a directory of that name
	opaque  bool   // and all of it that is not in this one is gone; for Changes
	header  *tar.Header
	written bool
}

// join gives the name of an entry of the directory.
func (n *folderNode) join(base string) string {
	if n.name == "" {
		return base
	}
	return n.name + "/" + base
}

// pair is one name in both trees.
type pair struct {
	base         string
	upper, lower *unix.Stat_t // nil: not there
	upDir, loDir int          // the directories that have it
}

func (p *pair) isDir() bool { return p.upper != nil && p.upper.Mode&unix.S_IFMT == unix.S_IFDIR }

// bothDirs tells whether there is more to compare in it.
func (p *pair) bothDirs() bool {
	return p.isDir() && p.lower != nil && p.lower.Mode&unix.S_IFMT == unix.S_IFDIR
}

// walk calls visit for every name in a directory of either tree, in byte order, and
// then walks those that are directories in upper. No directory is open while those
// in it are walked, however deep a tree is.
func (d *differ) walk(n *folderNode, visit func(*folderNode, *pair) (*folderNode, error)) error {
	folders, err := d.level(n, visit)
	if err != nil {
		return err
	}
	for _, f := range folders {
		if err := d.walk(f, visit); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) level(n *folderNode, visit func(*folderNode, *pair) (*folderNode, error)) (folders []*folderNode, err error) {
	upper, upNames, err := d.list(d.upper, n.name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Close(upper)) }()
	lower, names := -1, upNames
	if n.below && d.lower >= 0 {
		var loNames []string
		if lower, loNames, err = d.list(d.lower, n.name); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, unix.Close(lower)) }()
		if !d.marks || n.opaque {
			names = slices.Concat(upNames, loNames)
			slices.Sort(names)
			names = slices.Compact(names)
		}
	}
	for _, base := range names {
		p := &pair{base: base, upDir: upper, loDir: lower}
		if p.upper, err = d.look(upper, base); err == nil && lower >= 0 {
			p.lower, err = d.look(lower, base)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", n.join(base), err)
		}
		folder, err := visit(n, p)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", n.join(base), err)
		}
		if folder != nil {
			folders = append(folders, folder)
		}
	}
	return folders, nil
}

// list opens a directory of a tree and reads its names, sorted.
func (d *differ) list(root int, name string) (int, []string, error) {
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, nil, fmt.Errorf("open directory %q: %w", name, os.NewSyscallError("openat2", err))
	}
	var names []string
	err = eachName(d.ctx, fd, func(base string) error { names = append(names, base); return nil })
	if err != nil {
		return -1, nil, errors.Join(fmt.Errorf("read directory %q: %w", name, err), unix.Close(fd))
	}
	slices.Sort(names)
	return fd, names, nil
}

// look gives what a name is; nil: there is nothing, or a socket, which is nothing to
// keep.
func (d *differ) look(dir int, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("fstatat", err)
	}
	return &st, nil
}

// noteLinks finds the files of which every name has to be written.
func (d *differ) noteLinks(n *folderNode, p *pair) (*folderNode, error) {
	if p.bothDirs() {
		return &folderNode{parent: n, name: n.join(p.base), below: true}, nil
	}
	if p.upper == nil {
		return nil, nil
	}
	if p.isDir() {
		return &folderNode{parent: n, name: n.join(p.base)}, nil
	}
	if p.upper.Nlink < 2 {
		return nil, nil
	}
	if _, ok := d.linked[inodeOf(p.upper)]; ok {
		return nil, nil
	}
	same, err := d.same(p)
	if err == nil && !same {
		d.linked[inodeOf(p.upper)] = struct{}{}
	}
	return nil, err
}

// write writes what the layer has of a name.
func (d *differ) write(n *folderNode, p *pair) (*folderNode, error) {
	if p.upper == nil || d.marks && isWhiteoutDevice(p.upper) {
		if d.marks && p.upper == nil { // a socket, or gone just now
			return nil, nil
		}
		if p.upper == nil && p.lower == nil {
			return nil, nil
		}
		return nil, d.hidden(n, whiteoutPrefix+p.base)
	}
	if strings.HasPrefix(p.base, whiteoutPrefix) && !d.pack {
		return nil, fmt.Errorf("a name that begins with %s can't be in a layer, rename or remove it: %w", whiteoutPrefix, errdefs.ErrFailedPrecondition)
	}
	if p.isDir() {
		return d.folder(n, p)
	}
	_, all := d.linked[inodeOf(p.upper)]
	if !all || p.upper.Nlink < 2 {
		if same, err := d.same(p); same || err != nil {
			return nil, err
		}
	}
	return nil, d.entry(n, p)
}

// folder gives a directory of upper to walk.
func (d *differ) folder(n *folderNode, p *pair) (*folderNode, error) {
	h, opaque, err := d.header(n.join(p.base), p)
	if err != nil {
		return nil, err
	}
	f := &folderNode{parent: n, name: n.join(p.base), header: h, below: p.bothDirs()}
	same, err := d.same(p)
	if err != nil {
		return nil, err
	}
	if !same {
		if err := d.ensure(f); err != nil {
			return nil, err
		}
	}
	if opaque {
		return f, d.hidden(f, opaqueName)
	}
	return f, nil
}

// ensure writes a directory, and those that it is in.
func (d *differ) ensure(n *folderNode) error {
	if n.written {
		return nil
	}
	if n.parent != nil {
		if err := d.ensure(n.parent); err != nil {
			return err
		}
	}
	n.written = true
	return d.tar.WriteHeader(n.header)
}

// hidden writes a whiteout.
func (d *differ) hidden(n *folderNode, base string) error {
	if err := d.ensure(n); err != nil {
		return err
	}
	at := d.o.Epoch
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	return d.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n.join(base), ModTime: at, Format: tar.FormatPAX})
}

// top gives the root, which is written only if something besides its times changed.
func (d *differ) top() (*folderNode, error) {
	p := &pair{base: ".", upDir: d.upper, loDir: d.lower}
	var err error
	if p.upper, err = d.look(d.upper, "."); err != nil {
		return nil, err
	}
	n := &folderNode{below: true, written: true}
	if d.lower < 0 {
		return n, nil // that of the image's first layer, or the overlay's own
	}
	if p.lower, err = d.look(d.lower, "."); err != nil {
		return nil, err
	}
	p.lower.Mtim = p.upper.Mtim
	if same, err := d.same(p); same || err != nil {
		return n, err
	}
	h, _, err := d.header(".", p)
	if err != nil {
		return nil, err
	}
	h.Name = "./"
	return n, d.tar.WriteHeader(h)
}
