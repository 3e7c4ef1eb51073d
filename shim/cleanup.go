package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/record"
)

// lockLook is how often Cleanup looks whether another one is done.
const lockLook = 20 * time.Millisecond

// Claim makes this process the one that supervises a bundle, until it ends. The
// claim is a lock on the bundle's directory, which the kernel drops with the
// process, however that ends.
func Claim(bundle string) (*os.File, error) {
	dir, err := os.Open(bundle)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("bundle %s has a live shim: %w", bundle, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("lock bundle %s: %w", bundle, err)
	}
	return dir, nil
}

// claimOrWait claims a bundle for a Cleanup. It waits while another one has it,
// but not for a shim that is on record as living, be it that this has yet to
// claim the bundle itself. The shim of a pod claims a bundle when it begins with
// its container, and lives on without it.
func claimOrWait(ctx context.Context, bundle string) (*os.File, error) {
	for {
		dir, err := Claim(bundle)
		var shim record.Shim
		if record.Read(bundle, record.ShimFile, &shim) == nil && !shim.Shared && sys.Alive(shim.PID, shim.StartTime) {
			if err == nil {
				_ = dir.Close() // only drops the lock
			}
			return nil, fmt.Errorf("bundle %s has a live shim, process %d: %w", bundle, shim.PID, errdefs.ErrFailedPrecondition)
		}
		if err == nil || !errors.Is(err, errdefs.ErrFailedPrecondition) || !sleep(ctx, lockLook) {
			return dir, err
		}
	}
}

