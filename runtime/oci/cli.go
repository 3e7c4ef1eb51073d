package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// DefaultBinary is the runtime used when none is named.
const DefaultBinary = "runc"

// CLI drives one OCI runtime for containers below one root.
type CLI struct {
	Binary        string // name looked up in PATH, or a path; "" is DefaultBinary
	Root          string // the runtime's state directory (--root); "" leaves its default
	LogDir        string // where the runtime's log goes; "" is the working directory
	SystemdCgroup bool   // --systemd-cgroup

	// found is where the binary was the last time.
	found atomic.Pointer[string]
}

// Stdio is what a call's process gets as its standard streams, and with Create
// and Exec what the container's process gets. A nil one is /dev/null; for
// streams that no container gets, standard error is captured for the error.
// The files must be in blocking mode.
type Stdio struct {
	In, Out, Err *os.File
}

// CreateOptions are the arguments of Create.
type CreateOptions struct {
	Bundle        string // directory with config.json
	PIDFile       string // where the runtime writes the pid of init
	ConsoleSocket string // unix socket that gets the pty's master; "" for no terminal
	NoPivot       bool   // --no-pivot
	NoNewKeyring  bool   // --no-new-keyring
	Stdio         Stdio
}

// Create makes a container whose init waits for Start.
func (c *CLI) Create(ctx context.Context, id string, o CreateOptions) error {
	args := []string{"--bundle", o.Bundle, "--pid-file", o.PIDFile}
	if o.ConsoleSocket != "" {
		args = append(args, "--console-socket", o.ConsoleSocket)
	}
	if o.NoPivot {
		args = append(args, "--no-pivot")
	}
	if o.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	return c.run(ctx, call{command: "create", args: append(args, id), stdio: o.Stdio, shared: true})
}

// Start lets init of a created container run its program.
func (c *CLI) Start(ctx context.Context, id string) error {
	return c.run(ctx, call{command: "start", args: []string{id}})
}

// ExecOptions are the arguments of Exec.
type ExecOptions struct {
	Process       string // file with the runtime-spec Process as JSON
	PIDFile       string
	ConsoleSocket string
	Stdio         Stdio
}

// Exec starts a further process in a container and does not wait for it.
func (c *CLI) Exec(ctx context.Context, id string, o ExecOptions) error {
	args := []string{"--process", o.Process, "--pid-file", o.PIDFile, "--detach"}
	if o.ConsoleSocket != "" {
		args = append(args, "--console-socket", o.ConsoleSocket)
	}
	return c.run(ctx, call{command: "exec", args: append(args, id), stdio: o.Stdio, shared: true})
}

// Kill sends a signal to init, or with all to every process of the container.
func (c *CLI) Kill(ctx context.Context, id string, sig unix.Signal, all bool) error {
	args := []string{id, strconv.Itoa(int(sig))}
	if all {
		args = append([]string{"--all"}, args...)
	}
	return c.run(ctx, call{command: "kill", args: args})
}

// Delete removes what the runtime holds of a container; with force it kills
// what still runs there, and an unknown container is no error.
func (c *CLI) Delete(ctx context.Context, id string, force bool) error {
	args := []string{id}
	if force {
		args = []string{"--force", id}
	}
	return c.run(ctx, call{command: "delete", args: args})
}

// Pause freezes every process of a container.
func (c *CLI) Pause(ctx context.Context, id string) error {
	return c.run(ctx, call{command: "pause", args: []string{id}})
}

// Resume undoes Pause.
func (c *CLI) Resume(ctx context.Context, id string) error {
	return c.run(ctx, call{command: "resume", args: []string{id}})
}

// Update sets new limits: resources is a runtime-spec LinuxResources as JSON.
func (c *CLI) Update(ctx context.Context, id string, resources []byte) (err error) {
	in, err := memoryFile("resources", 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := in.Write(resources); err != nil {
		return err
	}
	if _, err := in.Seek(0, 0); err != nil {
		return err
	}
	// Not "-": crun takes that for /dev/stdin, which a small system may lack.
	return c.run(ctx, call{command: "update", args: []string{"--resources", "/proc/self/fd/0", id}, stdio: Stdio{In: in}})
}

// State is what the runtime says of a container (runtime-spec, "State").
type State struct {
	ID     string `json:"id"`
	Status string `json:"status"` // creating, created, running, paused, stopped
	PID    int    `json:"pid"`
	Bundle string `json:"bundle"`
}

// State asks the runtime for a container's state.
func (c *CLI) State(ctx context.Context, id string) (State, error) {
	out, err := memoryFile("stdout", maxOutput)
	if err != nil {
		return State{}, err
	}
	defer out.Close()
	if err := c.run(ctx, call{command: "state", args: []string{id}, stdio: Stdio{Out: out}}); err != nil {
		return State{}, err
	}
	data, err := written(out)
	if err != nil {
		return State{}, err
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("%s state of %q: answer is no JSON: %w", c.name(), id, err)
	}
	return s, nil
}

// binary returns the name or path of the runtime.
func (c *CLI) binary() string {
	if c.Binary == "" {
		return DefaultBinary
	}
	return c.Binary
}

// name is how errors call the runtime.
func (c *CLI) name() string { return filepath.Base(c.binary()) }
