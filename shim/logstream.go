package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/attach"
)

// stream says which output stream it is.
type stream byte

const (
	outStream = stream(attach.Stdout)
	errStream = stream(attach.Stderr)
)

var streamNames = map[stream]string{outStream: "stdout", errStream: "stderr"}

// openLog opens the log that an address names.
func (s *streams) openLog(to target) (logOptions, error) {
	o, err := to.logOptions()
	if err == nil && o.input && s.paths.stdin != "" {
		err = fmt.Errorf("stdio %q: an input for those who attach, and one at %q: %w", to.text, s.paths.stdin, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		s.logFile, err = openLog(to.path, o, s.log)
	}
	return o, err
}

// openLogs lets both output streams go to a log that this process writes.
func (s *streams) openLogs(to target) error {
	o, err := s.openLog(to)
	if err != nil {
		return err
	}
	if o.input {
		child, ours, err := pipe("stdin", s.owner, true)
		if err != nil {
			return err
		}
		s.child.In, s.input = child, &input{file: ours}
	}
	for kind, end := range map[stream]**os.File{outStream: &s.child.Out, errStream: &s.child.Err} {
		child, ours, err := pipe(to.path, s.owner, false)
		if err != nil {
			return err
		}
		*end = child
		if err := s.addLog(ours, kind); err != nil {
			return err
		}
	}
	return nil
}

// logTerminal lets what a terminal shows go to a log.
func (s *streams) logTerminal(master *os.File, to target) error {
	o, err := s.openLog(to)
	if err != nil {
		return errors.Join(err, master.Close())
	}
	if err := s.addLog(master, outStream); err != nil || !o.input {
		return err
	}
	return s.addInput(s.console.master)
}

// addLog adds the pump of a stream to the log.
func (s *streams) addLog(src *os.File, kind stream) error {
	p, err := s.addOutput(src, nil)
	p.stream = kind
	p.log = &formatter{file: s.logFile, stream: streamNames[kind], now: time.Now}
	s.logFile.use()
	return err
}

// addInput lets those who attach write to a terminal.
func (s *streams) addInput(master *os.File) error {
	file, err := duplicate(master)
	if err == nil {
		s.input = &input{file: file}
	}
	return err
}

// input is where the input of those who attach goes. One has it at a time.
type input struct {
	// mu guards what follows. It is not held while something is written.
	mu    sync.Mutex
	file  *os.File // nil once it is closed
	taken bool
}

// claim takes the input.
func (i *input) claim() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.file == nil:
		return fmt.Errorf("its input has been closed: %w", errdefs.ErrFailedPrecondition)
	case i.taken:
		return fmt.Errorf("another client that is attached has its input: %w", errdefs.ErrFailedPrecondition)
	}
	i.taken = true
	return nil
}

// release gives the input back.
func (i *input) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.taken = false
}

// close ends the input. Twice is harmless.
func (i *input) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.file != nil {
		_ = i.file.Close() // what was written is in the pipe
		i.file = nil
	}
}

// inputLook is how often a write that waits for its reader looks whether it
// should go on.
const inputLook = time.Second

// write writes data for as long as wanted says so.
func (i *input) write(data []byte, wanted func() bool) error {
	i.mu.Lock()
	file := i.file
	i.mu.Unlock()
	if file == nil {
		return os.ErrClosed
	}
	for len(data) > 0 {
		if err := file.SetWriteDeadline(time.Now().Add(inputLook)); err != nil {
			return err
		}
		n, err := file.Write(data)
		data = data[n:]
		if err != nil && !(errors.Is(err, os.ErrDeadlineExceeded) && wanted()) {
			return err
		}
	}
	return nil
}
