// Command berthd is the daemon: it keeps metadata, content and snapshots under
// its root, serves the API on a unix socket and looks after the shims that hold
// the containers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/version"
)

const usage = `berthd runs containers and looks after them.

  berthd [flags]                                       run the daemon
  berthd [flags] publish --topic TOPIC --namespace NS  publish the event on standard input
  berthd oci-hook -- COMMAND [ARGUMENT]...             be a hook of an OCI runtime: run COMMAND, what the
                                                       runtime says filled in
  berthd [flags] fsck [--repair] [--deep]              look for damage in the store, and repair it, while no daemon runs
  berthd [flags] restore FILE                          bring back what berth backup has saved, while no daemon runs
  berthd config default                                print the configuration and what it means
  berthd config check [FILE]                           say what is wrong with a configuration

Signals: TERM and INT stop the daemon, containers run on; HUP reads the log
level again; USR1 writes the stack of every goroutine to the log.

Flags:
`

// flags override the configuration file.
type flags struct {
	config, root, state, address, logLevel string
	version                                bool
}

func (f *flags) set() *flag.FlagSet {
	s := flag.NewFlagSet("berthd", flag.ContinueOnError)
	s.SetOutput(io.Discard) // run says what is wrong
	s.StringVar(&f.config, "config", "", "configuration `file` (default "+config.DefaultPath+", if it is there)")
	s.StringVar(&f.root, "root", "", "`directory` for what outlives the machine's power")
	s.StringVar(&f.state, "state", "", "`directory` for what lives as long as the boot")
	s.StringVar(&f.address, "address", "", "`path` of the socket to serve")
	s.StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error")
	s.BoolVar(&f.version, "version", false, "print the version")
	return s
}

// load reads the configuration file and puts the flags over it.
func (f *flags) load() (config.Config, error) {
	c, err := config.Load(f.config)
	if err != nil {
		return config.Config{}, err
	}
	for _, o := range []struct{ flag, field *string }{
		{&f.root, &c.Root}, {&f.state, &c.State}, {&f.address, &c.GRPC.Address}, {&f.logLevel, &c.Log.Level},
	} {
		if *o.flag != "" {
			*o.field = *o.flag
		}
	}
	c.Complete()
	return c, c.Check()
}

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "berthd: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	f := &flags{}
	set := f.set()
	if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
		set.SetOutput(out)
		set.PrintDefaults()
		return nil
	} else if err != nil {
		return fmt.Errorf("%w; berthd -help lists the flags", err)
	}
	if f.version {
		_, err := fmt.Fprintln(out, version.Build().Line("berthd"))
		return err
	}
	switch set.Arg(0) {
	case "":
		return serve(ctx, f, errOut)
	case "publish":
		return publish(ctx, f, set.Args()[1:], in)
	case "fsck":
		return fsck(ctx, f, set.Args()[1:], out, errOut)
	case "restore":
		return restore(ctx, f, set.Args()[1:], in, out)
	case "oci-hook":
		return ociHook(set.Args()[1:], in)
	case "config":
		return configCommand(set.Args()[1:], f.config, out)
	}
	return fmt.Errorf("%q is not a command of berthd; berthd -help lists them", set.Arg(0))
}

// configCommand prints or checks a configuration.
func configCommand(args []string, path string, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "default":
		return config.Default().Write(out)
	case len(args) >= 1 && len(args) <= 2 && args[0] == "check":
		if len(args) == 2 {
			path = args[1]
		}
		if _, err := (&flags{config: path}).load(); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "The configuration is good.")
		return err
	}
	return errors.New("usage: berthd config default | berthd config check [FILE]")
}
