package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// copyBuffer is how much is read of a stream at once, in bytes: half of what a
// pipe holds.
const copyBuffer = 32 << 10

// Streams are the ends of a process's streams on the client's side; nil means
// that the process has none.
type Streams struct {
	// In is read to its end, which then ends the process's input too. A Read
	// that blocks beyond Stdio.Close is left behind.
	In  io.Reader
	Out io.Writer
	Err io.Writer // not with a terminal: that has one output
	// Failed is called when Out or Err can't be written. The process's output
	// is still read then, and thrown away, so that it does not block. May be
	// nil.
	Failed func(error)
}

// Stdio joins Streams with the fifos that a shim opens. It lies in a directory
// of its own, which is removed by Close.
type Stdio struct {
	dir     string
	streams Streams

	stdin, stdout, stderr *os.File // nil: no such stream

	outputs sync.WaitGroup // the copies of stdout and stderr
	drained chan struct{}  // closed when they have ended
	fed     sync.Once
	closed  sync.Once
}

// NewStdio makes the fifos of a process, opens them and starts to copy its
// output. id names the files: the id of the container or of the exec.
func (c *Client) NewStdio(id string, streams Streams) (*Stdio, error) {
	if err := os.MkdirAll(c.fifoDir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for fifos: %w", err)
	}
	dir, err := os.MkdirTemp(c.fifoDir, "")
	if err != nil {
		return nil, fmt.Errorf("make directory for fifos: %w", err)
	}
	s := &Stdio{dir: dir, streams: streams, drained: make(chan struct{})}
	if err := s.open(id); err != nil {
		return nil, errors.Join(err, s.closeFiles(), os.RemoveAll(dir))
	}
	for _, output := range []struct {
		from *os.File
		to   io.Writer
	}{{s.stdout, streams.Out}, {s.stderr, streams.Err}} {
		if output.from != nil {
			s.outputs.Go(func() { s.copyOut(output.to, output.from) })
		}
	}
	go func() {
		s.outputs.Wait()
		close(s.drained)
	}()
	return s, nil
}

// open makes and opens the fifos. None of the opens blocks: the outputs are
// opened non-blocking, and the input for reading too, as an open for writing
// alone fails while there is no reader.
func (s *Stdio) open(id string) (err error) {
	if s.streams.In != nil {
		if s.stdin, err = openFIFO(filepath.Join(s.dir, id+"-stdin"), os.O_RDWR); err != nil {
			return err
		}
	}
	if s.streams.Out != nil {
		if s.stdout, err = openFIFO(filepath.Join(s.dir, id+"-stdout"), os.O_RDONLY); err != nil {
			return err
		}
	}
	if s.streams.Err != nil {
		s.stderr, err = openFIFO(filepath.Join(s.dir, id+"-stderr"), os.O_RDONLY)
	}
	return err
}

func openFIFO(path string, mode int) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o700); err != nil {
		return nil, fmt.Errorf("make fifo %s: %w", path, err)
	}
	return os.OpenFile(path, mode|unix.O_NONBLOCK, 0)
}

// paths are the names of the fifos, as the wire wants them.
func (s *Stdio) paths() (stdin, stdout, stderr string) {
	name := func(f *os.File) string {
		if f == nil {
			return ""
		}
		return f.Name()
	}
	return name(s.stdin), name(s.stdout), name(s.stderr)
}

// copyOut copies a process's output to its end.
func (s *Stdio) copyOut(to io.Writer, from *os.File) {
	if err := awaitWriter(from); err != nil {
		return // closed before there was any
	}
	buffer := make([]byte, copyBuffer)
	for {
		n, err := from.Read(buffer)
		if n > 0 && to != nil {
			if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
				to = nil
				if s.streams.Failed != nil {
					s.streams.Failed(writeErr)
				}
			}
		}
		if err != nil {
			return // the end, or Close
		}
	}
}

// awaitWriter waits until a fifo has been opened for writing and there is
// something to read, be it the end. To a read, a fifo that was never opened for
// writing looks like one at its end; to poll(2) it does not.
func awaitWriter(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
}

// feed starts to copy the input; at its end it calls ended. Only the first call
// does anything. It is made once the process runs: an end of input that is told
// before is lost.
func (s *Stdio) feed(ended func()) {
	if s.stdin == nil {
		return
	}
	s.fed.Do(func() {
		go func() {
			_, err := io.CopyBuffer(onlyWriter{s.stdin}, onlyReader{s.streams.In}, make([]byte, copyBuffer))
			if errors.Is(err, os.ErrClosed) {
				return
			}
			ended()
			s.stdin.Close()
		}()
	})
}

// onlyReader and onlyWriter hide shortcuts that io.CopyBuffer would take: a
// splice(2) can't be ended by closing the file.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// Drain waits until all output has been copied, which comes after the end of the
// process.
func (s *Stdio) Drain(ctx context.Context) error {
	select {
	case <-s.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of output: %w", context.Cause(ctx))
	}
}

// Close ends the copies, closes the fifos and removes them. A process that still
// runs is then detached: it goes on, and its output is kept for nobody, then
// dropped.
func (s *Stdio) Close() error {
	var err error
	s.closed.Do(func() {
		err = s.closeFiles()
		<-s.drained
		err = errors.Join(err, os.RemoveAll(s.dir))
	})
	return err
}

func (s *Stdio) closeFiles() error {
	var failed []error
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
