package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

// Exit statuses.
const (
	statusFailed     = 1
	statusUsage      = 2
	statusOwn        = 125 // run and exec: berth itself failed
	statusNoInvoke   = 126 // run and exec: the command can't be invoked
	statusNotFound   = 127 // run and exec: there is no such command
	statusSignalBase = 128 // and the number of a signal
)

// statusError ends berth with a status. Its error, if any, has been said
// already, or is said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// hintError says what to do next.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// hint adds to an error what to do next.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hintError{err: err, hint: fmt.Sprintf(format, args...)}
}

// usageError says that berth was called wrongly.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(err error) error { return &usageError{err: err} }

// ownAnnotation marks commands whose exit status is that of a process, so that
// their own failures have a status apart.
const ownAnnotation = "status"

// report says an error on standard error and gives the exit status.
func (a *app) report(ran *cobra.Command, err error) int {
	status := statusFailed
	_, processOwn := ran.Annotations[ownAnnotation]
	var asked *statusError
	var wrong *usageError
	switch {
	case errors.As(err, &asked):
		status = asked.status
		if asked.err == nil {
			return status
		}
	case processOwn:
		status = statusOwn
	case errors.As(err, &wrong):
		status = statusUsage
	}
	fmt.Fprintf(a.err, "berth: %s\n", message(err))
	for _, text := range a.hints(ran, err) {
		fmt.Fprintf(a.err, "berth: hint: %s\n", text)
	}
	if a.debug {
		fmt.Fprintf(a.err, "berth: debug: %T: %+v\n", err, err)
	}
	return status
}

// message is the text of an error. Errors that came together stand on lines of
// their own; a line that only says again how an earlier one ends is left out.
func message(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimRight(line, "\r\n")
		said := slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, line) })
		if !said && strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\nberth: ")
}

// hints lists what to do next, as far as that can be told.
func (a *app) hints(ran *cobra.Command, err error) []string {
	var hinted *hintError
	if errors.As(err, &hinted) {
		return []string{hinted.hint}
	}
	var wrong *usageError
	if errors.As(err, &wrong) {
		return []string{fmt.Sprintf("%s --help tells how to call it", ran.CommandPath())}
	}
	var dial *client.DialError
	if errors.As(err, &dial) {
		return dialHints(dial)
	}
	var packed *client.NotUnpackedError
	if errors.As(err, &packed) {
		return []string{fmt.Sprintf("unpack the image with `berth pull --snapshotter %[1]s`, or `berth images import --snapshotter %[1]s`", packed.Snapshotter)}
	}
	switch {
	case errdefs.IsUnavailable(err):
		return []string{unavailableHint(err.Error())}
	case errdefs.IsResourceExhausted(err) && strings.Contains(err.Error(), "no space left"):
		return []string{"a disk of the daemon's machine is full: `berth df` tells what is on it, and `berth images rm`, `berth rm` and `berth prune` work on a full disk, too"}
	case errdefs.IsNotImplemented(err) && strings.Contains(err.Error(), "unknown service berth."):
		return []string{fmt.Sprintf("what listens at %s is not berthd, or an older one; `berth version` tells", a.address)}
	case strings.Contains(err.Error(), "setting rlimit type"), strings.Contains(err.Error(), "setrlimit"): // runc's words, and crun's
		return []string{"a limit may not be above the daemon's own (`ulimit -Ha` where it runs, Limit*= in its unit) unless it has CAP_SYS_RESOURCE; ask for less with --ulimit"}
	case strings.Contains(err.Error(), "seccomp"):
		return []string{"if the OCI runtime has no seccomp, run with --seccomp unconfined"}
	}
	return nil
}

// unavailableHint tells what is away, the daemon or the shim of a container, by
// the texts of package runtime.
func unavailableHint(text string) string {
	switch {
	case strings.HasPrefix(text, "pull "), strings.HasPrefix(text, "push "):
		return "the registry can't be reached from the daemon's machine, or has no time; hosts.toml in the directory of registry.hosts_dir says how it is reached"
	case strings.Contains(text, "runs on without its shim"):
		return "the container runs on, but nothing more can be run in it: `berth kill`, `berth stop` and `berth rm -f` work"
	case strings.Contains(text, "the shim "), strings.Contains(text, "its shim "):
		return "its shim died or does not answer; `berth ps -a` tells how the container is, the daemon's log why (journalctl -u berth)"
	}
	return "the daemon went away or is starting; its log says more (journalctl -u berth)"
}

// dialHints says how to get at a daemon that does not answer.
func dialHints(err *client.DialError) []string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return []string{
			"is the daemon running? start it with `systemctl start berth`, or as root with `berthd`",
			fmt.Sprintf("if it listens elsewhere, say where with --address or $%s", addressEnv),
		}
	case errors.Is(err, fs.ErrPermission):
		return []string{"you may not use its socket: try as root, or as a member of the socket's group"}
	}
	return []string{"the daemon's log says more (journalctl -u berth)"}
}

// invokeStatus tells from the error of an OCI runtime whether command could not
// be found or not be invoked; 0: neither, something else is wrong. The texts are
// those of runc and crun, which agree on none. runc names the command, and an
// error like its that names another program is about something else, such as
// the runtime itself.
func invokeStatus(err error, command string) int {
	text := err.Error()
	has := func(part string) bool { return strings.Contains(text, part) }
	runc := has(`: exec: "` + command + `": `)
	switch {
	case runc && (has("executable file not found in $PATH") || has("no such file or directory")),
		has("executable file `" + command + "` not found in $PATH"),
		has("open executable: No such file or directory"):
		return statusNotFound
	case runc && (has("permission denied") || has("is a directory") || has("exec format error")),
		has("open executable: "):
		return statusNoInvoke
	}
	return 0
}
