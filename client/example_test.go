package client_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/spec"
)

// Run a command in a new container, with its output on standard output, and
// take everything away afterwards. It needs a daemon, so it is compiled only.
func Example() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultAddress, client.Options{Namespace: "example"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer c.Close()
	exit, err := run(ctx, c, "hello", "busybox", "echo", "hello")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Println("exit status", exit.Status)
}

func run(ctx context.Context, c *client.Client, id, image string, args ...string) (client.Exit, error) {
	leased, end, err := c.Lease(ctx, time.Hour)
	if err != nil {
		return client.Exit{}, err
	}
	defer end()
	container, err := leased.NewContainer(ctx, client.ContainerOptions{ID: id, Image: image, Spec: spec.Options{Args: args}})
	if err != nil {
		return client.Exit{}, err
	}
	defer c.Remove(ctx, id, true)
	stdio, err := c.NewStdio(id, client.Streams{Out: os.Stdout, Err: os.Stderr})
	if err != nil {
		return client.Exit{}, err
	}
	defer stdio.Close()
	process, err := container.NewTask(ctx, client.TaskOptions{Stdio: stdio})
	if err != nil {
		return client.Exit{}, err
	}
	exits, err := process.Launch(ctx, ctx)
	if err != nil {
		return client.Exit{}, err
	}
	if exit := <-exits; exit.Err != nil {
		return exit, exit.Err
	}
	exit, err := process.Delete(ctx)
	if err != nil {
		return exit, err
	}
	return exit, stdio.Drain(ctx)
}
