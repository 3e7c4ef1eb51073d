// Package events owns the journal: every event of the daemon and of its shims,
// numbered, in order, on disk. A subscription is a place in the journal and not
// a queue, so a slow subscriber costs no memory and loses nothing while what it
// has yet to read is kept. The package does not know what an event means.
//
// The journal lives under the daemon's state, as long as the boot, and is
// written without flushing: it survives the daemon and is worthless after the
// machine, when every process it speaks of is gone.
//
//	DIR/00001763679600000000.events     a segment, named by its first number
//	    "berthev1"                      8 bytes
//	    record ...                      with numbers that rise by one
//	DIR/00001763679600004711.events     the last one is appended to
//
//	record = length of the body  4 bytes, little endian
//	         CRC-32C             4 bytes, of the number and the body
//	         number              8 bytes, little endian
//	         body                containerd.types.Envelope
//
// Numbers only rise: within a segment by one, between segments maybe by more.
// A new journal starts at the clock's microseconds, so that its numbers are
// above those of earlier boots and a stale one is not taken for a fresh one.
//
// When all segments together would exceed the bound, the oldest goes. Readers
// share the segments' open files, which close with them: a subscriber that
// stands in a removed one is told so.
package events
