package shim

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// State is where a process is in its life.
type State uint8

// The states of a task (of init) and of an exec. Pausing is a task's only.
const (
	Created        State = iota // made by the runtime, not started; an exec: registered
	FromCheckpoint              // has no process yet: Start restores one
	Running
	Pausing // the runtime is freezing it
	Paused
	Stopped // ended; its status is known
	Deleted
	numStates
)

// Event is what happens to a process: a call from outside, or something that is
// observed.
type Event uint8

// Calls, then observations.
const (
	Start Event = iota
	Kill
	Exec // registers an exec; of a task only
	Pause
	Resume
	Update
	Checkpoint
	Delete
	Frozen    // the runtime has paused the task
	NotFrozen // the runtime failed to
	Exited    // the process has ended and its status is recorded
	numEvents
)

// Action is what has to be done for an event to take effect. If it fails the
// state stays.
type Action uint8

// The actions.
const (
	Nothing     Action = iota
	RunProgram         // runtime start, or exec
	Restore            // runtime restore
	SendSignal         // runtime kill
	Register           // take the exec into the table
	Freeze             // runtime pause
	Thaw               // runtime resume
	SetLimits          // runtime update
	Dump               // runtime checkpoint
	CleanUp            // wait for the output, runtime delete, unmount, forget
	KillCleanUp        // the same for a process that still lives
	Drop               // the same where there never was a process
	numActions
)

var stateNames = [numStates]string{"created", "created-from-checkpoint", "running", "pausing", "paused", "stopped", "deleted"}

var eventNames = [numEvents]string{"start", "kill", "exec", "pause", "resume", "update", "checkpoint", "delete", "frozen", "not frozen", "exited"}

var actionNames = [numActions]string{"", "run program", "restore", "send signal", "register", "freeze", "thaw", "set limits", "dump", "clean up", "kill, clean up", "drop"}

func (s State) String() string  { return stateNames[s] }
func (e Event) String() string  { return eventNames[e] }
func (a Action) String() string { return actionNames[a] }

// rule is one entry of a transition table.
type rule struct {
	next State
	act  Action
	kind error // set: refused, with this kind
}

// table says what each event does in each state. What it lacks is refused with
// an error of no kind (Unknown on the wire), as clients know it.
type table map[State]map[Event]rule

// taskTable is the life of a task, that is of its init process.
var taskTable = table{
	FromCheckpoint: {
		Start:  {next: Running, act: Restore},
		Kill:   {next: FromCheckpoint, act: SendSignal},
		Update: {next: FromCheckpoint, act: SetLimits},
		Delete: {next: Deleted, act: Drop},
	},
	Created: {
		Start:  {next: Running, act: RunProgram},
		Kill:   {next: Created, act: SendSignal},
		Exec:   {next: Created, act: Register},
		Update: {next: Created, act: SetLimits},
		Delete: {next: Deleted, act: KillCleanUp},
		Exited: {next: Stopped},
	},
	Running: {
		Kill:       {next: Running, act: SendSignal},
		Exec:       {next: Running, act: Register},
		Pause:      {next: Pausing, act: Freeze},
		Update:     {next: Running, act: SetLimits},
		Checkpoint: {next: Running, act: Dump},
		Exited:     {next: Stopped},
	},
	Pausing: {
		Kill:      {next: Pausing, act: SendSignal},
		Update:    {next: Pausing, act: SetLimits},
		Frozen:    {next: Paused},
		NotFrozen: {next: Running},
		Exited:    {next: Stopped},
	},
	Paused: {
		Kill:       {next: Paused, act: SendSignal},
		Resume:     {next: Running, act: Thaw},
		Update:     {next: Paused, act: SetLimits},
		Checkpoint: {next: Paused, act: Dump},
		Exited:     {next: Stopped},
	},
	Stopped: {
		Kill:   {kind: errdefs.ErrNotFound},
		Delete: {next: Deleted, act: CleanUp},
	},
	Deleted: {
		Kill:   {kind: errdefs.ErrNotFound},
		Delete: {kind: errdefs.ErrNotFound},
	},
}

// execTable is the life of an exec.
var execTable = table{
	Created: {
		Start:  {next: Running, act: RunProgram},
		Kill:   {kind: errdefs.ErrFailedPrecondition},
		Delete: {next: Deleted, act: CleanUp},
	},
	Running: {
		Kill:   {next: Running, act: SendSignal},
		Exited: {next: Stopped},
	},
	Stopped: {
		Kill:   {kind: errdefs.ErrNotFound},
		Delete: {next: Deleted, act: CleanUp},
	},
	Deleted: {
		Kill:   {kind: errdefs.ErrNotFound},
		Delete: {kind: errdefs.ErrNotFound},
	},
}

// step tells what an event does in a state: the state it leads to once the
// action has succeeded. It has no effect itself.
func (t table) step(s State, e Event) (State, Action, error) {
	r, ok := t[s][e]
	switch {
	case !ok:
		return s, Nothing, fmt.Errorf("cannot %s a %s process", e, s)
	case r.kind != nil:
		return s, Nothing, fmt.Errorf("cannot %s a %s process: %w", e, s, r.kind)
	}
	return r.next, r.act, nil
}
