package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what an error quotes.
const (
	maxMessage = 4 << 10
	maxLogTail = 64 << 10
)

// Error is a call of the runtime that failed.
type Error struct {
	Binary   string      // base name, such as "runc"
	Command  string      // such as "create"
	ExitCode int         // -1 if it did not exit by itself
	Signal   unix.Signal // what ended it, if a signal did
	Message  string      // the last error of its log, or the end of its standard error
	Err      error       // why it was not run to its end: that of the context, or of starting it
}

// Error says which call failed, how, and what the runtime said of it.
func (e *Error) Error() string {
	var how string
	switch {
	case e.Err != nil:
		how = e.Err.Error()
	case e.Signal != 0:
		how = fmt.Sprintf("killed by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		how = fmt.Sprintf("exit status %d", e.ExitCode)
	}
	text := e.Binary + " " + e.Command + ": " + how
	if e.Message != "" {
		text += ": " + e.reason()
	}
	return text
}

// reason is the message without that which call failed: runc says "runc create
// failed: " or "exec failed: " first.
func (e *Error) reason() string {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(e.Message, e.Binary+" "), e.Command+" failed: ")
	if !ok || rest == "" {
		return e.Message
	}
	return rest
}

// Unwrap returns the context's error for a call that was ended, so that a
// deadline is known as one.
func (e *Error) Unwrap() error { return e.Err }

// MissingError is a runtime that is not installed.
type MissingError struct {
	Binary string
	Err    error
}

// Error names the binary and what to do.
func (e *MissingError) Error() string {
	const another = "name another, for one container in the runtime options (binary_name) or for all in berthd's configuration (runtime.binary)"
	if strings.Contains(e.Binary, "/") {
		return fmt.Sprintf("OCI runtime %q can't be used: %v; %s", e.Binary, e.Err, another)
	}
	install := "install it"
	if e.Binary == DefaultBinary || e.Binary == "crun" {
		install += " (Debian: apt-get install " + e.Binary + ")"
	}
	return fmt.Sprintf("OCI runtime %q is not in PATH (%s): %s, or %s", e.Binary, os.Getenv("PATH"), install, another)
}

// Unwrap returns what the lookup failed with.
func (e *MissingError) Unwrap() error { return e.Err }

// message finds out why a call failed: from the log, else from what it printed.
func message(logPath string, stderr *os.File) string {
	if text := lastError(tail(logPath)); text != "" {
		return clip(text)
	}
	if stderr == nil {
		return ""
	}
	data, err := written(stderr)
	if err != nil {
		return ""
	}
	return clip(strings.TrimSpace(strings.ToValidUTF8(string(data), "?")))
}

// tail reads the end of a file; nothing if it can't.
func tail(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxLogTail {
		if _, err := f.Seek(-maxLogTail, io.SeekEnd); err != nil {
			return nil
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxLogTail))
	if err != nil {
		return nil
	}
	return data
}

// lastError returns the message of the last entry of level error or above in a
// log of JSON lines; without one, the last line that is no JSON.
func lastError(log []byte) string {
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	var plain string
	for i := len(lines) - 1; i >= 0; i-- {
		var entry struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		if err := json.Unmarshal(lines[i], &entry); err != nil {
			if plain == "" {
				plain = strings.TrimSpace(strings.ToValidUTF8(string(lines[i]), "?"))
			}
			continue
		}
		switch entry.Level {
		case "error", "fatal", "panic":
			return strings.TrimSpace(entry.Msg)
		}
	}
	return plain
}

// clip keeps the end of a text that is too long, where the reason stands.
func clip(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return "..." + strings.ToValidUTF8(text[len(text)-maxMessage:], "")
}
