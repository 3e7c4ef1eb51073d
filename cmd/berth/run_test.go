package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/client/fakedaemon"
	"github.com/berthd/berth/internal/leak"
)

// echo is a process that copies its input to both outputs and exits with 7.
func echo(p *fakedaemon.Process) uint32 {
	data, err := io.ReadAll(p.Stdin)
	if err != nil {
		return 99
	}
	fmt.Fprintf(p.Stdout, "out:%s", data)
	fmt.Fprintf(p.Stderr, "err:%s", data)
	return 7
}

func TestRunForeground(t *testing.T) {
	leak.Check(t)
	d := withImage(t)
	d.Behave = echo
	berth(t, d, "input", "run", "--rm", "-i", "busybox", "cat").want(t, 7, "out:input", "err:input")
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
	// Without --rm the container stays, its task does not, and its end is known.
	berth(t, d, "", "run", "--name", "c1", "busybox").want(t, 7, "out:", "err:")
	if want := []string{"container c1", "snapshot c1"}; !slices.Equal(d.Left(), want) {
		t.Errorf("left: %v", d.Left())
	}
	berth(t, d, "", "ps", "-a").want(t, 0, "exited (7)", "")
	berth(t, d, "", "wait", "c1").want(t, 0, "7\n", "")
	berth(t, d, "", "ps").want(t, 0, "CONTAINER   IMAGE   COMMAND   CREATED   STATUS\n", "")
	berth(t, d, "", "rm", "c1").want(t, 0, "c1\n", "")
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestRunLeavesNothing makes each call of a run fail, before it took effect and
// after.
func TestRunLeavesNothing(t *testing.T) {
	methods := []string{"Leases/Create", "Images/Get", "Content/Read", "Snapshots/Prepare", "Containers/Create", "Snapshots/Mounts", "Tasks/Create", "Tasks/Start"}
	for _, mode := range []string{"--rm", "-d", "-i"} {
		for _, method := range methods {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s after=%v", mode, method, after), func(t *testing.T) {
					d := withImage(t)
					d.Behave = fakedaemon.UntilKilled
					d.Fail(method, fakedaemon.Fate{Err: errors.New("boom"), After: after})
					berth(t, d, "", "run", mode, "busybox").want(t, statusOwn, "", "boom")
					left := d.Left()
					if method == "Leases/Create" && after {
						left = slices.DeleteFunc(left, func(what string) bool { return strings.HasPrefix(what, "lease ") }) // expires
					}
					if len(left) > 0 {
						t.Errorf("left: %v", left)
					}
				})
			}
		}
	}
}

func TestRunFailures(t *testing.T) {
	d := withImage(t)
	taken := berth(t, d, "", "run", "-d", "--name", "taken", "busybox")
	taken.want(t, 0, "taken\n", "")
	for name, test := range map[string]struct {
		args []string
		err  string
	}{
		"bad pull":         {[]string{"--pull", "sometimes", "busybox"}, `--pull "sometimes"`},
		"no such image":    {[]string{"--pull", "never", "nosuch"}, "berth: image \"nosuch\": not found\nberth: hint: bring it in with `berth images import FILE`"},
		"name taken":       {[]string{"--name", "taken", "busybox"}, "already exists\nberth: hint: choose another --name"},
		"bad name":         {[]string{"--name", "a/b", "busybox"}, "berth: identifier"},
		"bad flag":         {[]string{"--nosuch", "busybox"}, "berth: unknown flag: --nosuch\nberth: hint: berth run --help"},
		"no image":         {nil, "berth: no image is named"},
		"rm detached":      {[]string{"-d", "--rm", "busybox"}, "hint: run it without --rm"},
		"log attached":     {[]string{"--log-max-size", "1m", "busybox"}, "hint: add -d"},
		"bad log":          {[]string{"-d", "--log-max-size", "lots", "busybox"}, "--log-max-size"},
		"no terminal":      {[]string{"-it", "busybox"}, "hint: leave out -t"},
		"bad memory":       {[]string{"-m", "lots", "busybox"}, "memory limit"},
		"no memory":        {[]string{"-m", "0", "busybox"}, "leave --memory out"},
		"bad network":      {[]string{"--net", "bridge", "busybox"}, `network "bridge"`},
		"bad mount":        {[]string{"--mount", "type=nfs,dst=/x", "busybox"}, `mount "type=nfs,dst=/x"`},
		"missing source":   {[]string{"-v", "/no/such/dir:/x", "busybox"}, "/no/such/dir: no such file"},
		"bad label":        {[]string{"-l", "=x", "busybox"}, "has no key"},
		"bad env":          {[]string{"-e", "=x", "busybox"}, "has no name"},
		"no env file":      {[]string{"--env-file", "/no/such/file", "busybox"}, "environment file"},
		"bad signal":       {[]string{"--stop-signal", "SIGNOSUCH", "busybox"}, "unknown signal"},
		"bad capability":   {[]string{"--cap-add", "fly", "busybox"}, `unknown capability "fly"`},
		"no such user":     {[]string{"-u", "nobody", "busybox"}, `user "nobody" is not in the container's /etc/passwd`},
		"relative cwd":     {[]string{"-w", "x", "busybox"}, "is not absolute"},
		"no profile":       {[]string{"--seccomp", "/no/such/profile", "busybox"}, "seccomp profile"},
		"no CPUs":          {[]string{"--cpus", "0.001", "busybox"}, "CPUs"},
		"nothing to run":   {[]string{"--entrypoint", "", "busybox"}, "neither the image nor you name a command"},
		"global bad value": {[]string{"--format", "xml", "busybox"}, "neither table nor json"},
	} {
		t.Run(name, func(t *testing.T) {
			berth(t, d, "", append([]string{"run"}, test.args...)...).want(t, statusOwn, "", test.err)
		})
	}
	if want := []string{"container taken", "snapshot taken", "task taken"}; !slices.Equal(d.Left(), want) {
		t.Errorf("left: %v", d.Left())
	}
}

