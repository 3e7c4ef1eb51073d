package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/internal/leak"
)

// TestCheckpointArguments compares the command lines of a dump and a restore.
func TestCheckpointArguments(t *testing.T) {
	leak.Check(t)
	out := filepath.Join(t.TempDir(), "args")
	c := fake(t, `shift 4; echo "$@" >`+out)
	all := CriuOptions{
		OpenTCP: true, ExternalSockets: true, Terminal: true, FileLocks: true,
		EmptyNamespaces: []string{"network", "uts"}, CgroupsMode: "soft",
	}
	const flags = "--tcp-established --ext-unix-sk --shell-job --file-locks --empty-ns network --empty-ns uts --manage-cgroups-mode soft"
	for want, call := range map[string]func() error{
		"checkpoint --image-path /i --work-path /w --leave-running id": func() error {
			return c.Checkpoint(t.Context(), "id", CheckpointOptions{Images: "/i", Work: "/w"})
		},
		"checkpoint --image-path /i --work-path /w " + flags + " id": func() error {
			return c.Checkpoint(t.Context(), "id", CheckpointOptions{Images: "/i", Work: "/w", Exit: true, Criu: all})
		},
		"restore --bundle /b --pid-file /p --detach --image-path /i --work-path /w id": func() error {
			return c.Restore(t.Context(), "id", RestoreOptions{Bundle: "/b", PIDFile: "/p", Images: "/i", Work: "/w"})
		},
		"restore --bundle /b --pid-file /p --detach --image-path /i --work-path /w --console-socket /c --no-pivot " + flags + " id": func() error {
			return c.Restore(t.Context(), "id", RestoreOptions{
				Bundle: "/b", PIDFile: "/p", ConsoleSocket: "/c", NoPivot: true, Images: "/i", Work: "/w", Criu: all,
			})
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		got, err := os.ReadFile(out)
		if want = "--root /some/root " + want + "\n"; err != nil || string(got) != want {
			t.Errorf("ran %q, %v; want %q", got, err, want)
		}
	}
}

// TestCriuError wants to be told who can't: the runtime, criu, the kernel, or criu
// with this container.
func TestCriuError(t *testing.T) {
	leak.Check(t)
	const failing = `echo '{"level":"error","msg":"criu failed: type DUMP errno 0"}' >"$LOG"; `
	log := func(text string) string {
		return `while [ $# -gt 0 ]; do [ "$1" = --work-path ] && printf '` + text + `' >"$2/dump.log"; shift; done; exit 1`
	}
	for _, c := range []struct {
		name, runtime, criu, who string
		want                     []string
	}{
		{"runtime", `echo "unknown command checkpoint" >&2; exit 1`, "exit 0", "runtime",
			[]string{"fakerun was built without checkpoint", "such as runc", "unknown command checkpoint"}},
		{"criu", failing + `exit 1`, "", "criu", []string{"not in PATH", "apt-get install criu", "criu failed: type DUMP"}},
		{"kernel", failing + log(`(0.1) Error (criu/vdso.c:613): odd\n`),
			`echo "Warn  (x)"; echo "Error (criu/vdso.c:613): vdso: Failed" >&2; exit 1`, "kernel",
			[]string{"does not work with this kernel", "`criu check`", "vdso: Failed", "fakerun checkpoint: exit status 1"}},
		{"container", failing + log(`(0.1) start\n(0.2) Error (a.c:1): first\n(0.3) on\n(0.4) Error (b.c:2): the mount\n(0.5) done\n`), "exit 0", "container",
			[]string{"criu can't dump this container", "first; (0.4) Error (b.c:2): the mount", "fakerun checkpoint: exit status 1: criu failed"}},
		{"container without errors", failing + log(`only\nthis\n`), "exit 0", "container", []string{"only; this"}},
		{"before criu", `echo '{"level":"error","msg":"container does not exist"}' >"$LOG"; exit 1`, "exit 0", "",
			[]string{"fakerun checkpoint: exit status 1: container does not exist"}},
		{"much log", failing + log(`Error (x): %01000d\nError (x): %01000d\nError (x): %01000d\nError (x): %01000d\n`), "exit 0", "container",
			[]string{"criu can't dump"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin, work := t.TempDir(), t.TempDir()
			if c.criu != "" {
				if err := os.WriteFile(filepath.Join(bin, "criu"), []byte("#!/bin/sh\n[ \"$1\" = check ] || exit 3\n"+c.criu+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			cli := fake(t, c.runtime)
			t.Setenv("PATH", bin)
			err := cli.Checkpoint(t.Context(), "id", CheckpointOptions{Images: "/i", Work: work})
			var failure *CriuError
			if errors.As(err, &failure) != (c.who != "") || failure != nil && failure.Who != c.who {
				t.Fatalf("%v, want of %q", err, c.who)
			}
			var plain *Error
			if !errors.As(err, &plain) || plain.ExitCode != 1 {
				t.Errorf("the runtime's failure is lost: %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if len(err.Error()) > maxCriuText+maxMessage {
				t.Errorf("%d bytes of error", len(err.Error()))
			}
		})
	}
}
