package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/task"
	"github.com/berthd/berth/client"
)

func (a *app) startCommand() *cobra.Command {
	var attach, interactive bool
	var from string
	cmd := &cobra.Command{
		Use:   "start [-a [-i] | --checkpoint NAME] CONTAINER...",
		Short: "Run containers again that have ended",
		Long: "Run the commands of containers again, with the files as they left them. In the background their output is\n" +
			"added to their log; with -a one container runs in the foreground, as with `berth run`. With --checkpoint it\n" +
			"goes on where it was when that was written.\n\n" +
			"Exit status with -a: as that of `berth run`.",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(statusCreated, statusExited),
		RunE: func(cmd *cobra.Command, refs []string) error {
			if interactive && !attach {
				return usage(errors.New("-i is for -a"))
			}
			if attach && from != "" {
				return usage(errors.New("--checkpoint with -a: it goes on in the background; `berth attach` shows its output"))
			}
			if from != "" && len(refs) != 1 {
				return usage(errors.New("--checkpoint is for one container"))
			}
			if attach {
				if len(refs) != 1 {
					return usage(errors.New("-a is for one container"))
				}
				cmd.Annotations = map[string]string{ownAnnotation: ""}
				return a.startAttached(refs[0], interactive)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.each(ctx, c, refs, func(container *client.Container) error { return a.startAgain(ctx, c, container, from) })
			})
		},
	}
	cmd.Flags().StringVar(&from, "checkpoint", "", "go on from the checkpoint of that `name`, or CONTAINER/NAME if it is another's")
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "in the foreground")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "give it berth's standard input")
	return cmd
}

// startAgain runs a container in the background; if it runs already, that is
// that.
func (a *app) startAgain(ctx context.Context, c *client.Client, container *client.Container, checkpoint string) error {
	var from *types.Descriptor
	if checkpoint != "" {
		var err error
		if from, err = namedCheckpoint(ctx, c, container, checkpoint); err != nil {
			return err
		}
	}
	running, err := clear(ctx, c, container)
	if err != nil {
		return err
	}
	if running && from != nil {
		return hint(fmt.Errorf("container %q runs", container.ID()), "stop it with `berth stop %s` first", container.ID())
	}
	if running {
		return nil
	}
	if _, err := startDetached(ctx, container, client.LogOptions{}, from); err != nil {
		return errors.Join(err, discardTask(c, container.ID()))
	}
	return markStopped(c, container, false)
}

// clear takes away what is left of a container's last run, unless it goes on.
func clear(ctx context.Context, c *client.Client, container *client.Container) (running bool, err error) {
	state, err := taskState(ctx, c, container.ID())
	if err != nil {
		return false, err
	}
	if state != nil && state.GetStatus() != task.Status_STOPPED {
		return true, nil
	}
	if err := c.RemoveTask(ctx, container.ID(), false); err != nil {
		return false, err
	}
	if container.Record.GetLabels()[client.LabelExitStatus] == "" {
		return false, nil
	}
	return false, setLabels(c, container.ID(), map[string]string{client.LabelExitStatus: "", client.LabelExitedAt: ""})
}

// discardTask removes a task that came to nothing. The container stays.
func discardTask(c *client.Client, id string) error {
	ctx, cancel := afterwards()
	defer cancel()
	return c.RemoveTask(ctx, id, true)
}

// startAttached runs a container in the foreground.
func (a *app) startAttached(ref string, interactive bool) error {
	p := newProxy(notes{a})
	defer p.close()
	c, err := a.dial(p.ctx)
	if err != nil {
		return p.refused(err, "")
	}
	defer c.Close()
	container, err := findContainer(p.ctx, c, ref)
	if err != nil {
		return p.refused(err, "")
	}
	s, err := container.Spec()
	if err != nil {
		return err
	}
	tty := s.Process != nil && s.Process.Terminal
	if err := a.checkTerminal(interactive, tty); err != nil {
		return err
	}
	running, err := clear(p.ctx, c, container)
	if err != nil {
		return p.refused(err, "")
	}
	if running {
		return hint(fmt.Errorf("container %q runs already", container.ID()), "`berth exec` runs a further command in it")
	}
	exit, err := a.foreground(c, p, container, interactive, tty)
	switch {
	case exit.Err != nil:
		return err // it may run on
	case err != nil:
		return errors.Join(p.refused(err, commandOf(container)), discardTask(c, container.ID()))
	}
	if err := recordExit(c, container.ID(), exit); err != nil {
		fmt.Fprintf(a.err, "berth: %s\n", message(err))
	}
	return exited(exit)
}
