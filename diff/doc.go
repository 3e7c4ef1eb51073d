// Package diff applies layers: it undoes the compression of a blob and lays the
// tar in it down where mounts lead. It does not make layers, does not keep
// content, and knows no images: what a layer belongs to is told by package
// images.
//
// Three things run at once over buffers that go round: one goroutine
// decompresses, one hashes, the caller's extracts (package internal/archive).
// So a layer takes as long as the slowest of the three, and a bounded amount of
// memory.
package diff
