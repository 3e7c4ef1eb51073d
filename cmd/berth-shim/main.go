// Command berth-shim supervises the processes of one container, or of several
// that belong together. The daemon starts it; people have no need to.
//
// Installed as containerd-shim-berth-v2 it serves other daemons that speak the
// shim protocol, under the runtime name io.containerd.berth.v2.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/berthd/berth/internal/version"
)

const program = "berth-shim"

const usage = `usage: berth-shim serve  -namespace NS -id ID -bundle PATH [-socket PATH] [-pod] [-debug]
                         [-address SOCKET -publish-binary PATH]
       berth-shim delete -namespace NS -id ID [-bundle PATH] [-debug]
       berth-shim start  -namespace NS -id ID -address SOCKET [-publish-binary PATH] [-debug]
       berth-shim -info
       berth-shim -v | --version

serve   supervises a container. Its listening socket is file descriptor 3; with
        -socket it removes that path when it leaves, with -pod it serves any
        number of containers, with -address and -publish-binary it publishes
        events by that program where TTRPC_ADDRESS is not set.
delete  removes what is left of a container whose shim is dead, and prints a
        containerd.task.v3.DeleteResponse as protobuf.
start   leaves a server for the container whose bundle is the working directory,
        or finds that of its group, and prints where it listens.
-info   prints a containerd.types.RuntimeInfo for the options on standard input.

They are run by daemons: serve and delete by berthd, start, delete and -info by
others. Environment: TTRPC_ADDRESS (where events go), BERTH_OCI_ROOT (state of
the OCI runtimes), BERTH_CGROUP_MOUNTS (what mountinfo says about control groups).
`

// arguments are what the command line says.
type arguments struct {
	command   string
	namespace string
	id        string
	bundle    string
	address   string // the daemon's socket
	publish   string // the daemon's program, which publishes events
	socket    string // to remove at the end
	pod       bool   // several containers, each with a claim of its own
	debug     bool
}

func main() {
	args, err := parse(os.Args[1:])
	if err == nil {
		switch args.command {
		case "version":
			fmt.Println(version.Build().Line(program))
		case "help":
			fmt.Print(usage)
		case "serve":
			err = serve(args)
		case "delete":
			err = remove(args)
		case "start":
			err = start(args)
		case "info":
			err = info()
		default:
			err = fmt.Errorf("unknown command %q\n%s", args.command, usage)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program, err)
		os.Exit(1)
	}
}

// parse reads the command line. Flags may stand before and after the command,
// since other daemons put them before.
func parse(argv []string) (arguments, error) {
	var a arguments
	var showVersion, showInfo bool
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.StringVar(&a.namespace, "namespace", "", "")
	flags.StringVar(&a.id, "id", "", "")
	flags.StringVar(&a.bundle, "bundle", "", "")
	flags.BoolVar(&a.debug, "debug", false, "")
	flags.StringVar(&a.address, "address", "", "")
	flags.StringVar(&a.socket, "socket", "", "")
	flags.BoolVar(&a.pod, "pod", false, "")
	flags.StringVar(&a.publish, "publish-binary", "", "")
	flags.BoolVar(&showInfo, "info", false, "")
	flags.BoolVar(&showVersion, "v", false, "")
	flags.BoolVar(&showVersion, "version", false, "")
	for len(argv) > 0 {
		if err := flags.Parse(argv); err != nil {
			if err == flag.ErrHelp {
				os.Exit(0)
			}
			return a, err
		}
		if argv = flags.Args(); len(argv) > 0 {
			if a.command != "" {
				return a, fmt.Errorf("one command too many: %q", argv[0])
			}
			a.command, argv = argv[0], argv[1:]
		}
	}
	switch {
	case showVersion:
		a.command = "version"
		return a, nil
	case showInfo:
		a.command = "info"
		return a, nil
	case a.command == "":
		return a, fmt.Errorf("no command\n%s", usage)
	}
	return a, a.check()
}

// check looks for what a command can't do without. A bundle that is not named is
// the working directory, except for serve.
func (a *arguments) check() error {
	required := map[string]string{"namespace": a.namespace, "id": a.id}
	switch a.command {
	case "serve":
		required["bundle"] = a.bundle
	case "start":
		required["address"] = a.address
	case "delete":
		if a.bundle == "" {
			var err error
			if a.bundle, err = os.Getwd(); err != nil {
				return err
			}
		}
	default:
		return nil // main says what it thinks of it
	}
	for name, value := range required {
		if value == "" {
			return fmt.Errorf("%s: -%s is required", a.command, name)
		}
	}
	return nil
}
