package events

import "hash/maphash"

// maxRecent is of how many events is remembered that they are in the journal.
const maxRecent = 1024

// recent remembers the latest records by a hash of their bodies, so that an event
// which is forwarded again, because the answer to the first time was lost, is
// told from a new one. It is filled anew from the journal's end when that is
// opened.
type recent struct {
	seed maphash.Seed
	ring [maxRecent]uint64
	next int
	set  map[uint64]int // how many places of the ring have it
}

func newRecent() *recent { return &recent{seed: maphash.MakeSeed(), set: map[uint64]int{}} }

func (r *recent) add(body []byte) {
	if old := r.ring[r.next]; r.set[old] > 1 {
		r.set[old]--
	} else {
		delete(r.set, old)
	}
	sum := maphash.Bytes(r.seed, body)
	r.ring[r.next] = sum
	r.next = (r.next + 1) % maxRecent
	r.set[sum]++
}

func (r *recent) has(body []byte) bool { return r.set[maphash.Bytes(r.seed, body)] > 0 }
