// Package fakedaemon owns a daemon for tests of clients: it speaks the wire over
// a real socket and keeps its rows in memory. Any call can be made to fail, before
// or after it did its work. It runs no containers: a task is a goroutine that
// plays a process's part in the fifos that the client made. How the real daemon
// behaves it does not know; that is for the scripts of module test.
package fakedaemon
