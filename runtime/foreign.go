package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/runtime/record"
)

// Files of a foreign shim's bundle, as the shim protocol has them.
const (
	workLink   = "work"
	logFIFO    = "log"
	binaryFile = "shim-binary-path"
	// addressFile is where older shims leave their address.
	addressFile = "address"
)

// startForeign starts the shim of a new bundle by its own "start" command and
// connects to it. What it prints says where it listens.
func (t *Tasks) startForeign(ctx context.Context, k *task, p *plan) (*conn, error) {
	if err := t.furnish(k); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	t.followLog(k)
	if p.host != nil {
		return t.joinForeign(ctx, k, p.host)
	}
	t.askOnce(k)
	output, err := t.callStart(ctx, k, p)
	if err != nil {
		return nil, err
	}
	at, err := parseContact(output)
	if err != nil {
		return nil, fmt.Errorf("%s start: %w", filepath.Base(p.intent.Binary), err)
	}
	c, made, err := t.meet(ctx, k, at)
	if errdefs.IsNotImplemented(err) && at.Version == taskV3 && at.Protocol == protocolTTRPC {
		c.close()
		c, made, err = t.meet(ctx, k, older(at))
	}
	if err == nil {
		t.place(k, made.PID, p.cgroup)
	}
	return c, err
}

// older is the same place with version 2 of the task API: there are shims that say
// 3 and serve 2.
func older(at contact) contact {
	at.Version = taskV2
	return at
}

// meet connects to a foreign shim, asks for its pid and records both.
func (t *Tasks) meet(ctx context.Context, k *task, at contact) (*conn, record.Shim, error) {
	if err := writeContact(k.dir, at); err != nil {
		return nil, record.Shim{}, err
	}
	k.mu.Lock()
	k.at = at
	k.mu.Unlock()
	// Its start has ended, so it listens, unless a virtual machine is in between.
	limit := t.cfg.Deadlines.ShimStart
	if at.local() {
		limit = min(limit, t.cfg.Deadlines.Connect)
	}
	dialCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := t.dial(dialCtx, at, true)
	if err != nil {
		return nil, record.Shim{}, fmt.Errorf("connect to the shim at %s: %w", at.Address, err)
	}
	reply, err := call(ctx, c, "tell its pid", t.cfg.Deadlines.Connect, c.shim.Connect, &shimtask.ConnectRequest{Id: k.id})
	if err != nil {
		return c, record.Shim{}, err
	}
	made := t.identifyShim(k, at, int(reply.GetShimPid()))
	k.mu.Lock()
	k.shim = made
	k.mu.Unlock()
	return c, made, record.Write("runtime.shim", k.dir, record.ShimFile, made)
}

// createForeign has a foreign shim make the container. One that says that it knows
// no Create of version 3 is asked by version 2; it gives the connection that is in
// use then.
func (t *Tasks) createForeign(ctx context.Context, k *task, c *conn, r *shimtask.CreateTaskRequest) (*conn, *shimtask.CreateTaskResponse, error) {
	reply, err := call(ctx, c, "create the container", t.cfg.Deadlines.Create, c.shim.Create, r)
	at := k.contact()
	if !errdefs.IsNotImplemented(err) || at.Version != taskV3 || at.Protocol != protocolTTRPC {
		return c, reply, err
	}
	second, _, merr := t.meet(ctx, k, older(at))
	if merr != nil {
		if second != nil {
			second.close()
		}
		return c, nil, err // what it said of the version that it claims to speak
	}
	c.close()
	reply, err = call(ctx, second, "create the container", t.cfg.Deadlines.Create, second.shim.Create, r)
	return second, reply, err
}

// olderShim is in what the start of a shim says that was built on an older shim
// library: it takes what it is given on standard input for options, and does not
// know their type.
const olderShim = "type with url"

