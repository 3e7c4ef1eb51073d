// Package restart owns restart policies: it runs containers again that have
// ended, and ends those that are to be stopped, as their labels say
// (internal/labels, the names are nerdctl's). It makes no containers and does not
// supervise tasks; package runtime does.
//
// Each container with such labels has a keeper, a goroutine that looks when
// something has happened to it (the journal of events says so), when a pause is
// over, and every ten seconds in any case. A look reads the container's record
// and what the daemon knows of its task, and decides by a pure function of these
// (decide). So nothing depends on an event having been seen, and a daemon that
// starts goes on where the last one ended.
//
// An explicit stop wins. A client labels the container before it ends the task;
// the label is read after the exit, and again after a start, which is undone if
// the label has come meanwhile.
package restart
