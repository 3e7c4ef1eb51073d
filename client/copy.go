package client

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/mount"
)

// CopyOptions say what is kept of files that are copied.
type CopyOptions struct {
	// Archive keeps owners, extended attributes, and on the way out set-id bits and
	// devices, too. Without it files belong to the container's root, or to who copies
	// them out.
	Archive bool
	Follow  bool // a link that the source is, is followed
}

// The methods below copy files between a container and this machine, which has to be
// the daemon's. Of a container that runs, files are those that its processes see,
// volumes included; of another, those of its snapshot, and it must not be started
// meanwhile. Names are looked up in the container as its processes would, so that no
// link in it leads out. A name that ends in "/." means what is in a directory.
//
// NotFound: the source, or the directory that shall have it, does not exist.
// FailedPrecondition: a directory would replace a file, or a file a directory.

// CopyOut copies what is at from in a container to the path to.
func (c *Client) CopyOut(ctx context.Context, id, from, to string, o CopyOptions) error {
	to, err := absolute(to)
	if err != nil {
		return err
	}
	return c.withFiles(ctx, id, false, func(root string, ids owners) error {
		return copyFiles(ctx, place{root, from}, place{"/", to}, o, archive.DiffOptions{Owner: ids.inside}, o.out)
	})
}

// CopyIn copies what is at the path from into a container.
func (c *Client) CopyIn(ctx context.Context, from, id, to string, o CopyOptions) error {
	from, err := absolute(from)
	if err != nil {
		return err
	}
	return c.withFiles(ctx, id, true, func(root string, ids owners) error {
		return copyFiles(ctx, place{"/", from}, place{root, to}, o, archive.DiffOptions{}, func(h *tar.Header) error {
			if !o.Archive {
				h.Uid, h.Gid, h.PAXRecords = 0, 0, nil
			}
			return ids.outside(h)
		})
	})
}

// PackOut writes a tar of what is at from in a container, with the container's
// owners.
func (c *Client) PackOut(ctx context.Context, id, from string, w io.Writer, o CopyOptions) error {
	return c.withFiles(ctx, id, false, func(root string, ids owners) error {
		src := place{root, from}
		found, err := src.find(o.Follow)
		if err != nil {
			return err
		}
		as := path.Base("/" + found.Name)
		if src.contents(found) || found.Name == "" {
			as = ""
		}
		return archive.Pack(ctx, w, root, found.Name, as, archive.DiffOptions{Owner: ids.inside})
	})
}

// UnpackIn lays a tar, plain, down in a directory of a container, with the owners
// that it says. When it returns early, a Read of it that blocks is left behind.
func (c *Client) UnpackIn(ctx context.Context, from io.Reader, id, to string) error {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, from)
		_ = w.CloseWithError(err) // never fails; nil is the end of the stream
	}()
	defer r.Close()
	defer context.AfterFunc(ctx, func() { _ = r.CloseWithError(context.Cause(ctx)) })()
	return c.withFiles(ctx, id, true, func(root string, ids owners) error {
		dst := place{root, to}
		found, err := archive.Find(root, dst.name, true)
		if err == nil && !found.IsDir() {
			err = fmt.Errorf("directory %q: %w", to, errdefs.ErrNotFound)
		}
		if err != nil {
			return err
		}
		_, err = archive.Apply(ctx, root, r, archive.Options{Copy: true, Header: func(h *tar.Header) error {
			h.Name = found.Name + path.Clean("/"+h.Name)
			if h.Typeflag == tar.TypeLink {
				h.Linkname = found.Name + path.Clean("/"+h.Linkname)
			}
			return ids.outside(h)
		}})
		return err
	})
}

// absolute makes a path absolute, and keeps what its end says.
func absolute(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err == nil && name != "." && (strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/")) {
		abs += "/" + strings.TrimLeft(name[strings.LastIndexByte(name, '/'):], "/")
	} else if err == nil && name == "." {
		abs += "/."
	}
	return abs, err
}

// place is a name in a tree.
type place struct{ root, name string }

func (p place) find(follow bool) (archive.Found, error) {
	found, err := archive.Find(p.root, p.name, follow)
	if err == nil && !found.Exists {
		err = fmt.Errorf("%q: %w", p.name, errdefs.ErrNotFound)
	}
	return found, err
}

// contents tells whether not a directory is meant, but what is in it.
func (p place) contents(found archive.Found) bool {
	return found.IsDir() && (strings.HasSuffix(p.name, "/.") || p.name == ".")
}

