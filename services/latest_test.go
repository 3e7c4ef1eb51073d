package services

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/leak"
)

// Of each thing the last message is told, in the order in which the things came.
func TestLatest(t *testing.T) {
	l := newLatest[string, int]()
	for i, about := range []string{"a", "b", "a", "", "", "a"} {
		l.put(about, i)
	}
	<-l.wake
	if got := l.take(); !slices.Equal(got, []int{5, 1, 3, 4}) {
		t.Errorf("took %v", got)
	}
	l.put("a", 6)
	<-l.wake
	if got := l.take(); !slices.Equal(got, []int{6}) {
		t.Errorf("then took %v", got)
	}
}

// deaf is a client that takes nothing until its stream ends.
type deaf struct {
	streamServer
	ended <-chan struct{}
}

func (d deaf) Send(*anypb.Any) error {
	<-d.ended
	return io.ErrClosedPipe
}

// What such a client has not taken in the end is not waited for.
func TestProgressEndsWithoutTheClient(t *testing.T) {
	leak.Check(t)
	st := &stream{ended: make(chan struct{})}
	st.server = deaf{ended: st.ended}
	p := newTransferProgress(st)
	p.last = time.Millisecond
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := range 1000 {
			p.object(images.Progress{Digest: digest.FromString(fmt.Sprint(i)), Status: images.Loading})
		}
		p.end()
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("it is waited for")
		st.end(nil)
		<-ended
	}
}