func TestRunCommandOfTheRuntime(t *testing.T) {
	d := withImage(t)
	for text, want := range map[string]int{
		`runc create: exit status 1: runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`: statusNotFound,
		`runc create failed: unable to start container process: exec: "nosuch": permission denied`:                                              statusNoInvoke,
		`OCI runtime "x" is not in PATH`: statusOwn,
	} {
		d.Fail("Tasks/Create", fakedaemon.Fate{Err: errors.New(text)})
		berth(t, d, "", "run", "busybox", "nosuch").want(t, want, "", text)
	}
	if left := d.Left(); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestRunStoresFlags(t *testing.T) {
	d := withImage(t)
	t.Setenv("BERTH_TEST_PASSED", "on")
	berth(t, d, "", "run", "-d", "--name", "c1", "-l", "a=b", "-e", "X=y", "-e", "BERTH_TEST_PASSED", "-u", "5:6", "--workdir", "/tmp",
		"-m", "64m", "--cpus", "0.5", "--network", "none", "--hostname", "h", "--read-only", "--stop-signal", "USR1",
		"--runtime", "crun", "--cap-drop", "all", "-v", "/etc:/host:ro", "busybox", "sh", "-c", "--not-a-flag").want(t, 0, "c1\n", "")
	row := d.Container("c1")
	if row.Labels["a"] != "b" || row.Labels[client.LabelStopSignal] != "USR1" {
		t.Errorf("labels %v", row.Labels)
	}
	if got := decodeAny(row.Runtime.Options); got == nil || !strings.Contains(string(got.Value), `"binary_name"`) || !strings.Contains(string(got.Value), "crun") {
		t.Errorf("runtime options %v", got)
	}
	s, err := (&client.Container{Record: row}).Spec()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sh", "-c", "--not-a-flag"}, s.Process.Args); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	for _, entry := range []string{"X=y", "BERTH_TEST_PASSED=on", "HOSTNAME=h"} {
		if !slices.Contains(s.Process.Env, entry) {
			t.Errorf("environment %v lacks %s", s.Process.Env, entry)
		}
	}
	if s.Process.User.UID != 5 || s.Process.User.GID != 6 || s.Process.Cwd != "/tmp" || !s.Root.Readonly || s.Hostname != "h" ||
		*s.Linux.Resources.Memory.Limit != 64<<20 || *s.Linux.Resources.CPU.Quota != 50000 || len(s.Process.Capabilities.Bounding) != 0 {
		t.Errorf("spec %+v", s)
	}
}

