// Package diff applies layers and makes them. To apply one, it undoes the
// compression of a blob and lays the tar in it down where mounts lead; to make one,
// it compares what mounts lead to (package internal/archive). It does not keep
// content, and knows no images: what a layer belongs to is told by package images.
//
// In Apply three things run at once over buffers that go round: one goroutine
// decompresses, one hashes, the caller's extracts. So a layer takes as long as the
// slowest of the three, and a bounded amount of memory.
package diff
