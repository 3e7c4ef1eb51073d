//go:build !race

package main

// raceFlag makes the shim under test have the race detector, as the test has.
const raceFlag = ""
