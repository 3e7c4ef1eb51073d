package scripts

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/harness"
)

// patience bounds every wait of a script for something that has to come about.
const patience = 60 * time.Second

// pause is the time between two looks at a thing that is waited for.
const pause = 50 * time.Millisecond

// refuse ends a script that negates or miscalls a command.
func refuse(ts *testscript.TestScript, neg, wrong bool, usage string) {
	if neg {
		ts.Fatalf("this command can't be negated")
	}
	if wrong {
		ts.Fatalf("usage: %s", usage)
	}
}

func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) == 0, "daemon start|kill|stop [FLAG...]")
	d := ts.Value(daemonKey{}).(*harness.Daemon)
	switch args[0] {
	case "start":
		d.Args = args[1:]
		ts.Check(d.Start())
	case "kill":
		ts.Check(d.Kill())
	case "stop":
		ts.Check(d.Stop())
	default:
		ts.Fatalf("daemon %s: unknown", args[0])
	}
}

func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) < 2, "status N PROGRAM [ARG...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := statusOf(ts, ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// statusOf is the exit status that an error of a program tells of.
func statusOf(ts *testscript.TestScript, err error) int {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if err == nil {
		return 0
	}
	return exit.ExitCode()
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) < 2, "until REGEXP PROGRAM [ARG...]")
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	program, err := exec.LookPath(args[1])
	if err != nil {
		program = programs.Path(args[1])
	}
	deadline := time.Now().Add(patience)
	for {
		cmd := exec.Command(program, args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = environment(ts)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if want.Match(out) {
			fmt.Fprint(ts.Stdout(), string(out))
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no match for %q within %v: %v\n%s%s", args[0], patience, err, out, errs.String())
		}
		time.Sleep(pause)
	}
}

// environment is that of a script's programs.
func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, name := range []string{"PATH", "BERTH_ADDRESS", "BERTH_NAMESPACE", "DIR", "WORK", "IMAGE", "GORACE", "DOCKER_CONFIG"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	for _, name := range []string{"CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE"} { // ctr's
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

var pidField = regexp.MustCompile(`"pid": (\d+)`)

func cmdPID(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) != 2, "pid VAR CONTAINER")
	cmd := exec.Command(programs.Path("berth"), "inspect", args[1])
	cmd.Env = environment(ts)
	out, err := cmd.Output()
	ts.Check(err)
	found := pidField.FindSubmatch(out)
	if found == nil {
		ts.Fatalf("container %q has no process:\n%s", args[1], out)
	}
	ts.Setenv(args[0], string(found[1]))
}

func cmdGone(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) == 0, "gone PID...")
	deadline := time.Now().Add(patience)
	for _, pid := range args {
		for !isGone(pid) {
			if time.Now().After(deadline) {
				ts.Fatalf("process %s is still there after %v", pid, patience)
			}
			time.Sleep(pause)
		}
	}
}

// isGone tells whether a process has ended. A zombie has: it only waits to be
// asked how.
func isGone(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}
