package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/runtime/oci"
)

// Bounds of stdio.
const (
	settleTime = time.Second      // after an exit, for what the process wrote
	drainTime  = 10 * time.Second // at Delete, for the streams to end
)

// streamPaths are the stdio strings of a request, as the client sent them.
type streamPaths struct {
	terminal              bool
	stdin, stdout, stderr string
}

// owner is who the container's ends of the pipes belong to.
type owner struct{ uid, gid uint32 }

// place is the process that streams are of.
type place struct {
	shim      *Shim // that starts and reaps loggers
	container string
	dir       string
	owner     owner
	log       *slog.Logger
}

// streams are the standard streams of one process: the ends that the runtime
// gets, and the pumps between ours and the client's.
type streams struct {
	place
	child   oci.Stdio
	in      *pump
	out     []*pump
	feed    *os.File // keeps a client's stdin open for writing until CloseIO
	console *console // with a terminal
	logger  *logger  // with a binary:// address
	paths   streamPaths
	running bool

	// With a log or a terminal, taps give the output to whoever attaches, and
	// input, if there is one, is where theirs goes.
	taps    *taps
	input   *input
	logFile *logFile // with a log:// address
}

// openStreams opens what the paths say. It doesn't wait for anybody at the
// other end of a fifo. With a terminal there are no pipes; attach has to be
// called once the runtime has sent the pty.
func openStreams(at place, paths streamPaths) (s *streams, err error) {
	s = &streams{place: at, paths: paths}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	stdout, stderr, err := paths.outputs()
	if err != nil {
		return s, err
	}
	if paths.terminal || stdout.scheme == schemeLog {
		s.taps = &taps{}
	}
	if paths.terminal {
		s.console, err = listenConsole(at.dir)
		return s, err
	}
	if paths.stdin != "" {
		if err := s.openStdin(); err != nil {
			return s, err
		}
	}
	switch stdout.scheme {
	case schemeLog:
		return s, s.openLogs(stdout)
	case schemeBinary, schemeBinaryV2:
		return s, s.openLogger(stdout)
	}
	if s.child.Out, err = s.openOutput(stdout); err != nil {
		return s, err
	}
	s.child.Err, err = s.openOutput(stderr)
	return s, err
}

// pipe makes a pipe whose end for the container blocks, as programs expect, and
// whose other end is for the poller.
func pipe(name string, own owner, childReads bool) (child, ours *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe for %s: %w", name, err)
	}
	childFD, ourFD := fds[1], fds[0]
	if childReads {
		childFD, ourFD = fds[0], fds[1]
	}
	child = os.NewFile(uintptr(childFD), name)
	err = unix.SetNonblock(ourFD, true)
	ours = os.NewFile(uintptr(ourFD), name)
	if err == nil && own != (owner{}) {
		err = child.Chown(int(own.uid), int(own.gid))
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pipe for %s: %w", name, err), child.Close(), ours.Close())
	}
	return child, ours, nil
}

// openStdin opens a client's stdin and the pipe that the container reads.
func (s *streams) openStdin() error {
	src, err := s.openSource()
	if err != nil {
		return err
	}
	child, ours, err := pipe("stdin", s.owner, true)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	s.child.In = child
	s.in, err = newPump(src, ours)
	return err
}

// openSource opens a client's stdin to read, and if it is a fifo to write as
// well: a client that goes away is not the end of the input, CloseIO is.
func (s *streams) openSource() (*os.File, error) {
	from, err := parseTarget(s.paths.stdin)
	if err != nil {
		return nil, err
	}
	if from.scheme != schemeFifo && from.scheme != schemeFile {
		return nil, fmt.Errorf("stdin %q: an input comes from a path: %w", s.paths.stdin, errdefs.ErrInvalidArgument)
	}
	path := from.path
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("stdin: %w", err)
	}
	if !isPipe(src) {
		return src, nil
	}
	if s.feed, err = openEnd(path, unix.O_WRONLY); err != nil {
		return nil, errors.Join(fmt.Errorf("stdin: %w", err), src.Close())
	}
	return src, nil
}

// openOutput opens where one output stream goes, and returns the container's
// end of the pipe; nil for no stream.
func (s *streams) openOutput(to target) (*os.File, error) {
	if to.path == "" {
		return nil, nil
	}
	dst, err := openSink(to)
	if err != nil {
		return nil, err
	}
	child, ours, err := pipe(to.path, s.owner, false)
	if err != nil {
		return nil, errors.Join(err, dst.Close())
	}
	_, err = s.addOutput(ours, dst)
	return child, err
}

// addOutput adds the pump of an output stream; dst is nil for a log.
func (s *streams) addOutput(src, dst *os.File) (*pump, error) {
	p, err := newPump(src, dst)
	p.output, p.notes, p.dir = true, s.log, s.dir
	p.fifo = dst != nil && isPipe(dst)
	p.taps, p.stream = s.taps, outStream
	s.out = append(s.out, p)
	return p, err
}

