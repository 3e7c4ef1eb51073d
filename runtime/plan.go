package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	shimtask "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/runtime/record"
)

// Runtime names that mean our own shim.
const (
	RuntimeRunc  = "io.containerd.runc.v2"
	RuntimeBerth = "io.berth.runc.v1"
)

const optionsType = "containerd.runc.v1.Options"

// plan is a checked request to create a task.
type plan struct {
	intent  record.Intent // without the boot id and the time
	config  []byte
	request *shimtask.CreateTaskRequest
	cgroup  string // where the shim is to be, if anywhere

	host       *host             // the shim that it joins, if it is known to be there
	checkpoint *types.Descriptor // the blob to unpack, if any
	blobs      Blobs             // where that is; nil: nowhere
}

// plan checks what a Create asks for. Nothing has happened when it fails.
func (t *Tasks) plan(ns string, c *containers.Container, r *tasks.CreateTaskRequest) (*plan, error) {
	id := r.GetContainerId()
	switch {
	case c.GetId() != id:
		return nil, fmt.Errorf("container %q is not %q: %w", c.GetId(), id, errdefs.ErrInvalidArgument)
	case len(c.GetSpec().GetValue()) == 0:
		return nil, fmt.Errorf("container %q has no spec: %w", id, errdefs.ErrInvalidArgument)
	}
	runtime := c.GetRuntime().GetName()
	if r.GetRuntimePath() != "" {
		runtime = r.GetRuntimePath()
	}
	binary, err := t.resolve(runtime)
	if err != nil {
		return nil, err
	}
	foreign := binary != t.cfg.Shim
	options, o, err := runtimeOptions(c, r, foreign)
	if err != nil {
		return nil, err
	}
	group, err := groupOf(c)
	if err != nil {
		return nil, err
	}
	join, err := t.joining(ns, c, r, o)
	if err != nil {
		return nil, err
	}
	if join != nil { // whose runtime that shim is counts from here on
		runtime, binary, foreign, group = join.intent.Runtime, join.intent.Binary, join.intent.Foreign, join.intent.Group
	}
	checkpoint, blob, err := checkpointOf(r, o)
	if err != nil {
		return nil, err
	}
	if blob != nil {
		checkpoint = t.imagesDir(ns, id)
	}
	p := &plan{
		host:       join,
		checkpoint: blob,
		config:     c.GetSpec().GetValue(),
		cgroup:     o.GetShimCgroup(),
		intent: record.Intent{
			Version: record.Version, Namespace: ns, ID: id, Runtime: runtime, Binary: binary, Foreign: foreign, Group: group,
			Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(),
			Checkpoint: checkpoint,
		},
		request: &shimtask.CreateTaskRequest{
			Id: id, Bundle: t.bundles.path(ns, id), Rootfs: r.GetRootfs(), Options: options,
			Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(),
			Checkpoint: checkpoint,
		},
	}
	if options != nil {
		p.intent.Options = &record.Any{TypeURL: options.GetTypeUrl(), Value: options.GetValue()}
	}
	for _, m := range r.GetRootfs() {
		p.intent.Rootfs = append(p.intent.Rootfs, recordMount(m))
	}
	return p, nil
}

func recordMount(m *types.Mount) record.Mount {
	return record.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()}
}

