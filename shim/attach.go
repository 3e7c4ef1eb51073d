package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	api "github.com/berthd/berth/api/berth/shim/v1"
	"github.com/berthd/berth/internal/attach"
	"github.com/berthd/berth/internal/sys"
)

// Bounds of attached clients.
const (
	maxAttached = 128             // at a time, of all processes of a shim
	maxBehind   = 512 << 10       // bytes that one may have waiting
	connectTime = 5 * time.Second // until one has connected
	lastWords   = 2 * time.Second // for them to read the end
)

// taps are the attached clients of a process.
type taps struct {
	count atomic.Int32

	// mu guards what follows.
	mu  sync.Mutex
	set map[*tap]struct{}
}

// any tells whether there is one.
func (t *taps) any() bool { return t != nil && t.count.Load() > 0 }

// give gives output to all. It waits for none of them.
func (t *taps) give(from stream, data []byte) {
	if !t.any() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for one := range t.set {
		one.put(from, data)
	}
}

func (t *taps) add(one *tap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set == nil {
		t.set = map[*tap]struct{}{}
	}
	t.set[one] = struct{}{}
	t.count.Store(int32(len(t.set)))
}

func (t *taps) remove(one *tap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.set, one)
	t.count.Store(int32(len(t.set)))
}

// tap is what waits for one attached client.
type tap struct {
	wake chan struct{} // has a value when there may be something

	// mu guards what follows.
	mu    sync.Mutex
	queue []piece
	size  int
	cut   bool // it fell behind: nothing is added any more
}

// piece is output of one stream.
type piece struct {
	from stream
	data []byte
}

func (t *tap) put(from stream, data []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cut {
		return
	}
	if t.size+len(data) > maxBehind {
		t.cut = true
	} else {
		t.size += len(data)
		if last := len(t.queue) - 1; last >= 0 && t.queue[last].from == from {
			t.queue[last].data = append(t.queue[last].data, data...)
		} else {
			t.queue = append(t.queue, piece{from, append([]byte(nil), data...)})
		}
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// take gives what waits, and whether it is the last because of a cut.
func (t *tap) take() ([]piece, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue := t.queue
	t.queue, t.size = nil, 0
	return queue, t.cut
}

// attached is one attached client.
type attached struct {
	c        *container
	p        *process
	streams  *streams
	tap      *tap
	input    *input // nil: it sends none
	listener *console
	conn     *net.UnixConn
	out      *attach.Writer
	hungUp   chan struct{} // closed when the client has gone
}

// Attach lets a client see the output of a process, and maybe send its input.
func (s *Shim) Attach(_ context.Context, r *api.AttachRequest) (*api.AttachResponse, error) {
	c, p, err := s.find(r.GetId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	a, err := c.attach(p, r.GetInput())
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", p.name(), err)
	}
	s.attached.Go(a.serve)
	return &api.AttachResponse{Socket: a.listener.path, Terminal: p.paths.terminal, Input: a.input != nil}, nil
}

// attach makes a client of a process, whose output waits for it from now on.
func (c *container) attach(p *process, wantInput bool) (*attached, error) {
	streams := c.streamsOf(p)
	switch {
	case streams == nil:
		return nil, fmt.Errorf("it has not been started: %w", errdefs.ErrFailedPrecondition)
	case streams.taps == nil:
		return nil, fmt.Errorf("it has neither a log nor a terminal, its output goes to the client that made it: %w", errdefs.ErrFailedPrecondition)
	}
	select {
	case <-p.exited:
		return nil, fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition)
	default:
	}
	a := &attached{c: c, p: p, streams: streams, tap: &tap{wake: make(chan struct{}, 1)}, hungUp: make(chan struct{})}
	if wantInput && streams.input != nil {
		if err := streams.input.claim(); err != nil {
			return nil, err
		}
		a.input = streams.input
	}
	if n := c.shim.clients.Add(1); n > maxAttached {
		a.leave()
		return nil, fmt.Errorf("%d clients are attached already: %w", maxAttached, errdefs.ErrUnavailable)
	}
	var err error
	if a.listener, err = listenSocket(p.dir, fmt.Sprintf("attach-%d.sock", c.shim.sockets.Add(1))); err != nil {
		a.leave()
		return nil, err
	}
	streams.taps.add(a.tap)
	return a, nil
}

// leave gives back what attach took.
func (a *attached) leave() {
	a.streams.taps.remove(a.tap)
	if a.input != nil {
		a.input.release()
	}
	if a.listener != nil {
		a.listener.close()
	}
	a.c.shim.clients.Add(-1)
}

// serve lives with the client until it, or the process, has gone.
func (a *attached) serve() {
	defer a.leave()
	defer a.c.shim.trim.later()
	if err := a.accept(); err != nil {
		a.c.shim.config.Log.Warn("client did not come to attach", "task", a.c.id, "exec", a.p.id, "error", err)
		return
	}
	defer a.conn.Close()
	a.out = attach.NewWriter(a.conn)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		a.listen()
	}()
	if err := a.pass(); err == nil {
		_ = a.conn.CloseWrite() // the client reads to the end, then hangs up
		within(lastWords, a.hungUp)
	}
	_ = a.conn.Close()
	<-listening
}

