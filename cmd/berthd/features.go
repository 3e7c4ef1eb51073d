package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/runtime/oci"
)

const (
	runtimeName = "io.containerd.runc.v2" // of our own shim, when none is named
	ownName     = "io.berth.runc.v1"      // the same under its own name
	maxRuntimes = 16                      // binaries whose features are kept
)

// features asks OCI runtimes what they can do, once for each binary.
type features struct {
	binary   string        // of a request that names none
	deadline time.Duration // for one answer
	// foreign asks the shim of another runtime than our own.
	foreign func(ctx context.Context, runtime string, options *anypb.Any) (*types.RuntimeInfo, error)

	// mu guards known. No process is run under it.
	mu    sync.Mutex
	known map[fingerprint]*anypb.Any
}

// fingerprint tells a binary from what was installed in its place.
type fingerprint struct {
	path    string
	size    int64
	changed time.Time
}

// info answers introspection's question for a runtime. A runtime that can't
// tell its features (runc before 1.1) has none in the answer.
func (f *features) info(ctx context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error) {
	name := r.GetRuntimePath()
	if name == "" {
		name = runtimeName
	}
	if name != runtimeName && name != ownName {
		return f.foreign(ctx, name, r.GetOptions())
	}
	binary := f.binary
	if options := r.GetOptions(); protobuf.Is(options, (*runc.Options)(nil)) {
		m, err := protobuf.UnmarshalAny(options)
		if err != nil {
			return nil, fmt.Errorf("runtime %q: options: %w", name, err)
		}
		if b := m.(*runc.Options).GetBinaryName(); b != "" {
			binary = b
		}
	}
	told, err := f.of(ctx, binary)
	if err != nil {
		return nil, fmt.Errorf("runtime %q: %w", name, err)
	}
	return &types.RuntimeInfo{
		Name:     name,
		Version:  &types.RuntimeVersion{Version: version.String(), Revision: version.Revision()},
		Options:  r.GetOptions(),
		Features: told,
	}, nil
}

// of gives the features of a binary; nil if it can't tell them.
func (f *features) of(ctx context.Context, binary string) (*anypb.Any, error) {
	path, err := exec.LookPath(binary)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("OCI runtime %q is not installed: %w", binary, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %q: %w", binary, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %q: %w", binary, err)
	}
	print := fingerprint{path, info.Size(), info.ModTime()}
	f.mu.Lock()
	told, ok := f.known[print]
	f.mu.Unlock()
	if ok {
		return told, nil
	}
	told, err = f.ask(ctx, path)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known == nil || len(f.known) >= maxRuntimes {
		f.known = map[fingerprint]*anypb.Any{}
	}
	f.known[print] = told
	return told, nil
}

// ask asks a binary.
func (f *features) ask(ctx context.Context, path string) (*anypb.Any, error) {
	ctx, cancel := context.WithTimeout(ctx, f.deadline)
	defer cancel()
	told, err := (&oci.CLI{Binary: path}).Features(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", err, errdefs.ErrUnknown)
	case told == nil:
		return nil, nil // it has no such command
	}
	return &anypb.Any{TypeUrl: protobuf.TypeFeatures, Value: told}, nil
}