func TestStartAgain(t *testing.T) {
	d := withImage(t)
	d.Behave = echo
	berth(t, d, "", "run", "--name", "c1", "busybox").want(t, 7, "out:", "")
	d.Behave = fakedaemon.UntilKilled
	berth(t, d, "", "start", "c1").want(t, 0, "c1\n", "")
	berth(t, d, "", "ps").want(t, 0, "running", "")
	berth(t, d, "", "start", "c1").want(t, 0, "c1\n", "")
	berth(t, d, "", "start", "-a", "c1").want(t, statusOwn, "", "runs already")
	berth(t, d, "", "rm", "c1").want(t, statusFailed, "", "`berth stop c1` ends it first")
	berth(t, d, "", "stop", "c").want(t, 0, "c1\n", "")
	berth(t, d, "", "wait", "c1").want(t, 0, "143\n", "")
	d.Behave = echo
	berth(t, d, "again", "start", "-ai", "c1").want(t, 7, "out:again", "err:again")
	d.Fail("Tasks/Start", fakedaemon.Fate{Err: errors.New("boom")})
	for _, args := range [][]string{{"start", "c1"}, {"start", "-a", "c1"}} {
		berth(t, d, "", args...).want(t, map[bool]int{true: statusFailed, false: statusOwn}[len(args) == 2], "", "boom")
		if want := []string{"container c1", "snapshot c1"}; !slices.Equal(d.Left(), want) {
			t.Errorf("left: %v", d.Left())
		}
	}
}

func TestExec(t *testing.T) {
	leak.Check(t)
	d := withImage(t)
	d.Behave = func(p *fakedaemon.Process) uint32 {
		if strings.Contains(p.ID, "/") {
			return echo(p)
		}
		return fakedaemon.UntilKilled(p)
	}
	berth(t, d, "", "exec", "c1", "ls").want(t, statusOwn, "", `container "c1": not found`)
	berth(t, d, "", "run", "-d", "--name", "c1", "busybox").want(t, 0, "", "")
	berth(t, d, "input", "exec", "-i", "c1", "cat").want(t, 7, "out:input", "err:input")
	berth(t, d, "", "exec", "-d", "c1", "cat").want(t, 0, "", "")
	berth(t, d, "", "exec", "c1").want(t, statusOwn, "", "no container and command is named")
	d.Fail("Tasks/Start", fakedaemon.Fate{Err: errors.New(`process: exec: "nosuch": executable file not found in $PATH`)})
	berth(t, d, "", "exec", "c1", "nosuch").want(t, statusNotFound, "", "not found in $PATH")
	left := slices.DeleteFunc(d.Left(), func(what string) bool { return !strings.HasPrefix(what, "task c1/") })
	if len(left) != 1 { // that of -d, which goes with the container
		t.Errorf("left: %v", left)
	}
	berth(t, d, "", "kill", "-s", "TERM", "c1").want(t, 0, "c1\n", "")
	berth(t, d, "", "wait", "c1").want(t, 0, "143\n", "")
	berth(t, d, "", "exec", "c1", "ls").want(t, statusOwn, "", "`berth start c1` runs it again")
	berth(t, d, "", "kill", "c1").want(t, statusFailed, "", "does not run")
}

func TestStopKillsWhatDoesNotHeed(t *testing.T) {
	d := withImage(t)
	var got []unix.Signal
	d.Behave = func(p *fakedaemon.Process) uint32 {
		for s := range p.Signals {
			if got = append(got, s); s == unix.SIGKILL {
				break
			}
		}
		return 137
	}
	berth(t, d, "", "run", "-d", "--name", "c1", "--stop-signal", "SIGUSR2", "busybox").want(t, 0, "", "")
	berth(t, d, "", "stop", "-t", "0", "c1").want(t, 0, "c1\n", "")
	if want := []unix.Signal{unix.SIGUSR2, unix.SIGKILL}; !slices.Equal(got, want) {
		t.Errorf("signals %v, want %v", got, want)
	}
	berth(t, d, "", "stop", "c1").want(t, 0, "c1\n", "")
}

