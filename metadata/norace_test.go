//go:build !race

package metadata

const raceDetector = false
