package archive

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	maxOpenDirs = 256 // directories kept open
	maxAliases  = 16  // names under which one of them is known
)

// inode tells one file from another.
type inode struct{ dev, ino uint64 }

func inodeOf(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// dir is an open directory of the tree. Adding to it changes its times, so it
// carries those it shall have in the end; they are set when it is closed.
type dir struct {
	fd      int
	id      inode
	times   [2]unix.Timespec // access, modification
	touched bool             // times have to be set
	names   []string         // its keys in the cache
	pins    int              // users; closed only at 0
	cached  *list.Element    // nil: closed by its last user
}

// dirs keeps directories open, the least recently used leave first.
type dirs struct {
	root   *dir // always open, not counted
	byName map[string]*dir
	byID   map[inode]*dir
	order  list.List // of *dir, most recently used in front
}

// newDirs keeps the directories below the one that fd has open.
func newDirs(fd int) (*dirs, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	root := newDir(fd, &st)
	root.pins = 1
	return &dirs{root: root, byName: map[string]*dir{}, byID: map[inode]*dir{}}, nil
}

func newDir(fd int, st *unix.Stat_t) *dir {
	return &dir{fd: fd, id: inodeOf(st), times: [2]unix.Timespec{st.Atim, st.Mtim}}
}

// find gives the directory known as name, pinned, or nil.
func (c *dirs) find(name string) *dir {
	if name == "" {
		c.root.pins++
		return c.root
	}
	d := c.byName[name]
	if d == nil {
		return nil
	}
	d.pins++
	c.order.MoveToFront(d.cached)
	return d
}

// add takes over fd, a directory that name leads to, and returns it pinned. A
// directory that is open already, by another name, keeps its descriptor, and
// with it its times.
func (c *dirs) add(name string, fd int) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(os.NewSyscallError("fstat", err), unix.Close(fd))
	}
	if inodeOf(&st) == c.root.id { // by a link to "/"
		c.root.pins++
		return c.root, os.NewSyscallError("close", unix.Close(fd))
	}
	d := c.byID[inodeOf(&st)]
	if d != nil {
		if err := unix.Close(fd); err != nil {
			return nil, os.NewSyscallError("close", err)
		}
		c.order.MoveToFront(d.cached)
	} else {
		d = newDir(fd, &st)
		d.cached = c.order.PushFront(d)
		c.byID[d.id] = d
	}
	d.pins++
	if c.byName[name] == nil && len(d.names) < maxAliases {
		c.byName[name] = d
		d.names = append(d.names, name)
	}
	if c.order.Len() <= maxOpenDirs {
		return d, nil
	}
	if err := c.drop(c.order.Back().Value.(*dir)); err != nil {
		return nil, errors.Join(err, c.release(d))
	}
	return d, nil
}

// release ends the use of a pinned directory.
func (c *dirs) release(d *dir) error {
	d.pins--
	if d.pins > 0 || d.cached != nil {
		return nil
	}
	return d.close()
}

// drop forgets a directory and closes it, or leaves that to its last user.
func (c *dirs) drop(d *dir) error {
	for _, name := range d.names {
		delete(c.byName, name)
	}
	delete(c.byID, d.id)
	c.order.Remove(d.cached)
	d.names, d.cached = nil, nil
	if d.pins > 0 {
		return nil
	}
	return d.close()
}

// forget drops all directories. It is called when a directory or a symbolic
// link goes away: names may lead elsewhere from then on.
func (c *dirs) forget() error {
	var failed error
	for c.order.Len() > 0 {
		failed = errors.Join(failed, c.drop(c.order.Front().Value.(*dir)))
	}
	return failed
}

// close closes every directory, the root last, which all others have touched.
func (c *dirs) close() error {
	return errors.Join(c.forget(), c.release(c.root))
}

func (d *dir) close() error {
	var failed error
	if d.touched {
		err := unix.UtimesNanoAt(d.fd, ".", d.times[:], 0)
		if err != nil && !errors.Is(err, unix.ENOENT) { // removed meanwhile
			failed = fmt.Errorf("set times of a directory: %w", os.NewSyscallError("utimensat", err))
		}
	}
	return errors.Join(failed, os.NewSyscallError("close", unix.Close(d.fd)))
}

// place is where in the tree the directory really is, without links: "" for
// the root, else a relative path.
func (c *dirs) place(d *dir) (string, error) {
	if d == c.root {
		return "", nil
	}
	top, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(c.root.fd))
	if err != nil {
		return "", err
	}
	at, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(d.fd))
	if err != nil {
		return "", err
	}
	if top != "/" {
		top += "/"
	}
	if len(at) <= len(top) || at[:len(top)] != top {
		return "", fmt.Errorf("directory %q is no longer within %q", at, top)
	}
	return at[len(top):], nil
}
