package oci

import "context"

// CriuOptions say what criu may do beyond the plain case. A dump and the restore
// of it need the same.
type CriuOptions struct {
	OpenTCP         bool     // TCP connections that are open
	ExternalSockets bool     // unix sockets whose other end is outside of the container
	Terminal        bool     // a process whose session leader is outside, as of a shell's job
	FileLocks       bool     // locks on files
	EmptyNamespaces []string // namespaces to make anew and leave empty, such as "network"
	CgroupsMode     string   // how control groups are kept: "soft", "full", "strict"; "" is the runtime's default
}

func (o CriuOptions) arguments() []string {
	var args []string
	for _, flag := range []struct {
		set  bool
		name string
	}{
		{o.OpenTCP, "--tcp-established"},
		{o.ExternalSockets, "--ext-unix-sk"},
		{o.Terminal, "--shell-job"},
		{o.FileLocks, "--file-locks"},
	} {
		if flag.set {
			args = append(args, flag.name)
		}
	}
	for _, name := range o.EmptyNamespaces {
		args = append(args, "--empty-ns", name)
	}
	if o.CgroupsMode != "" {
		args = append(args, "--manage-cgroups-mode", o.CgroupsMode)
	}
	return args
}

// CheckpointOptions are the arguments of Checkpoint.
type CheckpointOptions struct {
	Images string // directory that gets criu's image files
	Work   string // directory for criu's log
	Exit   bool   // the container's processes end with the dump
	Criu   CriuOptions
}

// Checkpoint has criu write the processes of a container to files. A failure
// that is not the runtime's own is a *CriuError.
func (c *CLI) Checkpoint(ctx context.Context, id string, o CheckpointOptions) error {
	args := []string{"--image-path", o.Images, "--work-path", o.Work}
	if !o.Exit {
		args = append(args, "--leave-running")
	}
	args = append(append(args, o.Criu.arguments()...), id)
	err := c.run(ctx, call{command: "checkpoint", args: args})
	return c.explainCriu(ctx, err, o.Work, dumpLog)
}

// RestoreOptions are the arguments of Restore.
type RestoreOptions struct {
	Bundle        string
	PIDFile       string
	ConsoleSocket string
	NoPivot       bool
	Images        string // directory with criu's image files
	Work          string // directory for criu's log
	Criu          CriuOptions
	Stdio         Stdio
}

// Restore makes a container of what Checkpoint has written and lets it run on.
// A failure that is not the runtime's own is a *CriuError.
func (c *CLI) Restore(ctx context.Context, id string, o RestoreOptions) error {
	args := []string{"--bundle", o.Bundle, "--pid-file", o.PIDFile, "--detach", "--image-path", o.Images, "--work-path", o.Work}
	if o.ConsoleSocket != "" {
		args = append(args, "--console-socket", o.ConsoleSocket)
	}
	if o.NoPivot {
		args = append(args, "--no-pivot")
	}
	args = append(append(args, o.Criu.arguments()...), id)
	err := c.run(ctx, call{command: "restore", args: args, stdio: o.Stdio, shared: true})
	return c.explainCriu(ctx, err, o.Work, restoreLog)
}
