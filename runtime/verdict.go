package runtime

import "fmt"

// answer is what came of asking a shim.
type answer uint8

const (
	refused  answer = iota // nobody listens: no process holds the listening socket
	silent                 // somebody may listen, but did not answer in time
	answered               // the shim is there
)

// life is what is known of a process from its record.
type life uint8

const (
	unrecorded life = iota // there is no record of it
	alive                  // a process with that pid and start time runs
	dead                   // none does, or it is a zombie
)

// facts is what can be found out about a bundle.
type facts struct {
	Rebooted bool   // the bundle is of an earlier boot
	Damaged  error  // a record that can't be read
	Started  bool   // init.json: the OCI runtime has made the container
	Exited   bool   // exit.json: init has ended
	Dial     answer // of the shim's socket
	Holds    bool   // the shim that answered has the task
	Shim     life
	Init     life
}

// Verdict is what a bundle is found to be.
type verdict string

const (
	verdictDiscard    verdict = "discard"    // of an earlier boot: all its processes are gone
	verdictQuarantine verdict = "quarantine" // can't be understood: kept and reported
	verdictUnknown    verdict = "unknown"    // can't be told now: kept and tried again
	verdictConnected  verdict = "connected"  // the shim has the task
	verdictLost       verdict = "lost"       // no shim, but init lives: kept, supervised from here
	verdictStopped    verdict = "stopped"    // init has ended; the task waits to be deleted
	verdictUndo       verdict = "undo"       // a create that never came to an outcome
)

// judge finds the verdict and says why. It is the table of the design's section
// on restarts: only proof of death leads to a verdict under which anything is
// removed.
func judge(f facts) (verdict, string) {
	switch {
	case f.Rebooted:
		return verdictDiscard, "the machine has been booted since"
	case f.Damaged != nil:
		return verdictQuarantine, f.Damaged.Error()
	case f.Dial == answered:
		return judgeAnswered(f)
	case f.Shim == alive && f.Dial == refused:
		return verdictUnknown, "the shim's process lives, but nobody listens on its socket"
	case f.Dial == silent && f.Shim != dead:
		return verdictUnknown, "the shim does not answer"
	}
	// The shim is dead: nobody listens, or its process is gone.
	switch {
	case f.Exited && f.Started:
		return verdictStopped, "the shim has died; init ended before"
	case f.Exited: // cleaning up after it has recorded that
		return verdictUndo, "the create never came to an outcome, and what it had left is cleaned up"
	case f.Init == alive:
		return verdictLost, "the shim has died"
	case f.Started:
		return verdictStopped, "the shim has died, and init has"
	}
	return verdictUndo, "the create never came to an outcome"
}

func judgeAnswered(f facts) (verdict, string) {
	switch {
	case f.Holds:
		return verdictConnected, ""
	case f.Started && !f.Exited && f.Init == alive:
		return verdictLost, "the shim does not know the task, but init lives"
	case f.Started:
		return verdictStopped, "a delete came to no end: the shim has forgotten the task"
	}
	return verdictUndo, "the create never reached the OCI runtime"
}

// String describes the facts for a log line.
func (f facts) String() string {
	return fmt.Sprintf("dial %d holds %t started %t exited %t shim %d init %d", f.Dial, f.Holds, f.Started, f.Exited, f.Shim, f.Init)
}
