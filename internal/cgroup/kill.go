package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// A group that forks while it is killed is gone through again, after a pause, for
// at most this many rounds; a frozen one can't fork.
const (
	killRounds = 50
	killPause  = 10 * time.Millisecond
)

// Kill ends every process of the group and of those below it, as one that forks
// faster than it can be listed needs: by cgroup.kill (version 2, since Linux
// 5.14), else by freezing, signalling and thawing until nobody is left. A group
// that is frozen is thawed, so that its processes can die. It returns once all
// are dead, or ctx ends. That the group is gone is no error.
func (g Group) Kill(ctx context.Context) error {
	if g.Unified != "" {
		err := writeWord(filepath.Join(g.Unified, "cgroup.kill"), "1")
		if err == nil {
			return g.emptied(ctx, g.Thaw)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("kill cgroup: %w", err)
		}
	}
	return g.emptied(ctx, func() error {
		_ = g.freeze() // it only makes the rounds fewer
		_, err := g.Signal(unix.SIGKILL)
		return errors.Join(err, g.Thaw())
	})
}

// emptied repeats a round until the group has no living process.
func (g Group) emptied(ctx context.Context, round func() error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for range killRounds {
		if err := round(); err != nil {
			return err
		}
		living, err := g.living()
		if err != nil || len(living) == 0 {
			return err
		}
		timer.Reset(killPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup: processes %v live on: %w", clip(living), context.Cause(ctx))
		}
	}
	living, err := g.living()
	if err != nil || len(living) == 0 {
		return err
	}
	return fmt.Errorf("kill cgroup: processes %v live on after %d rounds", clip(living), killRounds)
}

// clip keeps an error short.
func clip(pids []int) []int { return pids[:min(len(pids), 8)] }

// living lists the processes of the group that are no zombies.
func (g Group) living() ([]int, error) {
	pids, err := g.Processes()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.DeleteFunc(pids, sys.Zombie), err
}

// Signal sends a signal to every process of the group and of those below it, and
// tells how many there were. One that forks meanwhile may get away.
func (g Group) Signal(sig unix.Signal) (int, error) {
	pids, err := g.Processes()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	handles := make([]*sys.Process, 0, len(pids))
	defer func() {
		for _, h := range handles {
			_ = h.Close() // a descriptor without data
		}
	}()
	for _, pid := range pids {
		if h, err := sys.OpenProcess(pid); err == nil {
			handles = append(handles, h)
		}
	}
	// A pid may have become another's before its handle was made. Whoever is
	// still in the group now is the one that was meant.
	still, err := g.Processes()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	n := 0
	var errs []error
	for _, h := range handles {
		if !slices.Contains(still, h.PID()) {
			continue
		}
		switch err := h.Signal(sig); {
		case err == nil:
			n++
		case !errors.Is(err, os.ErrProcessDone):
			errs = append(errs, err)
		}
	}
	return n, errors.Join(errs...)
}

// freeze stops the group from forking. Where it can't be frozen it is not.
func (g Group) freeze() error {
	if g.Unified != "" {
		return writeWord(filepath.Join(g.Unified, "cgroup.freeze"), "1")
	}
	if dir, ok := g.Controllers["freezer"]; ok {
		return writeWord(filepath.Join(dir, "freezer.state"), "FROZEN")
	}
	return nil
}

// writeWord writes to a file of the kernel's, which is not made.
func writeWord(path, word string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(word)
	return errors.Join(err, f.Close())
}