// sleep waits, and tells whether it was for the whole time.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Cleanup kills and removes what is left of a task whose shim is dead, and
// tells how init ended. It can be repeated, and leaves the bundle itself to the
// daemon. While the shim lives it is refused (FailedPrecondition).
func Cleanup(ctx context.Context, namespace, id, bundle string, config Config) (*task.DeleteResponse, error) {
	config.setDefaults()
	claim, err := claimOrWait(ctx, bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return &task.DeleteResponse{ExitStatus: unobserved, ExitedAt: protobuf.Timestamp(time.Now())}, nil
	}
	if err != nil {
		return nil, err
	}
	defer claim.Close()

	// The status first: what is killed below was alive until then.
	exit, recorded := lastExit(bundle)
	if err := endCalls(ctx, bundle); err != nil {
		return nil, fmt.Errorf("clean up task %q: %w", id, err)
	}
	left := processes(bundle)
	defer left.close()
	left.kill()
	// The runtime knows of more than these: cgroups, and what is frozen there.
	// But it may have forgotten the container, be gone itself, or hang. If the
	// processes are dead, that is enough.
	failed := deleteByRuntime(ctx, config.Runtime(recordedRuntime(namespace, bundle), bundle), id)
	if failed != nil {
		config.Log.Warn("OCI runtime did not delete the container", "task", id, "error", failed)
	}
	if err := left.wait(ctx); err != nil {
		return nil, fmt.Errorf("clean up task %q: %w", id, errors.Join(err, failed))
	}
	if err := removeGroups(bundle); err != nil {
		config.Log.Warn("control groups left", "task", id, "error", err)
	}
	if err := config.Mounter.Unmount(filepath.Join(bundle, record.RootfsDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("clean up task %q: unmount rootfs: %w", id, err)
	}
	if !recorded { // so that it is the same the next time
		if err := record.Write("shim.cleanup", bundle, record.ExitFile, exit); err != nil {
			return nil, fmt.Errorf("clean up task %q: %w", id, err)
		}
	}
	return &task.DeleteResponse{
		Pid:        uint32(exit.PID),
		ExitStatus: exit.Status,
		ExitedAt:   protobuf.Timestamp(exit.ExitedAt),
	}, nil
}

// lastExit tells how init of a bundle ended, or will have ended once Cleanup has
// killed it, and whether that is on record.
func lastExit(bundle string) (exit record.Exit, recorded bool) {
	if record.Read(bundle, record.ExitFile, &exit) == nil {
		return exit, true
	}
	exit = record.Exit{Version: record.Version, Status: unobserved, ExitedAt: time.Now().UTC()}
	var started record.Started
	if err := record.Read(bundle, record.StartedFile, &started); err != nil {
		exit.Reason = "exit unobserved: its shim died, and left no record of a process"
		return exit, false
	}
	exit.PID = started.PID
	exit.Reason = "exit unobserved: it ended after its shim had died"
	p, err := sys.OpenProcess(started.PID)
	if err != nil {
		return exit, false
	}
	defer p.Close()
	if p.StartTime() != started.StartTime {
		return exit, false
	}
	if status, ok := p.ExitStatus(); ok {
		exit.Status, exit.Reason = exitStatus(status), "its shim had died; status from the kernel"
	} else if p.Alive() {
		exit.Status, exit.Reason = 128+uint32(unix.SIGKILL), "killed, since its shim had died"
	}
	return exit, false
}

// endCalls ends what a dead shim's calls of the OCI runtime have left: the runtime
// dies with the shim, but not the hooks that it runs. They are in the shim's session,
// unlike containers and loggers. That of a pod's shim is not touched, as it is not
// known what of it is whose.
func endCalls(ctx context.Context, bundle string) error {
	var shim record.Shim
	if record.Read(bundle, record.ShimFile, &shim) != nil || shim.Shared || shim.PID <= 1 {
		return nil
	}
	if start, err := sys.StartTime(shim.PID); err == nil && start != shim.StartTime {
		return nil // another one has the pid by now, so nobody is in the session any more
	}
	for {
		pids, err := sys.Session(shim.PID)
		if err != nil || len(pids) == 0 {
			return err
		}
		var left leftovers
		for _, pid := range pids {
			p, err := sys.OpenProcess(pid)
			if err != nil {
				continue // it ended just now
			}
			if stat, err := sys.ReadStat(pid); err != nil || stat.Session != shim.PID || stat.StartTime != p.StartTime() {
				_ = p.Close() // another one has the pid by now
				continue
			}
			left = append(left, p)
		}
		left.kill()
		err = left.wait(ctx)
		left.close()
		if err == nil {
			err = ctx.Err() // of one that can't be looked at, too
		}
		if err != nil {
			return err
		}
	}
}

// recordedRuntime tells how the OCI runtime of a bundle was called; without a
// record, as it would be without options.
func recordedRuntime(namespace, bundle string) record.Runtime {
	var how record.Runtime
	if record.Read(bundle, record.RuntimeFile, &how) == nil {
		return how
	}
	return runtimeOf(namespace, "", "", false)
}

// deleteByRuntime has the runtime delete a container, in a part of the time.
func deleteByRuntime(ctx context.Context, r Runtime, id string) error {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)*2/3)
		defer cancel()
	}
	return r.Delete(ctx, id, true)
}

// leftovers are the processes of a bundle that live.
type leftovers []*sys.Process

// processes finds what is recorded in a bundle and still lives.
func processes(bundle string) leftovers {
	var left leftovers
	dirs := []string{bundle}
	execs, _ := os.ReadDir(filepath.Join(bundle, record.ExecsDir)) // most have none
	for _, e := range execs {
		dirs = append(dirs, filepath.Join(bundle, record.ExecsDir, e.Name()))
	}
	for _, dir := range dirs {
		var started record.Started
		if record.Read(dir, record.StartedFile, &started) != nil || !sys.Alive(started.PID, started.StartTime) {
			continue
		}
		p, err := sys.OpenProcess(started.PID)
		if err != nil {
			continue // it ended just now
		}
		left = append(left, p)
		if p.StartTime() != started.StartTime {
			left = left[:len(left)-1] // another one has the pid by now
			_ = p.Close()
		}
	}
	return left
}

// kill sends SIGKILL to all.
func (l leftovers) kill() {
	for _, p := range l {
		_ = p.Signal(unix.SIGKILL) // wait tells whether it helped
	}
}

// wait waits until all are dead.
func (l leftovers) wait(ctx context.Context) error {
	for _, p := range l {
		if err := p.Exited(ctx); err != nil {
			return fmt.Errorf("process %d does not end: %w", p.PID(), err)
		}
	}
	return nil
}

func (l leftovers) close() {
	for _, p := range l {
		_ = p.Close() // a descriptor without data
	}
}
