package diff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/program"
)

const (
	// DefaultProcessorTimeout is how long a processor may take for one layer where
	// it has no other bound.
	DefaultProcessorTimeout = 10 * time.Minute
	// maxProcessors bounds how many programs one layer may go through.
	maxProcessors = 8
)

// Processor is a program that reads a stream of one media type and writes it as
// another: on standard input and output, with its payload, if there is one, on
// file descriptor 3. The media type alone chooses it.
type Processor struct {
	ID      string   // by which payloads are addressed
	Accepts []string // media types that it reads
	Returns string   // media type of what it writes
	Path    string
	Args    []string
	Env     []string      // beside PATH, all that it gets
	Timeout time.Duration // for one layer; 0: DefaultProcessorTimeout
}

// choose finds the first processor for a media type; nil if there is none.
func choose(all []Processor, mediaType string) *Processor {
	for i := range all {
		if slices.Contains(all[i].Accepts, mediaType) {
			return &all[i]
		}
	}
	return nil
}

// unwrap makes a tar of a layer: by processors as long as there is one for what
// the stream is, and then by what is built in.
func unwrap(ctx context.Context, r io.Reader, mediaType string, o Options) (*stream, error) {
	var begun []*process
	end := func() {
		for _, p := range slices.Backward(begun) {
			p.end()
		}
	}
	for mediaType != ociLayer {
		p := choose(o.Processors, mediaType)
		if p == nil {
			break
		}
		if len(begun) == maxProcessors {
			end()
			return nil, fmt.Errorf("more than %d stream processors, one after another, at media type %q: %w", maxProcessors, mediaType, errdefs.ErrFailedPrecondition)
		}
		next, err := begin(ctx, *p, r, o.Payloads[p.ID])
		if err != nil {
			end()
			return nil, err
		}
		begun, r, mediaType = append(begun, next), next, p.Returns
	}
	s, err := open(r, mediaType)
	if err != nil {
		end()
		return nil, err
	}
	decompress := s.close
	s.close = func() {
		decompress()
		end()
	}
	return s, nil
}

// process is a processor at work. It is the reader of what it writes.
type process struct {
	ctx    context.Context
	cancel context.CancelFunc
	id     string
	cmd    *exec.Cmd
	out    io.ReadCloser
	words  *program.Tail
	fed    sync.WaitGroup
	input  error // what reading its input has failed with; set before fed is done

	ended bool
	err   error // of the end; nil: all is well
}

// begin starts a processor on a stream.
func begin(ctx context.Context, p Processor, r io.Reader, payload []byte) (_ *process, err error) {
	fail := func(err error) (*process, error) { return nil, fmt.Errorf("stream processor %q: %w", p.ID, err) }
	limit := p.Timeout
	if limit <= 0 {
		limit = DefaultProcessorTimeout
	}
	if err := program.Trusted(p.Path); err != nil {
		return fail(fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition))
	}
	x := &process{id: p.ID}
	x.ctx, x.cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not end within %s: %w", limit, context.DeadlineExceeded))
	x.cmd, x.words = program.Command(x.ctx, p.Path, p.Args, p.Env)
	defer func() {
		if err != nil {
			x.cancel()
		}
	}()
	if payload != nil {
		f, err := inMemory(payload)
		if err != nil {
			return fail(err)
		}
		defer f.Close()
		x.cmd.ExtraFiles = []*os.File{f}
	}
	in, err := x.cmd.StdinPipe()
	if err != nil {
		return fail(err)
	}
	if x.out, err = x.cmd.StdoutPipe(); err != nil {
		return fail(err)
	}
	if err := x.cmd.Start(); err != nil {
		return fail(err)
	}
	x.fed.Go(func() {
		_, err := io.Copy(in, &source{r: r})
		if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) {
			x.input = err
			x.cancel()
		}
		_ = in.Close()
	})
	return x, nil
}

// inMemory makes a file of bytes that is nowhere on disk.
func inMemory(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("payload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "payload")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Read gives what the program writes. Its end is that of the stream only if it
// ends well.
func (x *process) Read(p []byte) (int, error) {
	if x.ended {
		return 0, x.over()
	}
	n, err := x.out.Read(p)
	if err == nil || n > 0 {
		return n, nil
	}
	x.finish()
	return 0, x.over()
}

func (x *process) over() error {
	if x.err != nil {
		return x.err
	}
	return io.EOF
}

// finish waits for a program that has written all, or was killed.
func (x *process) finish() {
	err := x.cmd.Wait()
	x.ended = true
	cause := x.ctx
	x.fed.Wait() // its pipe is closed: it ends with the Read that is under way
	switch {
	case x.input != nil:
		x.err = x.input
	case err != nil:
		x.err = fmt.Errorf("stream processor %q: %w", x.id, program.Failed(cause, x.cmd.Path, err, x.words))
	}
	x.cancel()
}

// end kills a program that still runs.
func (x *process) end() {
	x.cancel()
	if x.ended {
		return
	}
	_ = x.out.Close()
	x.finish()
}
