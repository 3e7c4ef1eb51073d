package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/spec"
)

// execFlags are the flags of exec.
type execFlags struct {
	detach, interactive, tty, privileged bool

	env, envFiles []string
	user, cwd     string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARGUMENT...]",
		Short: "Run a further command in a container",
		Long: "Run a further command in a container that runs. Environment, user and directory are those of the container's\n" +
			"own command unless told otherwise.\n\n" +
			"Exit status: as that of `berth run`.",
		Example:           "  berth exec -it web sh",
		Args:              minArgs(2, "container and command"),
		Annotations:       map[string]string{ownAnnotation: ""},
		ValidArgsFunction: first(a.completeContainers(statusRunning)),
		RunE:              func(_ *cobra.Command, args []string) error { return a.exec(&f, args[0], args[1:]) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the container is the command's
	flags.BoolVarP(&f.detach, "detach", "d", false, "let it run in the background; its output is lost")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "give it berth's standard input")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment, as `KEY[=VALUE]`; KEY alone passes berth's own on")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`file` with such lines")
	flags.StringVarP(&f.user, "user", "u", "", "user, as `NAME|UID[:GROUP|GID]`")
	flags.StringVarP(&f.cwd, "cwd", "w", "", "working `directory`")
	flags.BoolVar(&f.privileged, "privileged", false, "give it all capabilities")
	return cmd
}

func (a *app) exec(f *execFlags, ref string, args []string) error {
	if f.detach && f.interactive {
		return usage(errors.New("-i with -d: nobody would be there to type"))
	}
	if err := a.checkTerminal(f.interactive, f.tty); err != nil {
		return err
	}
	env, err := environment(f.envFiles, f.env)
	if err != nil {
		return usage(err)
	}
	p := newProxy(notes{a})
	defer p.close()
	c, err := a.dial(p.ctx)
	if err != nil {
		return p.refused(err, "")
	}
	defer c.Close()
	container, state, err := findRunning(p.ctx, c, ref)
	if err != nil {
		return p.refused(err, "")
	}
	o := spec.ExecOptions{Args: args, Env: env, User: f.user, Cwd: f.cwd, Terminal: f.tty, Privileged: f.privileged}
	process, err := execProcess(container, state.GetPid(), o)
	if err != nil {
		return err
	}
	if f.detach {
		return p.refused(execDetached(p.ctx, c, container.ID(), process), args[0])
	}
	return a.execForeground(c, p, f, container.ID(), process)
}

// findRunning finds a container whose first process runs.
func findRunning(ctx context.Context, c *client.Client, ref string) (*client.Container, *task.Process, error) {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return nil, nil, err
	}
	state, err := taskState(ctx, c, container.ID())
	if err != nil {
		return nil, nil, err
	}
	switch state.GetStatus() {
	case task.Status_RUNNING:
		return container, state, nil
	case task.Status_PAUSED, task.Status_PAUSING:
		return nil, nil, hint(fmt.Errorf("container %q is paused", container.ID()), "`berth unpause %s` lets it go on", container.ID())
	}
	return nil, nil, hint(fmt.Errorf("container %q does not run", container.ID()), "`berth start %s` runs it again", container.ID())
}

// execProcess makes the description of a further process. A user is looked up in
// the container as it is now: through its first process.
func execProcess(container *client.Container, pid uint32, o spec.ExecOptions) (*specs.Process, error) {
	s, err := container.Spec()
	if err != nil {
		return nil, err
	}
	host, err := spec.ReadHost()
	if err != nil {
		return nil, err
	}
	if o.User == "" {
		return spec.Exec(s, o, nil, host)
	}
	root, err := spec.OpenRoot(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return spec.Exec(s, o, root, host)
}

// execID makes up a name for a further process.
func execID() string { return fmt.Sprintf("exec-%08x", rand.Uint32()) }

func execDetached(ctx context.Context, c *client.Client, container string, process *specs.Process) error {
	p, err := c.Exec(ctx, container, execID(), process, client.TaskOptions{})
	if err != nil {
		return err
	}
	if _, err := p.Start(ctx); err != nil {
		return errors.Join(err, p.Discard(ctx))
	}
	return nil
}

func (a *app) execForeground(c *client.Client, p *proxy, f *execFlags, container string, process *specs.Process) error {
	id := execID()
	s, err := a.newSession(c, p, id, f.interactive, f.tty)
	if err != nil {
		return err
	}
	defer s.close()
	run, err := c.Exec(p.ctx, container, id, process, client.TaskOptions{Stdio: s.stdio})
	if err != nil {
		return p.refused(err, process.Args[0])
	}
	exit, err := s.run(run)
	if err != nil {
		return p.refused(err, process.Args[0])
	}
	return exited(exit)
}
