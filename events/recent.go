package events

import (
	"hash/maphash"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/types"
)

// maxRecent is of how many events is remembered that they are in the journal.
const maxRecent = 1024

// recent remembers the latest events by a hash, so that one which comes again,
// because the answer to the first time was lost or nobody knew of it, is told
// from a new one. It is filled anew from the journal's end when that is opened.
type recent struct {
	seed   maphash.Seed
	ring   [maxRecent]uint64
	next   int
	set    map[uint64]int // how many places of the ring have it
	loaded [][]byte       // bodies of before, while the journal is opened
}

func newRecent() *recent { return &recent{seed: maphash.MakeSeed(), set: map[uint64]int{}} }

// load notes a record of before. A journal has many more than are remembered.
func (r *recent) load(body []byte) {
	body = append([]byte(nil), body...)
	if len(r.loaded) < maxRecent {
		r.loaded = append(r.loaded, body)
		return
	}
	r.loaded[r.next] = body
	r.next = (r.next + 1) % maxRecent
}

// settle takes in what load has noted.
func (r *recent) settle() {
	bodies := append(r.loaded[r.next:], r.loaded[:r.next]...)
	r.loaded, r.next = nil, 0
	for _, body := range bodies {
		var e types.Envelope
		if proto.Unmarshal(body, &e) == nil {
			if sum, ok := r.sum(&e); ok {
				r.add(sum)
			}
		}
	}
}

// sum gives what an event of a task is known by. The end of a process is one
// event, whoever tells of it and when; of any other the time, to the nanosecond,
// is part. ok is false for events that may come again.
func (r *recent) sum(e *types.Envelope) (sum uint64, ok bool) {
	if !strings.HasPrefix(e.GetTopic(), "/tasks/") {
		return 0, false
	}
	var h maphash.Hash
	h.SetSeed(r.seed)
	for _, part := range []string{e.GetNamespace(), e.GetTopic(), e.GetEvent().GetTypeUrl(), string(e.GetEvent().GetValue())} {
		_, _ = h.WriteString(part) // a hash takes everything
		_ = h.WriteByte(0)
	}
	if !tellsEnd(e) {
		at := e.GetTimestamp()
		if at.GetNanos() == 0 {
			return 0, false
		}
		maphash.WriteComparable(&h, [2]int64{at.GetSeconds(), int64(at.GetNanos())})
	}
	return h.Sum64(), true
}

// tellsEnd tells whether an event says of a process when it ended, and with that
// which process it was.
func tellsEnd(e *types.Envelope) bool {
	var at *timestamppb.Timestamp
	switch e.GetTopic() {
	case "/tasks/exit":
		var exit apievents.TaskExit
		if proto.Unmarshal(e.GetEvent().GetValue(), &exit) == nil {
			at = exit.GetExitedAt()
		}
	case "/tasks/delete":
		var del apievents.TaskDelete
		if proto.Unmarshal(e.GetEvent().GetValue(), &del) == nil {
			at = del.GetExitedAt()
		}
	}
	return at.GetNanos() != 0
}

func (r *recent) add(sum uint64) {
	if old := r.ring[r.next]; r.set[old] > 1 {
		r.set[old]--
	} else {
		delete(r.set, old)
	}
	r.ring[r.next] = sum
	r.next = (r.next + 1) % maxRecent
	r.set[sum]++
}

func (r *recent) has(sum uint64) bool { return r.set[sum] > 0 }
