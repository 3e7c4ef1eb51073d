// Package obs owns how the daemon is observed: its log and its metrics. It does
// not decide what is worth a line or a number; the packages that act do.
package obs
