// Package client is for programs that use berth: it owns the connection to the
// daemon, the order of calls that makes a container run, and the fifos through
// which its output comes. It knows nothing of command lines.
//
// A container's life, as the daemon sees it:
//
//	lease                    so that nothing is collected before it is named
//	snapshot, spec, record   NewContainer
//	fifos, then task         NewTask: the fifos are open before the shim opens them
//	wait, then start         Launch: the wait is open before the process can end
//	end of output, delete    Process.Delete answers when the output is complete
//	record, snapshot         Remove
//
// A task is the running side of a container: at most one at a time, under the
// container's id. Both the first process and those that Exec adds are a Process.
//
// The messages of the wire (packages under api/) are used as they are. Errors
// are of the kinds of github.com/containerd/errdefs. Those of a call that is made
// for one thing alone come as the daemon words them: it says what it attempted.
package client
