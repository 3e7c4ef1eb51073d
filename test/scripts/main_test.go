package scripts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/harness"
)

// programs are built once, by TestMain.
var programs *harness.Programs

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests run containers, so they have to run as root")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if programs, err = harness.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   filepath.Join("testdata", "script"),
		Setup: setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon":   cmdDaemon,
			"status":   cmdStatus,
			"until":    cmdUntil,
			"pid":      cmdPID,
			"gone":     cmdGone,
			"terminal": cmdTerminal,
			"registry": cmdRegistry,
		},
		Condition:          condition,
		RequireUniqueNames: true,
	})
}

// condition tells what scripts ask about the machine in brackets: criu, whether it
// can make checkpoints here; vm, whether this is the virtual machine of scripts/vm.sh.
func condition(name string) (bool, error) {
	switch name {
	case "criu":
		return exec.Command("criu", "check").Run() == nil, nil
	case "vm":
		return os.Getenv("BERTH_VM") != "", nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// checkTimeout bounds the look at the store when a script ends.
const checkTimeout = time.Minute

// daemonKey is where a script's daemon is kept.
type daemonKey struct{}

// setup gives a script a daemon of its own, and looks at the end for what is
// left of it.
func setup(env *testscript.Env) error {
	d, err := harness.New(programs)
	if err != nil {
		return err
	}
	namespace := strings.ReplaceAll(filepath.Base(d.Dir), "berth-t-", "script-")
	env.Values[daemonKey{}] = d
	env.Setenv("PATH", programs.Dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("BERTH_ADDRESS", d.Address)
	env.Setenv("BERTH_NAMESPACE", namespace)
	env.Setenv("DIR", d.Dir)
	env.Setenv("ARCHIVE", programs.Image)
	env.Setenv("IMAGE", harness.ImageName)
	env.Setenv("MODULE", programs.Module)
	race, setting, _ := strings.Cut(harness.Race, "=") // a second of each call otherwise
	env.Setenv(race, setting)
	env.Defer(func() {
		t := env.T()
		if err := end(d, namespace); err != nil {
			t.Log(err)
			t.FailNow()
		}
	})
	return nil
}

// end looks at what a script left, and takes everything away.
func end(d *harness.Daemon, namespace string) error {
	var failed []error
	if d.PID() != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
		defer cancel()
		if err := d.Check(ctx); err != nil {
			failed = append(failed, fmt.Errorf("the store is not sound: %w", err))
		}
	}
	log := d.Log()
	failed = append(failed, files(d), d.Close(), cgroups(namespace))
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("%w\nthe daemon's log ends so:\n%s", err, last(log, 40))
	}
	return nil
}

// files looks for what clients and containers keep in files of their own.
func files(d *harness.Daemon) error {
	var left []string
	for _, pattern := range []string{"fifo/*", "root/logs/*/*"} {
		found, err := filepath.Glob(filepath.Join(d.Dir, pattern))
		if err != nil {
			return err
		}
		left = append(left, found...)
	}
	if len(left) > 0 {
		return fmt.Errorf("files left: %v", left)
	}
	return nil
}

// cgroups looks for control groups of the containers of a namespace. That of the
// namespace itself stays with the daemon; here it goes.
func cgroups(namespace string) error {
	parents, err := harness.Cgroups(namespace)
	if err != nil {
		return err
	}
	var left []string
	for _, parent := range parents {
		entries, err := os.ReadDir(parent)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if entry.IsDir() {
				left = append(left, filepath.Join(parent, entry.Name()))
			}
		}
		if err := os.Remove(parent); err != nil {
			left = append(left, err.Error())
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("cgroups left: %v", left)
	}
	return nil
}

// last gives the last lines of a text.
func last(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
