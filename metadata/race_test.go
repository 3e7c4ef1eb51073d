//go:build race

package metadata

// raceDetector tells that everything takes several times as long.
const raceDetector = true