// accept takes the client's connection.
func (a *attached) accept() error {
	defer a.listener.unlisten()
	if err := a.listener.listener.SetDeadline(time.Now().Add(connectTime)); err != nil {
		return err
	}
	conn, err := a.listener.listener.AcceptUnix()
	if err != nil {
		return err
	}
	if err := ownPeer(conn); err != nil {
		return errors.Join(err, conn.Close())
	}
	a.conn = conn
	return nil
}

// pass gives output to the client until the process has ended and all of it is
// passed on. An error is that of the connection.
func (a *attached) pass() error {
	for {
		// Asked before looking: what was written until then will be seen.
		ended := isClosed(a.p.exited) || isClosed(a.p.gone)
		queue, cut := a.tap.take()
		for _, piece := range queue {
			if err := a.out.Write(attach.Kind(piece.from), piece.data); err != nil {
				return err
			}
		}
		switch {
		case cut:
			return a.out.Write(attach.Failure, fmt.Appendf(nil, "cut off, having fallen more than %d KiB behind the output", maxBehind>>10))
		case ended && len(queue) == 0:
			return a.tellEnd()
		case len(queue) > 0:
			continue
		}
		select {
		case <-a.tap.wake:
		case <-a.p.exited:
		case <-a.p.gone:
		case <-a.hungUp:
			return io.EOF
		}
	}
}

// tellEnd tells the client how the process ended.
func (a *attached) tellEnd() error {
	exit, err := a.c.wait(context.Background(), a.p)
	if err != nil {
		return a.out.Write(attach.Failure, []byte(err.Error()))
	}
	return a.out.Write(attach.Exit, attach.EncodeExit(exit.Status, exit.ExitedAt))
}

// listen does what the client says until it hangs up.
func (a *attached) listen() {
	defer close(a.hungUp)
	in := attach.NewReader(a.conn)
	for {
		kind, data, err := in.Read()
		if err != nil {
			return
		}
		switch kind {
		case attach.Input:
			if a.input != nil && a.input.write(data, a.connected) != nil && !a.connected() {
				return
			}
		case attach.EndInput:
			if a.input != nil && a.streams.console == nil {
				a.input.close()
			}
		case attach.Resize:
			columns, rows, err := attach.DecodeSize(data)
			if err != nil {
				return
			}
			if console := a.streams.console; console != nil {
				_ = console.resize(columns, rows) // a terminal that has gone has no size
			}
		}
	}
}

// connected tells whether the client is still there.
func (a *attached) connected() bool {
	raw, err := a.conn.SyscallConn()
	if err != nil {
		return false
	}
	there := false
	err = raw.Control(func(fd uintptr) {
		there = poll(int(fd), unix.POLLRDHUP)&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) == 0
	})
	return err == nil && there
}

// ReopenLog opens the log of a process anew.
func (s *Shim) ReopenLog(_ context.Context, r *api.ReopenLogRequest) (*api.ReopenLogResponse, error) {
	c, p, err := s.find(r.GetId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	streams := c.streamsOf(p)
	if streams == nil || streams.logFile == nil {
		return nil, fmt.Errorf("%s has no log:// log: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	if err := streams.logFile.reopen(); err != nil {
		return nil, fmt.Errorf("%s: reopen its log: %w", p.name(), err)
	}
	return &api.ReopenLogResponse{}, nil
}

// ownPeer lets in who has the shim's own user and group.
func ownPeer(conn *net.UnixConn) error {
	peer, err := sys.PeerCredentials(conn)
	if err != nil {
		return err
	}
	if int(peer.UID) != os.Geteuid() || int(peer.GID) != os.Getegid() {
		return fmt.Errorf("peer %d has user %d and group %d: %w", peer.PID, peer.UID, peer.GID, errdefs.ErrPermissionDenied)
	}
	return nil
}

// isClosed tells whether a channel that nothing is sent on is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// farewell lets attached clients read the end of what they are attached to.
func (s *Shim) farewell() {
	if s.clients.Load() == 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.attached.Wait()
	}()
	within(lastWords, done)
}
