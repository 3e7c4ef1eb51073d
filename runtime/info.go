package runtime

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types"
)

// allowMounts is the annotation of a shim's info that lists, with commas, the
// types of mounts that it makes itself.
const allowMounts = "containerd.io/runtime-allow-mounts"

// maxAsked bounds for how many runtime names it is remembered that they were
// asked.
const maxAsked = 64

// Info asks the shim of a foreign runtime, by name or by path, what it is and can
// do. Our own is InvalidArgument: it is not the shim that tells, but the OCI
// runtime. NotFound: there is no such shim.
func (t *Tasks) Info(ctx context.Context, runtime string, options *anypb.Any) (*types.RuntimeInfo, error) {
	binary, err := t.resolve(runtime)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", err, errdefs.ErrNotFound)
	}
	if binary == t.cfg.Shim {
		return nil, fmt.Errorf("runtime %q is berth's own: %w", runtime, errdefs.ErrInvalidArgument)
	}
	info, err := t.callInfo(ctx, binary, options)
	if err != nil {
		return nil, fmt.Errorf("runtime %q: %w", runtime, err)
	}
	return info, nil
}

// callInfo runs a shim's "-info", for which it needs no namespace.
func (t *Tasks) callInfo(ctx context.Context, binary string, options *anypb.Any) (*types.RuntimeInfo, error) {
	input, err := bareOptions(options)
	if err != nil {
		return nil, err
	}
	s := shimCall{
		binary: binary, dir: t.cfg.State, args: []string{"-info"}, env: t.foreignEnv(""),
		input: input, limit: t.cfg.Deadlines.Control,
	}
	stdout, _, err := s.run(ctx)
	if err != nil {
		return nil, err
	}
	info := &types.RuntimeInfo{}
	if err := proto.Unmarshal(stdout, info); err != nil {
		return nil, fmt.Errorf("%s: output is no RuntimeInfo: %w", s.what(), err)
	}
	return info, nil
}

// askOnce has a foreign shim asked what it can do, the first time that its runtime
// name is used. What it says is for those who read the log; which mounts it
// makes is asked where it counts. Nobody waits for it.
func (t *Tasks) askOnce(k *task) {
	v := k.view()
	name, binary := v.intent.Runtime, v.intent.Binary
	if strings.Contains(filepath.Base(binary), "runhcs") || !t.shims.first(name) {
		return
	}
	var options *anypb.Any
	if o := v.intent.Options; o != nil {
		options = &anypb.Any{TypeUrl: o.TypeURL, Value: o.Value}
	}
	if t.begin() != nil {
		return
	}
	defer t.wg.Done()
	t.wg.Go(func() {
		info, err := t.callInfo(t.ctx, binary, options)
		switch {
		case t.ctx.Err() != nil:
		case err != nil:
			t.cfg.Log.Info("shim does not tell what it can do", "runtime", name, "error", clip(err.Error()))
		default:
			t.cfg.Log.Info("shim found", "runtime", name, "path", binary, "name", info.GetName(),
				"version", info.GetVersion().GetVersion(), "makes_mounts", info.GetAnnotations()[allowMounts])
		}
	})
}

// first tells whether a runtime's name is used for the first time.
func (f *foundShims) first(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked[name] {
		return false
	}
	if f.asked == nil || len(f.asked) >= maxAsked {
		f.asked = map[string]bool{}
	}
	f.asked[name] = true
	return true
}
