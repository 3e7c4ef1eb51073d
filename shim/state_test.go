package shim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

var update = flag.Bool("update", false, "write docs/states.md anew")

// contract is the table of states of the wire (the answers of the runc shim), in
// the order of its columns; Pausing, which it lacks, behaves as the others do.
var contract = map[State]string{
	// Start Kill Exec Pause Resume Update Checkpoint Delete
	Created: "ok ok ok no no ok no ok",

	FromCheckpoint: "ok ok no no no ok no ok",

	Running: "no ok ok ok no ok ok no",
	Pausing: "no ok no no no ok no no",
	Paused:  "no ok no no ok ok ok no",
	Stopped: "no NotFound no no no no no ok",
	Deleted: "no NotFound no no no no no NotFound",
}

// execContract is the same for execs: Start Kill Delete.
var execContract = map[State]string{
	Created: "ok FailedPrecondition ok",
	Running: "no ok no",
	Stopped: "no NotFound ok",
	Deleted: "no NotFound NotFound",
}

func answer(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, errdefs.ErrNotFound):
		return "NotFound"
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		return "FailedPrecondition"
	}
	return "no"
}

// TestContract tries every call in every state.
func TestContract(t *testing.T) {
	for _, c := range []struct {
		name  string
		table table
		want  map[State]string
		calls []Event
	}{
		{"task", taskTable, contract, []Event{Start, Kill, Exec, Pause, Resume, Update, Checkpoint, Delete}},
		{"exec", execTable, execContract, []Event{Start, Kill, Delete}},
	} {
		for state, want := range c.want {
			var got []string
			for _, call := range c.calls {
				_, _, err := c.table.step(state, call)
				got = append(got, answer(err))
				if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("cannot %s a %s process", call, state)) {
					t.Errorf("%s: %s in %s: error %q does not say so", c.name, call, state, err)
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s in %s: %v, want %s", c.name, state, got, want)
			}
		}
	}
}

// TestTables holds what every table has to: it leaves no state for nowhere,
// refusals change nothing, only a live process can end, and everything can be
// deleted in the end.
func TestTables(t *testing.T) {
	for name, table := range map[string]table{"task": taskTable, "exec": execTable} {
		for state := State(0); state < numStates; state++ {
			for event := Event(0); event < numEvents; event++ {
				next, action, err := table.step(state, event)
				if err != nil && (next != state || action != Nothing) {
					t.Errorf("%s: refused %s in %s has an effect", name, event, state)
				}
				if next >= numStates || action >= numActions {
					t.Errorf("%s: %s in %s leads to %d by %d", name, event, state, next, action)
				}
				if next != state && table[next] == nil {
					t.Errorf("%s: %s in %s leads to %s, where nothing is said", name, event, state, next)
				}
				if event == Exited && err == nil && (next != Stopped || state == Stopped || state == Deleted) {
					t.Errorf("%s: exit in %s leads to %s", name, state, next)
				}
			}
		}
		for state := range table {
			if !leadsTo(table, state, Deleted, map[State]bool{}) {
				t.Errorf("%s: from %s nothing leads to deleted", name, state)
			}
		}
	}
}

func leadsTo(table table, from, to State, seen map[State]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for _, r := range table[from] {
		if r.kind == nil && leadsTo(table, r.next, to, seen) {
			return true
		}
	}
	return false
}

const statesFile = "../docs/states.md"

// TestStatesDoc compares docs/states.md with the tables.
func TestStatesDoc(t *testing.T) {
	want := statesDoc()
	if *update {
		if err := os.WriteFile(statesFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(statesFile)
	if err != nil || string(got) != want {
		t.Fatalf("docs/states.md is not what shim/state.go says (%v): go test ./shim -run TestStatesDoc -update", err)
	}
}

// statesDoc writes the tables for people.
func statesDoc() string {
	var b strings.Builder
	b.WriteString(`# States of tasks and execs

Generated from the tables in shim/state.go by

    go test ./shim -run TestStatesDoc -update

Each cell is the state that follows, and what has to succeed for that. *no* is
an error without a kind (code Unknown on the wire) whose text says "cannot CALL
a STATE process"; a refusal with a kind names it. The last columns are not calls
but what the shim observes.

`)
	writeTable(&b, "A task, that is its init process", taskTable)
	writeTable(&b, "An exec", execTable)
	b.WriteString(`Beside the tables:

- SIGKILL to a paused task resumes it first (event ` + "`/tasks/resumed`" + `): what a cgroup
  of version 1 has frozen can't die.
- An exec of a paused task is shown as paused, and can't be started.
- Starting an exec after init has ended is FailedPrecondition.
- An exec whose Start failed is still registered and can be started again.
- A task deleted before it was started has exit status 0 and no exit event; who
  waits for it is told NotFound.
- Of a task created from a checkpoint there is no process before its start: a
  signal is NotFound, new limits hold from the restore on, and a restore that
  fails leaves it as it was.
- A checkpoint that ends the task leads to stopped by way of the exit.
`)
	return b.String()
}

func writeTable(b *strings.Builder, title string, table table) {
	var events []Event
	for event := Event(0); event < numEvents; event++ {
		for state := range table {
			if _, ok := table[state][event]; ok {
				events = append(events, event)
				break
			}
		}
	}
	fmt.Fprintf(b, "## %s\n\n| state |", title)
	for _, event := range events {
		fmt.Fprintf(b, " %s |", event)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(events)) + "\n")
	for state := State(0); state < numStates; state++ {
		if table[state] == nil {
			continue
		}
		fmt.Fprintf(b, "| %s |", state)
		for _, event := range events {
			fmt.Fprintf(b, " %s |", cell(table, state, event))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

func cell(table table, state State, event Event) string {
	next, action, err := table.step(state, event)
	switch {
	case err != nil && event >= Frozen:
		return ""
	case err != nil:
		return answer(err)
	case action == Nothing:
		return next.String()
	case next == state:
		return action.String()
	}
	return fmt.Sprintf("%s: %s", next, action)
}
