package activate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/mount"
)

const mkdirOption = "X-containerd.mkdir."

// wanted is a directory that is to be made.
type wanted struct {
	path     string
	mode     fs.FileMode
	uid, gid int // -1: the daemon's
}

// parseWanted reads "PATH[:MODE[:UID:GID]]".
func parseWanted(text string) (wanted, error) {
	w := wanted{mode: 0o700, uid: -1, gid: -1}
	parts := strings.Split(text, ":")
	bad := fmt.Errorf("directory %q is not PATH, PATH:MODE or PATH:MODE:UID:GID: %w", text, errdefs.ErrInvalidArgument)
	if len(parts) != 1 && len(parts) != 2 && len(parts) != 4 {
		return w, bad
	}
	w.path = parts[0]
	if len(parts) > 1 {
		mode, err := strconv.ParseUint(parts[1], 8, 12)
		if err != nil {
			return w, bad
		}
		w.mode = fs.FileMode(mode & 0o777)
		for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if mode&bit != 0 {
				w.mode |= flag
			}
		}
	}
	if len(parts) == 4 {
		for i, id := range []*int{&w.uid, &w.gid} {
			n, err := strconv.ParseUint(parts[2+i], 10, 31)
			if err != nil {
				return w, bad
			}
			*id = int(n)
		}
	}
	return w, nil
}

// mkdir makes the directories that options of a mount name, those that are not
// there yet, and takes the options away.
func (p *Place) mkdir(m mount.Mount, before []Active) (mount.Mount, error) {
	m, options := take(m, mkdirOption)
	for _, option := range options {
		text, ok := strings.CutPrefix(option, "path=")
		if !ok {
			return m, fmt.Errorf("option %q: there is only path=: %w", mkdirOption+option, errdefs.ErrInvalidArgument)
		}
		w, err := parseWanted(text)
		if err != nil {
			return m, err
		}
		if err := w.makeBelow(p.roots(before)); err != nil {
			return m, fmt.Errorf("make directory %q: %w", w.path, err)
		}
	}
	return m, nil
}

// makeBelow makes a directory. One that is there stays as it is.
func (w wanted) makeBelow(roots []string) error {
	base, rest, err := below(roots, w.path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	err = root.Mkdir(rest, 0o700)
	if errors.Is(err, fs.ErrExist) {
		info, err := root.Lstat(rest)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("it is there, and is no directory: %w", errdefs.ErrFailedPrecondition)
		}
		return err
	}
	if err != nil {
		return err
	}
	if w.uid >= 0 {
		if err := root.Lchown(rest, w.uid, w.gid); err != nil {
			return err
		}
	}
	return root.Chmod(rest, w.mode)
}
