// Command berth is the command line of the container supervisor berthd: it runs
// containers, looks at them, and brings images in.
//
// Exit status: 0 for success, 1 for a failure, 2 for wrong usage. run, exec,
// start -a and attach have the status of the process; for failures of their own
// 125, if the command can't be invoked 126, if it is not found 127.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/version"
)

func main() {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now}
	os.Exit(a.main(os.Args[1:]))
}

// app is one call of the command: its global flags and its surroundings.
type app struct {
	in  *os.File
	out *os.File
	err io.Writer
	now func() time.Time

	address   string
	namespace string
	format    string
	debug     bool

	raw atomic.Bool // the terminal is a process's; see notes
}

// Environment variables that give the defaults of global flags.
const (
	addressEnv   = "BERTH_ADDRESS"
	namespaceEnv = "BERTH_NAMESPACE"
)

// main runs the command that args name and gives the exit status.
func (a *app) main(args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	ran, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	return a.report(ran, err)
}

// root builds the tree of commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Run containers that outlive their daemon",
		Long: "berth runs containers through the daemon berthd.\n\n" +
			"A container is named by its id, or by the start of it if no other begins so.",
		Version:       version.Build().Version,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.format != formatTable && a.format != formatJSON {
				return usage(fmt.Errorf("--format %q is neither table nor json", a.format))
			}
			return nil
		},
	}
	root.SetVersionTemplate(version.Build().Line("berth") + "\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.address, "address", env(addressEnv, client.DefaultAddress), "socket of the daemon ($"+addressEnv+")")
	flags.StringVarP(&a.namespace, "namespace", "n", env(namespaceEnv, client.DefaultNamespace), "namespace to work in ($"+namespaceEnv+")")
	flags.StringVar(&a.format, "format", formatTable, "output for people (table) or machines (json)")
	flags.BoolVar(&a.debug, "debug", false, "tell more about errors")
	_ = root.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{formatTable, formatJSON}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.runCommand(), a.startCommand(), a.execCommand(), a.attachCommand(),
		a.psCommand(), a.inspectCommand(), a.logsCommand(), a.eventsCommand(),
		a.killCommand(), a.pauseCommand(), a.unpauseCommand(), a.stopCommand(), a.waitCommand(), a.rmCommand(), a.checkpointCommand(), a.commitCommand(), a.diffCommand(), a.copyCommand(),
		a.imagesCommand(), a.pullCommand(), a.pushCommand(), a.loginCommand(), a.logoutCommand(), a.updateCommand(), a.doctorCommand(), a.fsckCommand(), a.dfCommand(), a.whyCommand(), a.pruneCommand(), a.backupCommand(), a.infoCommand(), a.versionCommand(),
	)
	ownUsage(root)
	return root
}

// ownUsage leaves the usage lines as they are written.
func ownUsage(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		sub.DisableFlagsInUseLine = true
		ownUsage(sub)
	}
}

// env gives the value of an environment variable, or a default.
func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// dial connects to the daemon.
func (a *app) dial(ctx context.Context) (*client.Client, error) {
	return client.Dial(ctx, a.address, client.Options{Namespace: a.namespace, Away: a.away()})
}

// away gives what a client calls when a wait loses the daemon: the first time
// it is said, the next times are part of the same.
func (a *app) away() func(error) {
	said := false
	return func(error) {
		if !said {
			fmt.Fprintln(notes{a}, "berth: the daemon went away; the container runs on, and so does the wait for it")
		}
		said = true
	}
}

// withClient runs a command that needs the daemon and that ^C simply ends.
func (a *app) withClient(do func(context.Context, *client.Client) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	err = do(ctx, c)
	if err != nil && ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

// errInterrupted says that the user ended the command.
var errInterrupted = errors.New("interrupted")
