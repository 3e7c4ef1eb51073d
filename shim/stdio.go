package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
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

// streams are the standard streams of one process: the ends that the runtime
// gets, and the pumps between ours and the client's.
type streams struct {
	child   oci.Stdio
	in      *pump
	out     []*pump
	feed    *os.File   // keeps a client's stdin open for writing until CloseIO
	keep    []*os.File // keep a client's output fifos open for reading until Delete
	console *console   // with a terminal
	paths   streamPaths
	running bool
	log     *slog.Logger
}

// openStreams opens what the paths say. It doesn't wait for anybody at the
// other end of a fifo. With a terminal there are no pipes; attach has to be
// called once the runtime has sent the pty.
func openStreams(dir string, paths streamPaths, own owner, log *slog.Logger) (s *streams, err error) {
	s = &streams{paths: paths, log: log}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if paths.terminal {
		s.console, err = listenConsole(dir)
		return s, err
	}
	if paths.stdin != "" {
		if err := s.openStdin(own); err != nil {
			return s, err
		}
	}
	scheme, stdout, err := target(paths.stdout)
	if err != nil {
		return s, err
	}
	stderr := stdout
	if scheme == schemeFifo {
		if _, stderr, err = target(paths.stderr); err != nil {
			return s, err
		}
	}
	if s.child.Out, err = s.openOutput(scheme, stdout, own); err != nil {
		return s, err
	}
	s.child.Err, err = s.openOutput(scheme, stderr, own)
	return s, err
}

// The schemes of a stdout string; a plain path is a fifo's.
const (
	schemeFifo = "fifo"
	schemeFile = "file"
)

// target takes a stdio string apart. "" stays "".
func target(text string) (scheme, path string, err error) {
	if !strings.Contains(text, "://") {
		return schemeFifo, text, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", "", fmt.Errorf("stdio %q: %w", text, errdefs.ErrInvalidArgument)
	}
	switch {
	case u.Scheme != schemeFifo && u.Scheme != schemeFile:
		return "", "", fmt.Errorf("stdio %q: scheme %q is not supported, only fifo and file are: %w", text, u.Scheme, errdefs.ErrNotImplemented)
	case u.Host != "" || !filepath.IsAbs(u.Path):
		return "", "", fmt.Errorf("stdio %q: path is not absolute: %w", text, errdefs.ErrInvalidArgument)
	}
	return u.Scheme, u.Path, nil
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
func (s *streams) openStdin(own owner) error {
	src, err := s.openSource()
	if err != nil {
		return err
	}
	child, ours, err := pipe("stdin", own, true)
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
	_, path, err := target(s.paths.stdin)
	if err != nil {
		return nil, err
	}
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
func (s *streams) openOutput(scheme, path string, own owner) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	dst, err := s.openSink(scheme, path)
	if err != nil {
		return nil, err
	}
	child, ours, err := pipe(path, own, false)
	if err != nil {
		return nil, errors.Join(err, dst.Close())
	}
	return child, s.addOutput(ours, dst, false)
}

// addOutput adds the pump of an output stream.
func (s *streams) addOutput(src, dst *os.File, terminal bool) error {
	p, err := newPump(src, dst)
	p.terminal, p.output = terminal, true
	p.failed = func(err error) { s.log.Error("output lost", "path", dst.Name(), "error", err) }
	s.out = append(s.out, p)
	return err
}

// openSink opens what a client gave for an output. A fifo is opened for reading
// too: so it opens with nobody at the other end, a reader that departs breaks
// nothing, and what it did not read is there for the next one until Delete.
func (s *streams) openSink(scheme, path string) (*os.File, error) {
	flags := unix.O_NONBLOCK | os.O_WRONLY | os.O_APPEND
	if scheme == schemeFile {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		flags |= os.O_CREATE
	} else if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	} else if info.Mode()&os.ModeNamedPipe != 0 {
		keep, err := openEnd(path, unix.O_RDONLY)
		if err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		s.keep = append(s.keep, keep)
	}
	f, err := os.OpenFile(path, flags, 0o644)
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
	scheme, path, err := target(s.paths.stdout)
	if err != nil {
		return err
	}
	if path == "" { // a terminal that nobody reads would fill up and block
		path = os.DevNull
	}
	// Three files of one open description: each pump owns what it closes, and
	// the console keeps the master for its size.
	out, err := duplicate(master)
	if err != nil {
		return err
	}
	dst, err := s.openSink(scheme, path)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	if err := s.addOutput(out, dst, true); err != nil || s.paths.stdin == "" {
		return err
	}
	src, err := s.openSource()
	if err != nil {
		return err
	}
	in, err := duplicate(master)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	s.in, err = newPump(src, in)
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
	return all
}

// drain waits, within drainTime, for the output streams to end, and tells
// whether they did; then closes everything.
func (s *streams) drain() bool {
	until, all := time.Now().Add(drainTime), true
	if s.running {
		for _, p := range s.out {
			all = p.wait(until) && all
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
	}
	for _, f := range s.keep {
		_ = f.Close() // nothing was read from it
	}
	if s.console != nil {
		s.console.close()
	}
}
