package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
)

// script writes a program for sh.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "logger")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// loggerBench is a shim whose streams go to a logger.
func loggerBench(t *testing.T) (*Shim, *lines) {
	t.Helper()
	notes := &lines{}
	s := New(Config{Namespace: "ns", Log: notes.log()})
	t.Cleanup(func() { s.watchers.Wait(); s.trim.timer.Stop() })
	return s, notes
}

// openLogged opens streams that go to a logger.
func openLogged(t *testing.T, shim *Shim, uri string) (*streams, error) {
	t.Helper()
	return openStreams(place{shim: shim, container: "c1", dir: t.TempDir(), log: shim.config.Log}, streamPaths{stdout: uri})
}

// TestLogger has a logger write what it got: streams, arguments, environment.
func TestLogger(t *testing.T) {
	leak.Check(t)
	inherited, err := os.ReadDir("/proc/self/fd") // by the test, from who runs it
	if err != nil {
		t.Fatal(err)
	}
	shim, notes := loggerBench(t)
	out := t.TempDir()
	path := script(t, `cat <&3 >"$2/out" & cat <&4 >"$2/err" & ls /proc/self/fd >"$2/fds"
echo "$@" >"$2/args"; env >"$2/env"; printf x >&5; exec 5>&-; wait; echo done >"$2/end"`)
	for _, scheme := range []string{"binary", "binary-v2"} {
		s, err := openLogged(t, shim, scheme+"://"+path+"?dir="+out+"&b&a=x%20y")
		if err != nil {
			t.Fatal(err)
		}
		stdout, stderr := s.child.Out, s.child.Err
		s.child.Out, s.child.Err = nil, nil
		s.start()
		data := randomBytes(t, 300<<10)
		if _, err := stdout.Write(data); err != nil {
			t.Fatal(err)
		}
		write(t, stderr, "oops\n")
		if !s.settle() {
			t.Error("not settled")
		}
		finish(t, s, stdout, stderr)
		if got := readFile(t, out+"/out"); got != string(data) {
			t.Errorf("%d bytes of stdout", len(got))
		}
		if got := readFile(t, out+"/err"); got != "oops\n" {
			t.Errorf("stderr %q", got)
		}
		if got := readFile(t, out+"/args"); got != "dir "+out+" b  a x y\n" {
			t.Errorf("arguments %q", got)
		}
		env := readFile(t, out+"/env")
		for line := range strings.Lines(env) {
			name, _, _ := strings.Cut(line, "=")
			if name != "PWD" && name != "OLDPWD" && name != "_" && name != "SHLVL" && name != "CONTAINER_ID" && name != "CONTAINER_NAMESPACE" {
				t.Errorf("environment has %q", line)
			}
		}
		if !strings.Contains(env, "CONTAINER_ID=c1\n") || !strings.Contains(env, "CONTAINER_NAMESPACE=ns\n") {
			t.Errorf("environment %q", env)
		}
		for fd := range strings.FieldsSeq(readFile(t, out+"/fds")) {
			had := slices.ContainsFunc(inherited, func(e os.DirEntry) bool { return e.Name() == fd })
			if fd > "6" && fd != "10" && !had { // 6 is that of ls, 10 the script
				t.Errorf("the logger has file descriptor %s", fd)
			}
		}
		if got := readFile(t, out+"/end"); got != "done\n" {
			t.Errorf("cut off: %q", got)
		}
	}
	if text := notes.text(); text != "" {
		t.Error(text)
	}
}

// TestLoggerDies has a logger that ends early: the writer goes on, and the shim
// says so.
func TestLoggerDies(t *testing.T) {
	leak.Check(t)
	shim, notes := loggerBench(t)
	s, err := openLogged(t, shim, "binary://"+script(t, "exec 5>&-; head -c 5 <&3 >/dev/null; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	stdout := s.child.Out
	s.child.Out = nil
	s.start()
	for range 10 {
		if _, err := stdout.Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, s, stdout)
	if text := notes.text(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "logger ended before its container") || !strings.Contains(text, "status=3") {
		t.Errorf("%q", text)
	}
}

// TestLoggerFailsToStart names what failed, and leaves nothing.
func TestLoggerFailsToStart(t *testing.T) {
	leak.Check(t)
	shim, _ := loggerBench(t)
	for uri, want := range map[string]string{
		"binary:///no/such":                          "/no/such",
		"binary-v2://" + script(t, "exit 0"):         "without a byte",
		"binary-v2://" + script(t, "exec 5>&-; cat"): "without a byte",
	} {
		s, err := openLogged(t, shim, uri)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", uri, err)
		}
		if err == nil {
			s.close()
		}
	}
	// The first version does not tell a failure from readiness.
	s, err := openLogged(t, shim, "binary://"+script(t, "exec 5>&-; cat <&3"))
	if err != nil {
		t.Fatal(err)
	}
	s.close()
}

// TestLoggerStays does not end with its streams: it is asked to.
func TestLoggerStays(t *testing.T) {
	leak.Check(t)
	shim, _ := loggerBench(t)
	out := t.TempDir()
	s, err := openLogged(t, shim, "binary://"+script(t, fmt.Sprintf(`trap 'echo term >%s/end; exit' TERM; exec 5>&-; cat <&3 >/dev/null; while :; do sleep 0.01; done`, out)))
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	begin := time.Now()
	if !s.drain() {
		t.Error("not drained")
	}
	if took := time.Since(begin); took > loggerGrace+loggerTerm/2 {
		t.Errorf("took %s", took)
	}
	if got := readFile(t, out+"/end"); got != "term\n" {
		t.Errorf("%q", got)
	}
}

// TestLoggerIsKnown is not reaped by a sweep.
func TestLoggerIsKnown(t *testing.T) {
	leak.Check(t)
	shim, notes := loggerBench(t)
	s, err := openLogged(t, shim, "binary://"+script(t, "exec 5>&-; cat <&3 >/dev/null; exit 4"))
	if err != nil {
		t.Fatal(err)
	}
	shim.sweep()
	s.start()
	shim.sweep()
	s.close()
	if text := notes.text(); strings.Contains(text, "not a child") {
		t.Error(text)
	}
}