// callStart runs the shim's "start" and gives its answer.
func (t *Tasks) callStart(ctx context.Context, k *task, p *plan) ([]byte, error) {
	binary, options := p.intent.Binary, p.request.GetOptions()
	if !t.shims.isOlder(binary) {
		input, err := t.startInput(k, binary, options)
		if err != nil {
			return nil, err
		}
		output, err := t.runForeign(ctx, k, t.cfg.Deadlines.ShimStart, input, "start")
		if err == nil || !strings.Contains(err.Error(), olderShim) {
			return output, err
		}
		t.shims.setOlder(binary)
	}
	input, err := bareOptions(options)
	if err != nil {
		return nil, err
	}
	return t.runForeign(ctx, k, t.cfg.Deadlines.ShimStart, input, "start")
}

// furnish adds to a bundle what a foreign shim expects in it.
func (t *Tasks) furnish(k *task) error {
	work := t.workDir(k)
	if err := os.MkdirAll(work, 0o711); err != nil {
		return err
	}
	if err := os.Symlink(work, filepath.Join(k.dir, workLink)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(k.dir, binaryFile), []byte(k.intent.Binary), 0o600); err != nil {
		return err
	}
	return unix.Mkfifo(filepath.Join(k.dir, logFIFO), 0o700)
}

// workDir is where a foreign shim may keep what outlives the machine's power.
func (t *Tasks) workDir(k *task) string {
	return filepath.Join(t.cfg.Root, strings.TrimPrefix(k.dir, t.cfg.State))
}

// clearWork removes a foreign shim's work directory.
func (t *Tasks) clearWork(k *task) error {
	if !k.foreign() {
		return nil
	}
	if err := removeTree(t.workDir(k)); err != nil {
		return err
	}
	err := os.Remove(filepath.Dir(t.workDir(k))) // the last one's namespace goes, too
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// foreign tells whether the task's shim is not our own.
func (k *task) foreign() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.intent.Foreign
}

// writeContact records where a foreign shim listens.
func writeContact(dir string, at contact) error {
	data, err := json.Marshal(at)
	if err != nil {
		return err
	}
	return durable.WriteVolatile("runtime.bootstrap", filepath.Join(dir, record.BootstrapFile), data, 0o600)
}

// readContact reads where a foreign shim listens, from its own file if the
// daemon has left none.
func readContact(dir string) (contact, error) {
	data, err := os.ReadFile(filepath.Join(dir, record.BootstrapFile))
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(filepath.Join(dir, addressFile))
	}
	if err != nil {
		return contact{}, err
	}
	return parseContact(data)
}

// reasonForeign is what the record says of a status that a foreign shim told when
// it removed what another of its kind had left.
const reasonForeign = "the shim had died; status from its delete"

// foreignLastWord ends what is left of a container whose processes are not of
// this machine, a virtual machine say: without its shim nobody can look after
// it. What the shim's "delete" says is all there is to know of its end.
func (t *Tasks) foreignLastWord(k *task, started record.Started) record.Exit {
	exit := record.Exit{
		Version: record.Version, PID: started.PID, Status: statusUnobserved, ExitedAt: t.cfg.Now(), Reason: reasonUnobserved,
	}
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id)
	if reply, err := t.remains(k.ctx, k); err != nil {
		log.Error("remains of a shim that has died not removed yet", "error", err)
	} else if reply.GetExitedAt() != nil {
		exit.Status, exit.ExitedAt, exit.Reason = reply.GetExitStatus(), reply.GetExitedAt().AsTime(), reasonForeign
	}
	if err := record.Write("runtime.exit", k.dir, record.ExitFile, exit); err != nil {
		log.Error("exit not recorded: it is lost when the daemon ends", "status", exit.Status, "error", err)
	}
	return exit
}

// shared tells whether another task is with the same shim, as far as is known.
func (t *Tasks) shared(k *task) bool {
	k.mu.Lock()
	address := k.at.Address
	k.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.boxes {
		if b.task != k && b.serves(address) {
			return true
		}
	}
	for _, other := range t.tasks {
		if other == k {
			continue
		}
		other.mu.Lock()
		same := other.at.Address == address && (other.stand == creating || other.stand == adopting || other.stand == connected)
		other.mu.Unlock()
		if same {
			return true
		}
	}
	return false
}
