package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// criuBinary is the program that dumps and restores; OCI runtimes look for it in
// PATH.
const criuBinary = "criu"

// Names of criu's log in its working directory.
const (
	dumpLog    = "dump.log"
	restoreLog = "restore.log"
)

// Bounds of what an error quotes of criu's log.
const (
	maxCriuLines = 5
	maxCriuText  = 2 << 10
)

// criuCheckTime bounds the question whether criu works here.
const criuCheckTime = 10 * time.Second

// CriuError is a dump or a restore that failed, and who could not: the OCI
// runtime, criu, the kernel, or criu with this very container.
type CriuError struct {
	Who  string // "runtime", "criu", "kernel" or "container"
	Text string // what is wrong, and the way out
	Log  string // the errors of criu's log, or of its check; bounded
	Err  error  // what the runtime said
}

// Error says who could not, what to do, and what criu's log says.
func (e *CriuError) Error() string {
	text := e.Text
	if e.Log != "" {
		text += fmt.Sprintf(": %q", e.Log)
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns the runtime's failure.
func (e *CriuError) Unwrap() error { return e.Err }

// explainCriu finds out why a call that needs criu failed. What has nothing to do
// with criu stays as it is.
func (c *CLI) explainCriu(ctx context.Context, err error, work, log string) error {
	var failure *Error
	if !errors.As(err, &failure) || failure.Err != nil {
		return err
	}
	if lacksCommand(failure.Message) {
		return &CriuError{Who: "runtime", Err: err, Text: fmt.Sprintf(
			"OCI runtime %s was built without checkpoint and restore: give the container another, such as runc", c.name())}
	}
	path, lookErr := exec.LookPath(criuBinary)
	if lookErr != nil {
		return &CriuError{Who: "criu", Err: err, Text: fmt.Sprintf(
			"criu, which dumps and restores, is not in PATH (%s): install it (Debian: apt-get install criu)", os.Getenv("PATH"))}
	}
	said := criuErrors(tail(filepath.Join(work, log)))
	if complaint, ok := checkCriu(ctx, path); !ok {
		return &CriuError{Who: "kernel", Err: err, Log: complaint, Text: fmt.Sprintf(
			"criu (%s) does not work with this kernel (%s), as `criu check` says: a newer criu or another kernel is needed", path, release())}
	}
	if said == "" {
		return err // it did not get as far as criu
	}
	return &CriuError{Who: "container", Err: err, Log: said, Text: "criu can't " + what[failure.Command] + " this container"}
}

var what = map[string]string{"checkpoint": "dump", "restore": "restore"}

// lacksCommand tells whether a runtime does not know a command, by what those
// that can be built without it say.
func lacksCommand(message string) bool {
	lower := strings.ToLower(message)
	for _, known := range []string{"unknown command", "unrecognized subcommand", "checkpoint/restore not supported", "not compiled with"} {
		if strings.Contains(lower, known) {
			return true
		}
	}
	return false
}

// criuErrors picks the errors out of criu's log, or without any its last lines.
func criuErrors(log []byte) string {
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	var picked [][]byte
	for _, line := range lines {
		if bytes.Contains(line, []byte("Error (")) {
			picked = append(picked, bytes.TrimSpace(line))
		}
	}
	if len(picked) == 0 {
		picked = lines
	}
	// What comes last is why it gave up.
	if len(picked) > maxCriuLines {
		picked = picked[len(picked)-maxCriuLines:]
	}
	text := strings.ToValidUTF8(string(bytes.Join(picked, []byte("; "))), "?")
	if len(text) > maxCriuText {
		text = "..." + strings.ToValidUTF8(text[len(text)-maxCriuText:], "")
	}
	return text
}

// checkCriu asks criu whether it works on this machine, and gives its complaint if
// it does not. A criu that says nothing in time is taken to work: it is not to be
// blamed for what it did not say.
func checkCriu(ctx context.Context, path string) (complaint string, ok bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), criuCheckTime)
	defer cancel()
	out, err := memoryFile("criu", maxOutput)
	if err != nil {
		return "", true
	}
	defer out.Close()
	status, err := spawn(ctx, path, []string{path, "check"}, Stdio{Out: out, Err: out})
	if err != nil || status.Exited() && status.ExitStatus() == 0 {
		return "", true
	}
	data, err := written(out)
	if err != nil {
		return "", true
	}
	return criuErrors(data), false
}

// release is the version of the running kernel.
func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
