package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const hookUsage = "usage: berthd oci-hook -- COMMAND, then its arguments"

// maxHookState bounds the state that an OCI runtime gives a hook, which has the
// annotations of the container.
const maxHookState = 4 << 20

// hookState is what the templates of a hook may ask for.
type hookState struct {
	specs.State
	raw    []byte // as it came
	rootfs string
}

// ociHook makes a hook of any program: what an OCI runtime says on standard
// input is filled into the program's arguments and environment, and berthd becomes
// that program. It finds the same on its own standard input.
//
// Filled in are {{id}}, {{bundle}}, {{rootfs}}, {{pid}}, {{status}} and
// {{annotation "KEY"}}, in the syntax of Go's templates; the rest of that
// language is not there (see docs/compatibility.md).
func ociHook(args []string, in io.Reader) error {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New(hookUsage)
	}
	state, err := readHookState(in)
	if err != nil {
		return fmt.Errorf("oci-hook: %w", err)
	}
	filled := make([]string, 0, len(args))
	for _, a := range args {
		text, err := state.fill(a)
		if err != nil {
			return fmt.Errorf("oci-hook: argument %q: %w", a, err)
		}
		filled = append(filled, text)
	}
	env := os.Environ()
	for i, e := range env {
		key, _, _ := strings.Cut(e, "=")
		if env[i], err = state.fill(e); err != nil {
			return fmt.Errorf("oci-hook: environment variable %s: %w", key, err)
		}
	}
	path, err := exec.LookPath(filled[0])
	if err != nil {
		return fmt.Errorf("oci-hook: %w", err)
	}
	if err := setStdin(state.raw); err != nil {
		return fmt.Errorf("oci-hook: standard input of %s: %w", path, err)
	}
	return fmt.Errorf("oci-hook: %s: %w", path, unix.Exec(path, filled, env))
}

// readHookState reads the state of a container, and of its config.json where the
// root file system is.
func readHookState(in io.Reader) (*hookState, error) {
	raw, err := io.ReadAll(io.LimitReader(in, maxHookState+1))
	if err != nil {
		return nil, fmt.Errorf("read the container's state: %w", err)
	}
	if len(raw) > maxHookState {
		return nil, fmt.Errorf("the container's state on standard input is larger than %d bytes", maxHookState)
	}
	s := &hookState{raw: raw}
	if err := json.Unmarshal(raw, &s.State); err != nil {
		return nil, fmt.Errorf("standard input is no container state, as OCI runtimes give hooks: %w", err)
	}
	if s.Bundle == "" {
		return nil, errors.New("the container's state on standard input names no bundle")
	}
	path := filepath.Join(s.Bundle, "config.json")
	config, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec struct {
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
	}
	if err := json.Unmarshal(config, &spec); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.rootfs = spec.Root.Path; s.rootfs != "" && !filepath.IsAbs(s.rootfs) {
		s.rootfs = filepath.Join(s.Bundle, s.rootfs)
	}
	return s, nil
}

// fill replaces the templates in a text.
func (s *hookState) fill(text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "{{")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		action, after, closed := cutAction(rest)
		if !closed {
			return "", errors.New("{{ without }}")
		}
		value, err := s.value(strings.TrimSpace(action))
		if err != nil {
			return "", err
		}
		out.WriteString(value)
		text = after
	}
}

// cutAction splits a text after the end of the action that it begins with. Braces
// within quotes don't count.
func cutAction(text string) (action, after string, closed bool) {
	for i := 0; i < len(text); {
		switch {
		case strings.HasPrefix(text[i:], "}}"):
			return text[:i], text[i+2:], true
		case text[i] == '"' || text[i] == '`':
			quoted, err := strconv.QuotedPrefix(text[i:])
			if err != nil {
				return "", "", false
			}
			i += len(quoted)
		default:
			i++
		}
	}
	return "", "", false
}

// value is what an action stands for.
func (s *hookState) value(action string) (string, error) {
	name, argument, has := strings.Cut(action, " ")
	if name == "annotation" {
		key, err := strconv.Unquote(strings.TrimSpace(argument))
		if err != nil {
			return "", fmt.Errorf(`{{%s}}: want {{annotation "KEY"}}`, action)
		}
		return s.Annotations[key], nil
	}
	value, known := map[string]string{
		"id": s.ID, "bundle": s.Bundle, "rootfs": s.rootfs, "pid": strconv.Itoa(s.Pid), "status": string(s.Status),
	}[name]
	if !known || has {
		return "", fmt.Errorf(`{{%s}} is not known; id, bundle, rootfs, pid, status and annotation "KEY" are`, action)
	}
	return value, nil
}

// setStdin makes data what the process, and what it becomes, reads from standard
// input.
func setStdin(data []byte) error {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "state")
	defer f.Close()
	if _, err := io.Copy(f, bytes.NewReader(data)); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return unix.Dup3(fd, 0, 0)
}
