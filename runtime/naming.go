package runtime

import (
	"fmt"
	"strings"
)

// unnamed takes the name of the task out of a shim's error, which is to become
// part of one that gives it already. A shim names it since it may work for
// other daemons as well.
func unnamed(id string, err error) error {
	name := fmt.Sprintf("task %q", id)
	text := err.Error()
	switch rest, ok := strings.CutPrefix(text, name+": "); {
	case ok:
		return &reworded{err, rest}
	case strings.HasPrefix(text, `exec "`):
		return &reworded{err, strings.Replace(text, " of "+name, "", 1)}
	}
	return err
}

// reworded is an error with another text.
type reworded struct {
	err  error
	text string
}

func (e *reworded) Error() string { return e.text }

func (e *reworded) Unwrap() error { return e.err }