// openSink opens what a client gave for an output. A fifo is opened for reading
// too, for a moment: so it opens with nobody at the other end.
func openSink(to target) (*os.File, error) {
	flags := unix.O_NONBLOCK | os.O_WRONLY | os.O_APPEND
	if to.scheme == schemeFile {
		if err := os.MkdirAll(filepath.Dir(to.path), 0o755); err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		flags |= os.O_CREATE
	} else if info, err := os.Stat(to.path); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	} else if info.Mode()&os.ModeNamedPipe != 0 {
		both, err := openEnd(to.path, unix.O_RDWR)
		if err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		defer both.Close()
	}
	f, err := os.OpenFile(to.path, flags, 0o644)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	return f, nil
}

// openEnd opens one end of a fifo only to have it open. The poller need not
// know of it.
func openEnd(path string, mode int) (*os.File, error) {
	fd, err := unix.Open(path, mode|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// attach gets the pty that the runtime has sent and puts it between the
// client's streams. Without a terminal there is nothing to do.
func (s *streams) attach() error {
	if s.console == nil {
		return nil
	}
	master, err := s.console.accept()
	if err != nil {
		return err
	}
	stdout, _, err := s.paths.outputs()
	if err != nil {
		return err
	}
	// Files of one open description: each pump owns what it closes, and the
	// console keeps the master for its size.
	out, err := duplicate(master)
	if err != nil {
		return err
	}
	if err := s.attachOutput(out, stdout); err != nil {
		return err
	}
	s.out[len(s.out)-1].terminal = true
	if s.paths.stdin == "" {
		return nil
	}
	src, err := s.openSource()
	if err != nil {
		return err
	}
	in, err := duplicate(master)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	if s.in, err = newPump(src, in); err != nil {
		return err
	}
	return s.addInput(master)
}

// attachOutput passes what a terminal shows on. One that nobody reads would fill
// up and block.
func (s *streams) attachOutput(master *os.File, to target) error {
	switch to.scheme {
	case schemeLog:
		return s.logTerminal(master, to)
	case schemeBinary, schemeBinaryV2:
		return s.loggerForTerminal(master, to)
	}
	if to.path == "" {
		to.path = os.DevNull
	}
	dst, err := openSink(to)
	if err != nil {
		return errors.Join(err, master.Close())
	}
	_, err = s.addOutput(master, dst)
	return err
}

// start closes the container's ends, which the container has by now, and lets
// the pumps run.
func (s *streams) start() {
	s.closeChild()
	s.running = true
	for _, p := range s.pumps() {
		go p.run()
	}
}

func (s *streams) pumps() []*pump {
	if s.in == nil {
		return s.out
	}
	return append([]*pump{s.in}, s.out...)
}

// socket is where the runtime sends the pty; "" without a terminal.
func (s *streams) socket() string {
	if s.console == nil {
		return ""
	}
	return s.console.path
}

func (s *streams) closeChild() {
	for _, f := range []*os.File{s.child.In, s.child.Out, s.child.Err} {
		if f != nil {
			_ = f.Close() // a pipe's end without data of its own
		}
	}
	s.child = oci.Stdio{}
}

// closeStdin lets the input end as soon as the client closes its end.
func (s *streams) closeStdin() {
	if s.input != nil && s.console == nil {
		s.input.close()
	}
	if s.feed != nil {
		_ = s.feed.Close() // nothing was written to it; a second time is harmless
	}
}

// settle passes on what the process had written when it ended, within
// settleTime, and tells whether it could.
func (s *streams) settle() bool {
	until, all := time.Now().Add(settleTime), true
	for _, p := range s.out {
		all = p.settle(until) && all
	}
	if s.logger != nil {
		all = s.logger.settle(until) && all
	}
	return all
}

// drain waits, within drainTime, for the output streams to end, and tells
// whether they did; then closes everything. What has no reader is not waited for.
func (s *streams) drain() bool {
	until, all := time.Now().Add(drainTime), true
	if s.running {
		for _, p := range s.out {
			all = p.drain(until) && all
		}
		if s.logger != nil {
			all = s.logger.drain(until) && all
		}
	}
	s.close()
	return all
}

// close closes everything and waits for the pumps. Twice is harmless.
func (s *streams) close() {
	s.closeChild()
	s.closeStdin()
	for _, p := range s.pumps() {
		p.close()
		if s.running {
			<-p.done
		}
		if p.keep != nil {
			_ = p.keep.Close() // what is in the fifo goes with its last end
		}
	}
	if s.logFile != nil && !s.running {
		s.logFile.abandon()
	}
	if s.logger != nil {
		s.logger.close()
	}
	if s.input != nil {
		s.input.close()
	}
	if s.console != nil {
		s.console.close()
	}
}