func TestManyContainers(t *testing.T) {
	d := withImage(t)
	d.Behave = fakedaemon.UntilKilled
	for _, id := range []string{"a1", "a2", "b.1"} {
		berth(t, d, "", "run", "-d", "--name", id, "busybox").want(t, 0, id, "")
	}
	berth(t, d, "", "kill", "a").want(t, statusFailed, "", "the ids of 2 containers start so\nberth: hint: say more of the id: a1, a2")
	berth(t, d, "", "kill", "bx1").want(t, statusFailed, "", "not found") // the dot of b.1 is a dot
	berth(t, d, "", "kill", "b.").want(t, 0, "b.1\n", "")                 // ends as no id may
	r := berth(t, d, "", "rm", "-f", "a1", "nosuch", "b.")
	r.want(t, statusFailed, "a1\nb.1\n", `container "nosuch": not found`)
	if want := []string{"container a2", "snapshot a2", "task a2"}; !slices.Equal(d.Left(), want) {
		t.Errorf("left: %v", d.Left())
	}
}

func TestPSJSON(t *testing.T) {
	d := withImage(t)
	d.Behave = fakedaemon.UntilKilled
	berth(t, d, "", "ps", "--format", "json").want(t, 0, "[]\n", "")
	berth(t, d, "", "run", "-d", "--name", "c1", "busybox").want(t, 0, "", "")
	var states []containerState
	if err := json.Unmarshal([]byte(berth(t, d, "", "ps", "--format", "json").out), &states); err != nil {
		t.Fatal(err)
	}
	if len(states) != 1 || states[0].ID != "c1" || states[0].Status != statusRunning || states[0].PID != 1 || states[0].ExitStatus != nil ||
		states[0].Image != "docker.io/library/busybox:latest" || !slices.Equal(states[0].Command, []string{"sh"}) {
		t.Errorf("got %+v", states)
	}
	var details []map[string]any
	if err := json.Unmarshal([]byte(berth(t, d, "", "inspect", "c1").out), &details); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"id", "image", "command", "status", "pid", "created_at", "runtime", "labels", "updated_at", "snapshotter", "snapshot_key", "spec"} {
		if _, ok := details[0][key]; !ok {
			t.Errorf("inspect has no %q", key)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	for _, args := range [][]string{{"ps"}, {"info"}, {"images", "ls"}, {"rm", "x"}} {
		berth(t, nil, "", args...).want(t, statusFailed, "", "is the daemon running? start it with")
	}
	berth(t, nil, "", "run", "x").want(t, statusOwn, "", "connect to berthd at /")
	berth(t, nil, "", "version").want(t, statusFailed, "berth ", "is the daemon running?")
	berth(t, nil, "", "version", "--format", "json").want(t, statusFailed, `"server": null`, "")
	berth(t, nil, "", "--version").want(t, 0, "berth ", "")
	berth(t, nil, "", "__complete", "rm", "").want(t, 0, ":4\n", "")
}

func TestOtherDaemon(t *testing.T) {
	d := fakedaemon.New(t) // which has no berth.images.v1
	berth(t, d, "", "images", "import", "-").want(t, statusFailed, "", "is not berthd, or an older one")
}

func TestUnavailableHint(t *testing.T) {
	d := fakedaemon.New(t)
	d.Fail("Images/List", fakedaemon.Fate{Err: fmt.Errorf("task: %w", errdefs.ErrUnavailable)})
	berth(t, d, "", "images", "ls").want(t, statusFailed, "", "its log says more")
}

func TestComplete(t *testing.T) {
	d := withImage(t)
	d.Behave = fakedaemon.UntilKilled
	for _, id := range []string{"one", "other"} {
		berth(t, d, "", "run", "-d", "--name", id, "busybox").want(t, 0, id, "")
	}
	berth(t, d, "", "stop", "other").want(t, 0, "", "")
	berth(t, d, "", "__complete", "rm", "o").want(t, 0, "one\nother\n:4\n", "")
	berth(t, d, "", "__complete", "rm", "one", "o").want(t, 0, "other\n:4\n", "")
	berth(t, d, "", "__complete", "kill", "").want(t, 0, "one\n:4\n", "")
	berth(t, d, "", "__complete", "start", "").want(t, 0, "other\n:4\n", "")
	berth(t, d, "", "__complete", "run", "busy").want(t, 0, "busybox:latest\n:4\n", "")
	berth(t, d, "", "__complete", "run", "busybox", "").want(t, 0, ":0\n", "")
	berth(t, d, "", "__complete", "images", "rm", "").want(t, 0, "busybox:latest\n:4\n", "")
}
