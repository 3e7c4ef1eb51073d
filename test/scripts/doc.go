// Package scripts reads as what berth's command promises: each script in
// testdata/script drives it against a real daemon of its own, with the real shim
// and the real OCI runtime.
//
// Beside testscript's own commands a script has:
//
//	daemon start [FLAG...]        start the script's daemon; it is not there before
//	daemon kill                   kill it with SIGKILL
//	daemon stop                   end it with SIGTERM
//	status N PROGRAM [ARG...]     run a program that has to exit with status N
//	until REGEXP PROGRAM [ARG...] run a program again and again until its standard output matches
//	pid VAR CONTAINER             put the pid of a container's first process into VAR
//	gone PID...                   wait until processes have ended
//	terminal N FILE PROGRAM [ARG...]
//	                              run a program at a terminal, as FILE says, until it exits with status N
//
// In the environment are ADDRESS and NAMESPACE of the daemon (as $BERTH_ADDRESS
// and $BERTH_NAMESPACE), its directory $DIR with $DIR/root and $DIR/state, the
// archive $ARCHIVE with the image $IMAGE, and the module's directory $MODULE.
//
// When a script ends, the store has to be sound, and no container, mount,
// process, control group, log or fifo may be left.
package scripts
