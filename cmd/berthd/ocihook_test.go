package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// hook runs "berthd oci-hook" as an OCI runtime would.
func hook(t *testing.T, stdin string, env []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, append([]string{"oci-hook"}, args...)...)
	cmd.Env = append([]string{asBerthd + "=1", "PATH=" + os.Getenv("PATH")}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func hookInput(t *testing.T, root string) (bundle, state string) {
	t.Helper()
	bundle = t.TempDir()
	config, _ := json.Marshal(specs.Spec{Root: &specs.Root{Path: root}})
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(specs.State{
		Version: specs.Version, ID: "c1", Status: specs.StateCreating, Pid: 42, Bundle: bundle,
		Annotations: map[string]string{"net": "cni }} 0", `a"b`: "quoted"},
	})
	return bundle, string(data)
}

// TestOCIHook has a hook find what the runtime says in its arguments, its
// environment and on its standard input.
func TestOCIHook(t *testing.T) {
	bundle, state := hookInput(t, "rootfs")
	script := `echo "$@"; echo "$WHERE"; cat`
	out, errOut, err := hook(t, state, []string{"WHERE={{rootfs}}"}, "--", "sh", "-c", script, "sh",
		"{{id}}", "{{ pid }}", "{{bundle}}/x", "is {{status}}", `{{annotation "net"}}`, "{{annotation `a\"b`}}", `<{{annotation "none"}}>`, "plain }}")
	if err != nil {
		t.Fatalf("%v: %s", err, errOut)
	}
	want := "c1 42 " + bundle + "/x is creating cni }} 0 quoted <> plain }}\n" + bundle + "/rootfs\n" + state
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	_, state = hookInput(t, "/abs")
	if out, _, err := hook(t, state, nil, "echo", "{{rootfs}}"); err != nil || out != "/abs\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, _, err = hook(t, state, nil, "--", "sh", "-c", "exit 7")
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit code of the command: %v", err)
	}
}

// TestOCIHookRefuses tells what is wrong, and runs nothing.
func TestOCIHookRefuses(t *testing.T) {
	bundle, state := hookInput(t, "rootfs")
	for name, c := range map[string]struct {
		stdin string
		env   []string
		args  []string
		want  string
	}{
		"no command":     {state, nil, []string{"--"}, hookUsage},
		"no state":       {"", nil, []string{"echo"}, "no container state"},
		"garbage":        {"hello", nil, []string{"echo"}, "no container state"},
		"no bundle":      {`{"id":"c1"}`, nil, []string{"echo"}, "names no bundle"},
		"no config":      {`{"id":"c1","bundle":"/no/such"}`, nil, []string{"echo"}, "/no/such/config.json"},
		"unknown":        {state, nil, []string{"echo", "{{hostname}}"}, `argument "{{hostname}}": {{hostname}} is not known`},
		"argument":       {state, nil, []string{"echo", "{{id 3}}"}, "{{id 3}} is not known"},
		"no key":         {state, nil, []string{"echo", "{{annotation}}"}, `want {{annotation "KEY"}}`},
		"open":           {state, nil, []string{"echo", "{{id"}, "{{ without }}"},
		"open quote":     {state, nil, []string{"echo", `{{annotation "x}}`}, "{{ without }}"},
		"environment":    {state, []string{"X={{no}}"}, []string{"echo"}, "environment variable X"},
		"no program":     {state, nil, []string{"/no/such/program"}, "/no/such/program"},
		"large":          {strings.Repeat(" ", maxHookState+1), nil, []string{"echo"}, "larger than"},
		"not in a shell": {state, nil, []string{"{{id}}; touch " + bundle + "/made"}, "c1; touch"},
	} {
		out, errOut, err := hook(t, c.stdin, c.env, c.args...)
		if err == nil || out != "" || !strings.Contains(errOut, c.want) {
			t.Errorf("%s: %v, printed %q and %q, want %q", name, err, out, errOut, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(bundle, "made")); err == nil {
		t.Error("a template was run by a shell")
	}
}
