// Package harness runs the real daemon for tests: built from this tree, with
// directories of its own, killed and restarted at will, and looked over
// afterwards for anything that it left behind.
package harness
