package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/runtime/spec"
)

// leaseTime is how long what a run makes is kept should berth die halfway.
const leaseTime = time.Hour

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARGUMENT...]]",
		Short: "Run a command in a new container",
		Long: "Run a command in a new container, made from an image, which is pulled if it is not there (--pull).\n\n" +
			"In the foreground the command has berth's output and signals, and with -i its input. Three ^C in a row kill\n" +
			"what does not heed one. With -d it runs in the background, and its output goes to a log (`berth logs`); `berth\n" +
			"attach` shows what comes and, with -i too, sends input.\n\n" +
			"Exit status: that of the command, or 128 and the number of the signal that ended it; 125 if berth failed,\n" +
			"126 if the command can't be invoked, 127 if it is not found.",
		Example: "  berth run --rm -it busybox sh\n" +
			"  berth run -d --name web -m 64m --net host -v /srv/www:/www:ro busybox httpd -f -h /www",
		Args:              minArgs(1, "image"),
		Annotations:       map[string]string{ownAnnotation: ""},
		ValidArgsFunction: first(a.completeImages()),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("entrypoint") {
				f.entrypoint = []string{f.entrypointString}
			}
			return a.run(&f, args[0], args[1:])
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the image is the command's
	f.register(cmd.Flags())
	_ = cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions(
		[]string{pullMissing, pullAlways, pullNever}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("net", cobra.FixedCompletions(
		[]string{string(spec.NetworkNone), string(spec.NetworkHost)}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) run(f *runFlags, image string, args []string) error {
	if err := f.check(); err != nil {
		return err
	}
	o, err := f.options(image, args)
	if err != nil {
		return usage(err)
	}
	if err := a.checkTerminal(f.interactive && !f.detach, f.tty); err != nil {
		return err
	}
	p := newProxy(notes{a})
	defer p.close()
	c, err := a.dial(p.ctx)
	if err != nil {
		return p.refused(err, "")
	}
	defer c.Close()
	if err := join(p.ctx, c, &o.Spec); err != nil {
		return err
	}
	if err := a.ensure(p.ctx, c, f.pull, o.Image, o.Snapshotter); err != nil {
		return p.refused(err, "")
	}
	if f.detach {
		return a.runDetached(c, p, f, o)
	}
	return a.runForeground(c, p, f, o)
}

// newContainer makes a container under a lease of its own.
func newContainer(ctx context.Context, c *client.Client, o client.ContainerOptions) (made *client.Container, err error) {
	leased, end, err := c.Lease(ctx, leaseTime)
	if err != nil {
		return nil, err
	}
	defer func() {
		if endErr := end(); endErr != nil {
			err = errors.Join(err, endErr)
			if made != nil {
				made, err = nil, discard(c, o.ID, err)
			}
		}
	}()
	made, err = leased.NewContainer(ctx, o)
	switch {
	case errdefs.IsAlreadyExists(err):
		return nil, hint(fmt.Errorf("container %q: %w", o.ID, errdefs.ErrAlreadyExists),
			"choose another --name, or remove it with `berth rm %s`", o.ID)
	case errdefs.IsNotFound(err):
		if _, imageErr := c.FindImage(ctx, o.Image); errdefs.IsNotFound(imageErr) {
			return nil, hint(err, "bring it in with `berth images import FILE` or `berth pull NAME`; `berth images ls` lists what is there")
		}
	}
	return made, err
}

// discard removes a container that came to nothing, for an error that it joins.
func discard(c *client.Client, id string, err error) error {
	ctx, cancel := afterwards()
	defer cancel()
	if removeErr := c.Remove(ctx, id, true); removeErr != nil && !errdefs.IsNotFound(removeErr) {
		return errors.Join(err, removeErr)
	}
	return err
}

// runDetached makes a container, starts it and says its id.
func (a *app) runDetached(c *client.Client, p *proxy, f *runFlags, o client.ContainerOptions) error {
	var from *types.Descriptor
	if f.checkpoint != "" {
		var err error
		if from, err = namedCheckpoint(p.ctx, c, nil, f.checkpoint); err != nil {
			return p.refused(err, "")
		}
	}
	container, err := newContainer(p.ctx, c, o)
	if err != nil {
		return p.refused(err, "")
	}
	uri, err := startDetached(p.ctx, container, f.logOptions(), from)
	if err == nil && kept(container) {
		err = setLabels(c, o.ID, map[string]string{labels.RestartLogURI: uri})
	}
	if err != nil {
		return discard(c, o.ID, p.refused(err, commandOf(container)))
	}
	fmt.Fprintln(a.out, o.ID)
	return nil
}

// commandOf is what a container's first process is told to run.
func commandOf(container *client.Container) string {
	s, err := container.Spec()
	if err != nil || s.Process == nil || len(s.Process.Args) == 0 {
		return ""
	}
	return s.Process.Args[0]
}

// startDetached runs a container's first process with its output to the log, and
// gives the URI of that. It goes on from a checkpoint if one is given.
func startDetached(ctx context.Context, container *client.Container, o client.LogOptions, from *types.Descriptor) (uri string, err error) {
	if uri, err = container.PrepareLog(ctx, o); err != nil {
		return "", err
	}
	p, err := container.NewTask(ctx, client.TaskOptions{LogURI: uri, Checkpoint: from})
	if err != nil {
		return "", err
	}
	_, err = p.Start(ctx)
	return uri, err
}

// runForeground makes a container, lives with it until it ends, and removes it
// if asked to. A container that never ran is removed in any case.
func (a *app) runForeground(c *client.Client, p *proxy, f *runFlags, o client.ContainerOptions) error {
	container, err := newContainer(p.ctx, c, o)
	if err != nil {
		return p.refused(err, "")
	}
	exit, err := a.foreground(c, p, container, f.interactive, f.tty)
	switch {
	case exit.Err != nil:
		return err // it may run on, so it stays
	case err != nil:
		return discard(c, o.ID, p.refused(err, commandOf(container)))
	case f.remove:
		if err := discard(c, o.ID, nil); err != nil {
			fmt.Fprintf(a.err, "berth: %s\n", message(err))
		}
		return exited(exit)
	}
	if err := recordExit(c, container.ID(), exit); err != nil {
		fmt.Fprintf(a.err, "berth: %s\n", message(err))
	}
	return exited(exit)
}

// foreground runs a container's first process with berth's own streams, until
// it has ended and its task is deleted.
func (a *app) foreground(c *client.Client, p *proxy, container *client.Container, interactive, tty bool) (client.Exit, error) {
	s, err := a.newSession(c, p, container.ID(), interactive, tty)
	if err != nil {
		return client.Exit{}, err
	}
	defer s.close()
	process, err := container.NewTask(p.ctx, client.TaskOptions{Stdio: s.stdio})
	if err != nil {
		return client.Exit{}, err
	}
	return s.run(process)
}

// recordExit notes on a container how its task ended, which is deleted now. That
// the container is gone is no error.
func recordExit(c *client.Client, id string, exit client.Exit) error {
	return setLabels(c, id, map[string]string{
		client.LabelExitStatus: fmt.Sprint(exit.Status),
		client.LabelExitedAt:   exit.At.Format(time.RFC3339Nano),
	})
}

// setLabels sets labels of a container; an empty value takes one away.
func setLabels(c *client.Client, id string, labels map[string]string) error {
	ctx, cancel := afterwards()
	defer cancel()
	mask := &fieldmaskpb.FieldMask{}
	for key := range labels {
		mask.Paths = append(mask.Paths, "labels."+key)
	}
	_, err := c.Containers().Update(ctx, &containers.UpdateContainerRequest{
		Container: &containers.Container{Id: id, Labels: labels}, UpdateMask: mask,
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("label container %q: %w", id, err)
	}
	return nil
}
