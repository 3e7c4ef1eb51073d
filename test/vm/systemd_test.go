package vm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/harness"
)

// patience bounds every wait for something that has to come about; an emulated
// machine is slow.
const patience = 2 * time.Minute

// pause is the time between two looks.
const pause = 100 * time.Millisecond

// TestSystemd runs the scripts on a machine that is there for nothing else.
func TestSystemd(t *testing.T) {
	if os.Getenv("BERTH_VM") == "" {
		t.Skip("changes the services of the machine; see scripts/vm.sh")
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		t.Fatalf("systemd does not run here: %v", err)
	}
	programs, err := harness.Build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts { // one after the other: there is one service
		t.Run(filepath.Base(script), func(t *testing.T) { runScript(t, script, programs) })
	}
}

func runScript(t *testing.T, script string, programs *harness.Programs) {
	testscript.Run(t, testscript.Params{
		Files: []string{script},
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", programs.Dir+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("ARCHIVE", programs.Image)
			env.Setenv("IMAGE", harness.ImageName)
			return nil
		},
		Cmds:               map[string]func(*testscript.TestScript, bool, []string){"until": until, "process": process},
		RequireUniqueNames: true,
	})
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP PROGRAM [ARG...]")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	deadline := time.Now().Add(patience)
	for {
		out, err := run(ts, args[1:])
		if want.Match(out) {
			fmt.Fprint(ts.Stdout(), string(out))
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no match for %q within %v: %v\n%s", args[0], patience, err, out)
		}
		time.Sleep(pause)
	}
}

func run(ts *testscript.TestScript, args []string) ([]byte, error) {
	program := args[0]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if path := filepath.Join(dir, program); !strings.Contains(program, "/") {
			if _, err := os.Stat(path); err == nil {
				program = path
			}
		}
	}
	cmd := exec.Command(program, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = os.Environ()
	for _, name := range []string{"PATH", "WORK", "IMAGE", "BERTH_NAMESPACE", "CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

var pidField = regexp.MustCompile(`"pid": (\d+)`)

// process sets a variable to the pid of a container, and refuses one that differs
// from what the variable was.
func process(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: process VARIABLE CONTAINER")
	}
	var found [][]byte
	deadline := time.Now().Add(patience)
	for {
		out, err := run(ts, []string{"berth", "inspect", args[1]})
		if found = pidField.FindSubmatch(out); found != nil {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("container %q has no process: %v\n%s", args[1], err, out)
		}
		time.Sleep(pause)
	}
	if was := ts.Getenv(args[0]); was != "" && was != string(found[1]) {
		ts.Fatalf("process of %q is %s, and was %s", args[1], found[1], was)
	}
	ts.Setenv(args[0], string(found[1]))
}
