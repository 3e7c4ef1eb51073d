package spec

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ExecOptions says what a further process in a container is to be. What is not
// set is as for the container's first process.
type ExecOptions struct {
	Args       []string // required
	Env        []string // KEY=VALUE, over the first process's
	User       string   // NAME|UID[:GROUP|GID]
	Cwd        string
	Terminal   bool
	Privileged bool // all capabilities that the host can grant
}

// Exec makes the description of a further process in the container that s
// describes. root, needed only with a user, is the container's.
func Exec(s *specs.Spec, o ExecOptions, root *Root, host Host) (*specs.Process, error) {
	if s.Process == nil {
		return nil, fmt.Errorf("the container's spec describes no process: %w", errdefs.ErrFailedPrecondition)
	}
	if len(o.Args) == 0 || o.Args[0] == "" {
		return nil, fmt.Errorf("no command is named: %w", errdefs.ErrInvalidArgument)
	}
	p := *s.Process
	p.Args = o.Args
	p.Terminal = o.Terminal
	p.ConsoleSize = nil
	p.CommandLine = ""
	home := ""
	if o.User != "" {
		user, dir, err := LookupUser(root, o.User)
		if err != nil {
			return nil, err
		}
		p.User, home = user, "HOME="+dir
	}
	if o.Cwd != "" {
		if !path.IsAbs(o.Cwd) {
			return nil, fmt.Errorf("working directory %q is not absolute: %w", o.Cwd, errdefs.ErrInvalidArgument)
		}
		p.Cwd = path.Clean(o.Cwd)
	}
	env := slices.Clone(p.Env)
	if home != "" {
		env = environment(env, []string{home})
	}
	if o.Terminal {
		env = environment([]string{"TERM=xterm"}, env)
	}
	p.Env = environment(env, o.Env)
	switch {
	case o.Privileged:
		p.Capabilities = capSets(slices.Clone(host.Capabilities), p.User.UID)
	case p.Capabilities != nil && o.User != "":
		p.Capabilities = capSets(slices.Clone(p.Capabilities.Bounding), p.User.UID)
	}
	return &p, nil
}
