// Package names owns what a name must look like: identifiers, namespaces and
// event topics. It does not know whether a thing of that name exists.
package names

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// MaxLength is the number of bytes an identifier may have. Identifiers become
// parts of file and cgroup names, so they are short.
const MaxLength = 76

// Identifier checks the name of a namespace, container, task, exec or sandbox:
// letters and digits of ASCII, in runs parted by single ".", "_" or "-". The
// error is of kind InvalidArgument.
func Identifier(id string) error {
	if problem := check(id); problem != "" {
		return fmt.Errorf("identifier %s %s: %w", quote(id), problem, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Namespace checks the namespace of a call: FailedPrecondition if it is empty,
// InvalidArgument if it is no identifier.
func Namespace(ns string) error {
	if ns == "" {
		return fmt.Errorf("namespace is required: %w", errdefs.ErrFailedPrecondition)
	}
	if problem := check(ns); problem != "" {
		return fmt.Errorf("namespace %s %s: %w", quote(ns), problem, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Topic checks the topic of an event: one or more identifiers, each with a "/"
// before it, as in "/tasks/exit". The error is of kind InvalidArgument.
func Topic(topic string) error {
	rest, ok := strings.CutPrefix(topic, "/")
	if !ok {
		return fmt.Errorf("topic %s must start with \"/\": %w", quote(topic), errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(rest, "/") {
		if problem := check(part); problem != "" {
			return fmt.Errorf("topic %s: component %s %s: %w", quote(topic), quote(part), problem, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// check says what is wrong with id, or nothing.
func check(id string) string {
	switch {
	case id == "":
		return "is empty"
	case len(id) > MaxLength:
		return fmt.Sprintf("is longer than %d bytes", MaxLength)
	}
	wasSeparator := true // of the place before the first byte
	for i := range len(id) {
		switch c := id[i]; {
		case alphanumeric(c):
			wasSeparator = false
		case c != '.' && c != '_' && c != '-':
			return "may hold only letters, digits, \".\", \"_\" and \"-\""
		case wasSeparator:
			return "must not start with a separator or have two in a row"
		default:
			wasSeparator = true
		}
	}
	if wasSeparator {
		return "must not end with a separator"
	}
	return ""
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// quote shows the start of a name that may be as long as a message.
func quote(name string) string {
	const shown = 2 * MaxLength
	if len(name) > shown {
		return fmt.Sprintf("%q...", name[:shown])
	}
	return fmt.Sprintf("%q", name)
}
