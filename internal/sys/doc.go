// Package sys owns what berth asks of the Linux kernel about processes: handles
// that survive the reuse of a pid, start times, children, and who is at the
// other end of a socket. It knows nothing of containers.
package sys
