package client

// Labels that berth's command keeps on the containers it makes.
const (
	// LabelStopSignal is the name of the signal that asks the container to end,
	// if it is not SIGTERM.
	LabelStopSignal = "io.berth.stop-signal"
	// LabelExitStatus and LabelExitedAt (RFC 3339) tell how the last task ended
	// once it is deleted, as it is after a run in the foreground.
	LabelExitStatus = "io.berth.exit-status"
	LabelExitedAt   = "io.berth.exited-at"
)