// runtimeOptions gives those of the request, else those of the container, with
// the bare type name that shims expect. Options of another kind are a plain
// error, as the contract has it, unless a container has them for a foreign shim.
func runtimeOptions(c *containers.Container, r *tasks.CreateTaskRequest, foreign bool) (*anypb.Any, *runc.Options, error) {
	options, whose := r.GetOptions(), "task"
	if len(options.GetValue()) == 0 {
		// Even without a value, a wrong type shows that the client means
		// another runtime.
		if _, name, _ := cutLast(options.GetTypeUrl(), "/"); name != "" && name != optionsType {
			return nil, nil, fmt.Errorf("task options of type %q: this runtime takes %s", name, optionsType)
		}
		options, whose = c.GetRuntime().GetOptions(), "container's runtime"
	}
	if len(options.GetValue()) == 0 {
		return nil, nil, nil
	}
	if _, name, _ := cutLast(options.GetTypeUrl(), "/"); name != optionsType {
		if foreign && whose != "task" {
			return options, nil, nil // its own business
		}
		return nil, nil, fmt.Errorf("%s options of type %q: this runtime takes %s", whose, name, optionsType)
	}
	var o runc.Options
	if err := proto.Unmarshal(options.GetValue(), &o); err != nil {
		return nil, nil, fmt.Errorf("%s options: not a %s: %w", whose, optionsType, err)
	}
	return &anypb.Any{TypeUrl: optionsType, Value: options.GetValue()}, &o, nil
}

// resolve finds the shim of a runtime name, or of the path of a shim. It is
// Config.Shim where that means our own.
func (t *Tasks) resolve(runtime string) (binary string, err error) {
	switch {
	case runtime == RuntimeRunc || runtime == RuntimeBerth:
		return t.cfg.Shim, nil
	case filepath.IsAbs(runtime):
		info, err := os.Stat(runtime)
		if err != nil {
			return "", fmt.Errorf("runtime %q: %w", runtime, plain(err))
		}
		own, err := os.Stat(t.cfg.Shim)
		if err == nil && os.SameFile(info, own) {
			return t.cfg.Shim, nil
		}
		if !executable(runtime) {
			return "", fmt.Errorf("runtime %q: not a program that can be run", runtime)
		}
		return runtime, nil
	case strings.Contains(runtime, "/"):
		return "", fmt.Errorf("runtime %q: neither a runtime name nor an absolute path", runtime)
	}
	name := shimBinary(runtime)
	if name == "" {
		return "", fmt.Errorf("runtime %q: not a runtime name, such as %s", runtime, RuntimeRunc)
	}
	path, err := t.shims.find(name)
	if err != nil {
		return "", fmt.Errorf("runtime %q: %w", runtime, err)
	}
	return path, nil
}

// foundShims is what is known of the shims of others.
type foundShims struct {
	mu    sync.Mutex        // guards the rest
	paths map[string]string // by name
	older map[string]bool   // by path: those that take the bare options
	asked map[string]bool   // by runtime name: those that were asked what they can do
}

func (f *foundShims) isOlder(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.older[path]
}

func (f *foundShims) setOlder(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.older == nil {
		f.older = map[string]bool{}
	}
	f.older[path] = true
}

func (f *foundShims) find(name string) (string, error) {
	f.mu.Lock()
	path := f.paths[name]
	f.mu.Unlock()
	if path != "" && executable(path) {
		return path, nil
	}
	path, err := findShim(name)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paths == nil {
		f.paths = map[string]string{}
	}
	f.paths[name] = path
	return path, nil
}

// plain is an error with the text of err and no kind: that a shim's file is
// missing must not read as a container that is.
func plain(err error) error { return errors.New(err.Error()) }

// shimBinary gives the name of a runtime's shim: containerd-shim-A-B of the last
// two parts of the name. "" if it is no runtime name.
func shimBinary(runtime string) string {
	parts := strings.Split(runtime, ".")
	if len(parts) < 2 || parts[0] == "" {
		return ""
	}
	return "containerd-shim-" + strings.Join(parts[len(parts)-2:], "-")
}

// findShim looks for a shim in the working directory, in PATH and next to the
// daemon's own binary.
func findShim(binary string) (string, error) {
	if wd, err := os.Getwd(); err == nil && executable(filepath.Join(wd, binary)) {
		return filepath.Join(wd, binary), nil
	}
	if path, err := exec.LookPath(binary); err == nil {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), binary); executable(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("its shim %s is not installed: not in PATH, nor next to the daemon", binary)
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
