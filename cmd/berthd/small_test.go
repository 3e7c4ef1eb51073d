package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/protobuf"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestCommandsWithoutADaemon(t *testing.T) {
	call := func(args ...string) (string, error) {
		var out, errOut bytes.Buffer
		err := run(t.Context(), args, strings.NewReader(""), &out, &errOut)
		return out.String(), err
	}
	text, err := call("config", "default")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := call("config", "check", path); err != nil || !strings.Contains(out, "good") {
		t.Errorf("the printed default: %q, error %v", out, err)
	}
	if c, err := config.Load(path); err != nil || !reflect.DeepEqual(c, config.Default()) {
		t.Errorf("the printed default reads as %+v, error %v", c, err)
	}
	if err := os.WriteFile(path, []byte("state = '/x'\nnonsense = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := call("config", "check", path); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), ":2: unknown key") {
		t.Errorf("a bad file: %v", err)
	}
	if _, err := call("config"); err == nil {
		t.Error("config alone is no command")
	}
	if out, err := call("--version"); err != nil || !strings.HasPrefix(out, "berthd ") {
		t.Errorf("version: %q, error %v", out, err)
	}
}

func TestIdentity(t *testing.T) {
	root := t.TempDir()
	first, err := identity(root)
	if err != nil || !uuidForm.MatchString(first) {
		t.Fatalf("%q, error %v", first, err)
	}
	if second, err := identity(root); err != nil || second != first {
		t.Errorf("%q, then %q, error %v", first, second, err)
	}
	if other, err := identity(t.TempDir()); err != nil || other == first {
		t.Errorf("two roots are both %q, error %v", other, err)
	}
	if err := os.WriteFile(filepath.Join(root, uuidFile), []byte("me"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := identity(root); err == nil {
		t.Errorf("a damaged file is taken for %q", id)
	}
}

// script makes a program that counts its runs.
func script(t *testing.T, body string) (path string, runs func() int) {
	t.Helper()
	dir := t.TempDir()
	path, count := filepath.Join(dir, "runtime"), filepath.Join(dir, "count")
	if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\necho >> %s\n%s\n", count, body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, func() int {
		b, err := os.ReadFile(count)
		if err != nil {
			t.Fatal(err)
		}
		return len(b)
	}
}

func TestFeatures(t *testing.T) {
	path, runs := script(t, `[ "$1" = features ] && echo '{"ociVersionMin":"1.0.0"}'`)
	f := &features{binary: path, deadline: patience}
	options, err := protobuf.MarshalAny(&runc.Options{BinaryName: path})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*types.RuntimeRequest{
		{}, {RuntimePath: runtimeName}, {RuntimePath: ownName, Options: options},
		{Options: &anypb.Any{TypeUrl: "type.googleapis.com/" + options.GetTypeUrl(), Value: options.GetValue()}},
	} {
		info, err := f.info(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if info.GetFeatures().GetTypeUrl() != protobuf.TypeFeatures || strings.TrimSpace(string(info.GetFeatures().GetValue())) != `{"ociVersionMin":"1.0.0"}` {
			t.Errorf("features %v", info.GetFeatures())
		}
		if info.GetName() == "" || info.GetVersion().GetVersion() == "" {
			t.Errorf("info %v", info)
		}
	}
	if n := runs(); n != 1 {
		t.Errorf("the runtime was asked %d times", n)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.info(t.Context(), &types.RuntimeRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := runs(); n != 2 {
		t.Errorf("a new binary was not asked: %d runs", n)
	}
}

func TestFeaturesThatFail(t *testing.T) {
	old, _ := script(t, "exit 1")
	garbage, _ := script(t, "echo no json")
	flood, _ := script(t, "exec cat /dev/zero")
	hangs, _ := script(t, "exec sleep 1000")
	killed, _ := script(t, "kill -9 $$")
	for _, c := range []struct {
		name, binary, path string
		want               error // nil: no features and no error
		deadline           time.Duration
	}{
		{"too old", old, "", nil, patience},
		{"garbage", garbage, "", errdefs.ErrUnknown, patience},
		{"too much", flood, "", errdefs.ErrUnknown, patience},
		{"never ends", hangs, "", context.DeadlineExceeded, 200 * time.Millisecond},
		{"killed", killed, "", errAny, patience},
		{"missing", "/nonexistent/runc", "", errdefs.ErrNotFound, patience},
		{"missing in PATH", "no-such-runtime", "", errdefs.ErrNotFound, patience},
		{"foreign", old, "io.containerd.kata.v2", errForeign, patience},
	} {
		f := &features{binary: c.binary, deadline: c.deadline, foreign: func(_ context.Context, name string, _ *anypb.Any) (*types.RuntimeInfo, error) {
			return nil, fmt.Errorf("%s: %w", name, errForeign)
		}}
		info, err := f.info(t.Context(), &types.RuntimeRequest{RuntimePath: c.path})
		switch {
		case c.want == nil && (err != nil || info.GetFeatures() != nil):
			t.Errorf("%s: %v, error %v", c.name, info, err)
		case c.want == errAny && err == nil, c.want != nil && c.want != errAny && !errors.Is(err, c.want):
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

var (
	errAny     = errors.New("any error")
	errForeign = errors.New("the foreign shim was asked")
)
