package streams

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/protobuf"
)

// end is one end of a stream in memory. What it sends waits for the other end.
type end struct {
	send chan<- *anypb.Any
	recv <-chan *anypb.Any
	mine chan struct{} // closed by Close
	gone <-chan struct{}
}

func pipe() (a, b *end) {
	ab, ba := make(chan *anypb.Any), make(chan *anypb.Any)
	closedA, closedB := make(chan struct{}), make(chan struct{})
	return &end{ab, ba, closedA, closedB}, &end{ba, ab, closedB, closedA}
}

func (e *end) Send(m *anypb.Any) error {
	select {
	case e.send <- m:
		return nil
	case <-e.gone:
		return io.EOF
	case <-e.mine:
		return io.ErrClosedPipe
	}
}

func (e *end) Recv() (*anypb.Any, error) {
	select {
	case m := <-e.recv:
		return m, nil
	case <-e.gone:
		return nil, io.EOF
	case <-e.mine:
		return nil, io.ErrClosedPipe
	}
}

func (e *end) Close() { close(e.mine) }

// buffered lets grants lie until they are asked for, as a transport does.
type buffered struct {
	*end
	grants chan *anypb.Any
}

func (b buffered) Send(m *anypb.Any) error { return b.end.Send(m) }
func (b buffered) Recv() (*anypb.Any, error) {
	select {
	case m := <-b.grants:
		return m, nil
	case <-b.gone:
		return nil, io.EOF
	}
}

// writerEnd has the transport of a writer's end receive ahead.
func writerEnd(e *end) buffered {
	b := buffered{e, make(chan *anypb.Any, 1000)}
	go func() {
		for {
			m, err := e.Recv()
			if err != nil {
				return
			}
			b.grants <- m
		}
	}()
	return b
}

func TestBytes(t *testing.T) {
	for _, size := range []int{0, 1, MaxData - 1, MaxData, MaxData + 1, Window, Window + 1, 5*Window + 7, 1 << 20} {
		data := make([]byte, size)
		rand.Read(data)
		a, b := pipe()
		w := NewWriter(writerEnd(a))
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyBuffer(w, struct{ io.Reader }{iotest.HalfReader(bytes.NewReader(data))}, make([]byte, 100_000))
			if err == nil {
				err = w.Settle()
			}
			a.Close()
			sent <- err
		}()
		got, err := io.ReadAll(NewReader(b))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: got %d, error %v", size, len(got), err)
		}
		if err := <-sent; err != nil {
			t.Errorf("%d bytes: sending: %v", size, err)
		}
		b.Close()
	}
}

// A writer never sends more than was granted, nor more than a message may have.
func TestWindow(t *testing.T) {
	a, b := pipe()
	defer b.Close()
	w := NewWriter(a)
	done := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 200_000))
		done <- err
	}()
	total := 0
	for granted := 0; granted < 200_000; {
		step := min(50_000, 200_000-granted)
		granted += step
		m, _ := protobuf.MarshalAny(&transfer.WindowUpdate{Update: int32(step)})
		if err := b.Send(m); err != nil {
			t.Fatal(err)
		}
		for total < granted {
			m, err := b.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var d transfer.Data
			if err := proto.Unmarshal(m.GetValue(), &d); err != nil {
				t.Fatal(err)
			}
			if total += len(d.GetData()); len(d.GetData()) > MaxData || total > granted {
				t.Fatalf("%d bytes in a message, %d of %d granted", len(d.GetData()), total, granted)
			}
		}
		select { // nothing comes until more is granted
		case <-b.recv:
			t.Fatal("more than was granted")
		default:
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Whoever breaks the rules is refused, and the error stays.
func TestRules(t *testing.T) {
	empty, _ := protobuf.MarshalAny(&emptypb.Empty{})
	damaged := &anypb.Any{TypeUrl: "containerd.types.transfer.Data", Value: []byte{0xff}}
	large, _ := protobuf.MarshalAny(&transfer.Data{Data: make([]byte, Window+1)})
	for name, m := range map[string]*anypb.Any{"type": empty, "damaged": damaged, "too much": large, "nothing": nil} {
		a, b := pipe()
		go func() {
			a.Recv()
			a.Send(m)
		}()
		r := NewReader(b)
		for range 2 {
			if _, err := r.Read(make([]byte, 1)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("reader, %s: %v", name, err)
			}
		}
		a.Close()
	}
	negative, _ := protobuf.MarshalAny(&transfer.WindowUpdate{Update: -1})
	for name, m := range map[string]*anypb.Any{"type": empty, "damaged": {TypeUrl: "containerd.types.transfer.WindowUpdate", Value: []byte{0xff}}, "negative": negative} {
		a, b := pipe()
		go b.Send(m)
		w := NewWriter(a)
		for range 2 {
			if _, err := w.Write([]byte("x")); !errdefs.IsInvalidArgument(err) {
				t.Errorf("writer, %s: %v", name, err)
			}
		}
		b.Close()
	}
}

// A reader that stops ends the writer; what was sent before a writer stopped is read.
func TestGone(t *testing.T) {
	a, b := pipe()
	w := NewWriter(a)
	b.Close()
	if _, err := w.Write([]byte("x")); !errors.Is(err, ErrGone) {
		t.Errorf("write: %v", err)
	}
	if err := w.Settle(); !errors.Is(err, ErrGone) {
		t.Errorf("settle: %v", err)
	}
	a, b = pipe()
	left := &leftover{end: b, messages: []string{"one ", "two"}}
	a.Close()
	if got, err := io.ReadAll(NewReader(left)); err != nil || string(got) != "one two" {
		t.Errorf("read %q, %v", got, err)
	}
}

// leftover is a stream whose other side is gone, of which messages are still there.
type leftover struct {
	*end
	messages []string
	granted  bool
}

func (l *leftover) Send(m *anypb.Any) error {
	if !l.granted {
		l.granted = true
		return nil
	}
	return l.end.Send(m)
}

func (l *leftover) Recv() (*anypb.Any, error) {
	if len(l.messages) == 0 {
		return l.end.Recv()
	}
	m, err := protobuf.MarshalAny(&transfer.Data{Data: []byte(l.messages[0])})
	l.messages = l.messages[1:]
	return m, err
}
