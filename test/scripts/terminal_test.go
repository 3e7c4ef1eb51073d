package scripts

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdTerminal runs a program at a terminal of 80 columns and 24 rows. The lines
// of FILE are
//
//	expect REGEXP   wait until what came since the last match matches
//	send TEXT       type a text, in Go's syntax of quoted strings
//	resize C R      make the terminal C columns wide and R rows high
//	until REGEXP PROGRAM [ARG...]
//	daemon start|kill|stop
//	                the commands of scripts, while the program runs
//
// What appeared on the terminal becomes the standard output.
func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) < 3, "terminal N FILE PROGRAM [ARG...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	program, err := exec.LookPath(args[2])
	if err != nil {
		program = programs.Path(args[2])
	}
	cmd := exec.Command(program, args[3:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 24})
	ts.Check(err)
	defer master.Close()
	s := &screen{}
	s.changed.L = &s.mu
	read := make(chan struct{})
	go func() {
		defer close(read)
		s.follow(master)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	failure := s.play(ts, master, ts.ReadFile(args[1]))
	select {
	case err = <-ended:
	case <-time.After(patience):
		failure = fmt.Errorf("the program goes on %v after the end of the session", patience)
		cmd.Process.Kill()
		err = <-ended
	}
	<-read
	fmt.Fprint(ts.Stdout(), s.text())
	if failure != nil {
		ts.Fatalf("%v; the terminal shows:\n%s", failure, s.text())
	}
	if got := statusOf(ts, err); got != want {
		ts.Fatalf("exit status %d, want %d; the terminal shows:\n%s", got, want, s.text())
	}
}

// screen is what has appeared on a terminal.
type screen struct {
	// mu guards what follows.
	mu      sync.Mutex
	changed sync.Cond
	all     []byte
	seen    int // how much of it has been matched
	closed  bool
}

// follow reads what appears until the last program has gone.
func (s *screen) follow(master *os.File) {
	buffer := make([]byte, 4096)
	for {
		n, err := master.Read(buffer)
		s.mu.Lock()
		s.all = append(s.all, buffer[:n]...)
		s.closed = err != nil
		s.changed.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.all)
}

// play does what the lines of a session say.
func (s *screen) play(ts *testscript.TestScript, master *os.File, session string) error {
	lines := bufio.NewScanner(strings.NewReader(session))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		word, rest, _ := strings.Cut(line, " ")
		var err error
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case word == "expect":
			err = s.expect(rest)
		case word == "send":
			var text string
			if text, err = strconv.Unquote(rest); err == nil {
				_, err = io.WriteString(master, text)
			}
		case word == "resize":
			size := &pty.Winsize{}
			if _, err = fmt.Sscan(rest, &size.Cols, &size.Rows); err == nil {
				err = pty.Setsize(master, size)
			}
		case word == "until":
			cmdUntil(ts, false, strings.Fields(rest))
		case word == "daemon":
			cmdDaemon(ts, false, strings.Fields(rest))
		default:
			err = fmt.Errorf("unknown word %q", word)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return lines.Err()
}

// expect waits until a pattern appears after what was matched before.
func (s *screen) expect(pattern string) error {
	want, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	timer := time.AfterFunc(patience, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closed = true
		s.changed.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if at := want.FindIndex(s.all[s.seen:]); at != nil {
			s.seen += at[1]
			return nil
		}
		if s.closed {
			return fmt.Errorf("did not appear within %v", patience)
		}
		s.changed.Wait()
	}
}