// copyFiles copies from one tree to another.
func copyFiles(ctx context.Context, src, dst place, o CopyOptions, pack archive.DiffOptions, header func(*tar.Header) error) error {
	found, err := src.find(o.Follow)
	if err != nil {
		return err
	}
	name, err := dst.target(found, src.contents(found) || found.Name == "")
	if err != nil {
		return err
	}
	root := dst.root
	if root == "/" { // then no link that is copied can lead the rest out of the place
		root, name = filepath.Split("/" + name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		err := archive.Pack(ctx, w, src.root, found.Name, name, pack)
		if err != nil {
			cancel(err)
		}
		_ = w.CloseWithError(err) // never fails; nil is the end of the stream
	}()
	_, err = archive.Apply(ctx, root, r, archive.Options{Copy: true, Header: header})
	if err == nil { // what is behind the tar's end
		_, err = io.Copy(io.Discard, r)
	}
	_ = r.CloseWithError(err) // never fails
	<-packed
	return err
}

// target gives the name, in its tree, that what is copied gets.
func (p place) target(src archive.Found, contents bool) (string, error) {
	name := p.name
	if src.IsDir() && strings.Trim(name, "/") != "" { // a directory to be made may be written with a slash
		name = strings.TrimRight(name, "/")
	}
	found, err := archive.Find(p.root, name, true)
	switch {
	case err != nil:
		return "", err
	case found.IsDir() && contents:
		return found.Name, nil
	case found.IsDir():
		return strings.TrimPrefix(found.Name+"/"+path.Base(src.Name), "/"), nil
	case found.Exists && src.IsDir():
		return "", fmt.Errorf("%q is no directory, as the source is: %w", p.name, errdefs.ErrFailedPrecondition)
	}
	return found.Name, nil
}

// out says what is copied of a file of a container's to this machine.
func (o CopyOptions) out(h *tar.Header) error {
	if o.Archive {
		return nil
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		return fmt.Errorf("a device: it would be one on this machine, too; --archive copies it all the same: %w", errdefs.ErrFailedPrecondition)
	}
	h.Uid, h.Gid, h.PAXRecords = os.Geteuid(), os.Getegid(), nil
	h.Mode &^= unix.S_ISUID | unix.S_ISGID
	return nil
}

// withFiles calls do with a directory that is the container's root, and who its users
// are on this machine.
func (c *Client) withFiles(ctx context.Context, id string, write bool, do func(root string, ids owners) error) error {
	container, err := c.Container(ctx, id)
	if err != nil {
		return err
	}
	s, err := container.Spec()
	if err != nil {
		return err
	}
	var ids owners
	if s.Linux != nil {
		ids = owners{s.Linux.UIDMappings, s.Linux.GIDMappings}
	}
	root, err := c.rootOf(ctx, id)
	if err != nil {
		return err
	}
	if root != nil {
		defer root.Close()
		return do(fmt.Sprintf("/proc/self/fd/%d", root.Fd()), ids)
	}
	mounts, err := container.mounts(ctx)
	if err != nil {
		return err
	}
	list := mountsOf(mounts)
	if !write {
		list = mount.ReadOnly(list)
	}
	return mount.WithTemp(ctx, list, func(root string) error { return do(root, ids) })
}

// rootOf opens the root directory of a container's processes; nil: it has none.
func (c *Client) rootOf(ctx context.Context, id string) (*os.File, error) {
	pid, err := c.pidOf(ctx, id)
	if err != nil || pid == 0 {
		return nil, err
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", pid))
	// The same pid afterwards: it was that process the whole time.
	again, failed := c.pidOf(ctx, id)
	switch {
	case failed != nil:
		err = errors.Join(err, failed)
	case again != pid:
		err = fmt.Errorf("container %q has ended or was started just now; try again: %w", id, errdefs.ErrUnavailable)
	case err == nil:
		return root, nil
	default:
		err = fmt.Errorf("files of container %q: %w", id, err)
	}
	if root != nil {
		err = errors.Join(err, root.Close())
	}
	return nil, err
}

// pidOf gives the pid of a container's first process; 0: there is none.
func (c *Client) pidOf(ctx context.Context, id string) (uint32, error) {
	got, err := c.Tasks().Get(ctx, &tasks.GetRequest{ContainerId: id})
	if errdefs.IsNotFound(err) || err == nil && got.GetProcess().GetStatus() == task.Status_STOPPED {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("state of container %q: %w", id, err)
	}
	return got.GetProcess().GetPid(), nil
}

// owners is who a container's users are on this machine; empty: they are the same.
type owners struct{ uids, gids []specs.LinuxIDMapping }

// inside gives the container's ids; one that is none of its users' stays.
func (o owners) inside(uid, gid int) (int, int) {
	back := func(id int, list []specs.LinuxIDMapping) int {
		for _, m := range list {
			if first := int(m.HostID); id >= first && id < first+int(m.Size) {
				return int(m.ContainerID) + id - first
			}
		}
		return id
	}
	return back(uid, o.uids), back(gid, o.gids)
}

// outside gives an entry the owner on this machine.
func (o owners) outside(h *tar.Header) error {
	for _, side := range []struct {
		id   *int
		list []specs.LinuxIDMapping
	}{{&h.Uid, o.uids}, {&h.Gid, o.gids}} {
		mapped := len(side.list) == 0
		for _, m := range side.list {
			if first := int(m.ContainerID); *side.id >= first && *side.id < first+int(m.Size) {
				*side.id, mapped = int(m.HostID)+*side.id-first, true
				break
			}
		}
		if !mapped {
			return fmt.Errorf("it belongs to %d, who is none of the container's users: %w", *side.id, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
