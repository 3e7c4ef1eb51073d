package activate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/program"
	"github.com/berthd/berth/internal/size"
)

const (
	mkfsOption = "X-containerd.mkfs."
	// minImage is the smallest image that every mkfs can do something with.
	minImage = 1 << 20
)

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// image is an image of a file system that is to be made.
type image struct {
	path, kind, uuid string
	size             int64
}

// makers give the arguments of mkfs for each file system. The image is passed as
// an open file: no name of a client's reaches a program.
var makers = map[string]func(i image) []string{
	"ext2": extArgs, "ext3": extArgs, "ext4": extArgs,
	"xfs": func(i image) []string {
		args := []string{"-q", "-f"}
		if i.uuid != "" {
			args = append(args, "-m", "uuid="+i.uuid)
		}
		return append(args, imageFD)
	},
}

func extArgs(i image) []string {
	args := []string{"-q", "-F"}
	if i.uuid != "" {
		args = append(args, "-U", i.uuid)
	}
	return append(args, imageFD)
}

// imageFD is the name of the image as the program sees it.
const imageFD = "/proc/self/fd/3"

// mkfs makes the image that is a mount's source, unless it is there, and takes
// the options that say how away.
func (p *Place) mkfs(ctx context.Context, m mount.Mount) (mount.Mount, error) {
	m, options := take(m, mkfsOption)
	i := image{path: m.Source, kind: "ext4"}
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		var err error
		switch key {
		case "fs":
			i.kind = value
		case "uuid":
			if i.uuid = value; !uuidPattern.MatchString(value) {
				err = fmt.Errorf("%q is not a UUID: %w", value, errdefs.ErrInvalidArgument)
			}
		case "size":
			i.size, err = size.Parse(value)
		default:
			err = fmt.Errorf("there are only fs, uuid and size: %w", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return m, fmt.Errorf("option %q: %w", mkfsOption+option, err)
		}
	}
	limit := p.MaxImage
	if limit == 0 {
		limit = DefaultMaxImage
	}
	switch {
	case makers[i.kind] == nil:
		return m, fmt.Errorf("image %q: file systems of type %q can't be made, only ext2, ext3, ext4 and xfs: %w", i.path, i.kind, errdefs.ErrInvalidArgument)
	case i.size < minImage:
		return m, fmt.Errorf("image %q of %d bytes: it needs %d at least: %w", i.path, i.size, minImage, errdefs.ErrInvalidArgument)
	case i.size > limit:
		return m, fmt.Errorf("image %q of %d bytes: it may have %d at most: %w", i.path, i.size, limit, errdefs.ErrResourceExhausted)
	}
	if err := p.makeImage(ctx, i); err != nil {
		return m, fmt.Errorf("make image %q: %w", i.path, err)
	}
	return m, nil
}

// makeImage makes an image beside its place and puts it there whole.
func (p *Place) makeImage(ctx context.Context, i image) (err error) {
	base, rest, err := below(p.roots(nil), i.path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := root.OpenRoot(filepath.Dir(rest))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := filepath.Base(rest)
	if info, err := dir.Lstat(name); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("it is there, and is no file: %w", errdefs.ErrFailedPrecondition)
	} else if err == nil && info.Size() > 0 {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	handle, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer handle.Close()
	// Without a name until it is whole: a crash leaves nothing.
	fd, err := unix.Openat(int(handle.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make a file without a name: %w", err)
	}
	f := os.NewFile(uintptr(fd), i.path)
	defer f.Close()
	if err := f.Truncate(i.size); err != nil {
		return err
	}
	if err := p.run(ctx, "mkfs."+i.kind, makers[i.kind](i), f); err != nil {
		return err
	}
	if err := durable.SyncFile("activate.image", f); err != nil {
		return err
	}
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) { // an empty one
		return err
	}
	err = unix.Linkat(fd, "", int(handle.Fd()), name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) { // without CAP_DAC_READ_SEARCH
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(handle.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	}
	if errors.Is(err, unix.EEXIST) { // another has been faster
		return nil
	}
	return err
}

// run runs a program on an open file, within its time.
func (p *Place) run(ctx context.Context, name string, args []string, f *os.File) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%s is not installed here (packages e2fsprogs, xfsprogs): %w", name, errdefs.ErrFailedPrecondition)
	}
	limit := p.Timeout
	if limit == 0 {
		limit = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd, words := program.Command(ctx, path, args, nil)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stdout = words
	if err := cmd.Run(); err != nil {
		return program.Failed(ctx, name, err, words)
	}
	return nil
}
