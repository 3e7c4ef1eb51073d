// Command berth-shim supervises the processes of one container. The daemon
// starts it; people have no need to.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/berthd/berth/internal/version"
)

const program = "berth-shim"

const usage = `usage: berth-shim serve  -namespace NS -id ID -bundle PATH [-debug]
       berth-shim delete -namespace NS -id ID -bundle PATH [-debug]
       berth-shim -v | --version

serve   supervises a container. Its listening socket is file descriptor 3.
delete  removes what is left of a container whose shim is dead, and prints a
        containerd.task.v3.DeleteResponse as protobuf.

Both are run by berthd. Environment: TTRPC_ADDRESS (where events go),
BERTH_OCI_ROOT (state of the OCI runtimes).
`

// arguments are what the command line says.
type arguments struct {
	command   string
	namespace string
	id        string
	bundle    string
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
			err = fmt.Errorf("start, to run under other daemons, is not served by this version; berthd uses serve")
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
	var showVersion bool
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(os.Stderr)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flags.StringVar(&a.namespace, "namespace", "", "")
	flags.StringVar(&a.id, "id", "", "")
	flags.StringVar(&a.bundle, "bundle", "", "")
	flags.BoolVar(&a.debug, "debug", false, "")
	flags.String("address", "", "")
	flags.String("publish-binary", "", "")
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
	case a.command == "":
		return a, fmt.Errorf("no command\n%s", usage)
	case a.command != "serve" && a.command != "delete":
		return a, nil
	}
	for name, value := range map[string]string{"namespace": a.namespace, "id": a.id, "bundle": a.bundle} {
		if value == "" {
			return a, fmt.Errorf("%s: -%s is required", a.command, name)
		}
	}
	return a, nil
}
