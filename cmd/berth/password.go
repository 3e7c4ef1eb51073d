package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
)

// maxSecret is how many bytes a name or a password may have.
const maxSecret = 64 << 10

// errNoSecret says that there is nobody to ask.
var errNoSecret = errors.New("there is no terminal to ask for the password at")

// passwordFromInput reads a password from standard input, all of it but the end of
// its line.
func (a *app) passwordFromInput() (string, error) {
	if client.IsTerminal(a.in) {
		return "", hint(errors.New("standard input is a terminal, not a password"), "pipe the password in, or leave --password-stdin out and berth asks")
	}
	data, err := io.ReadAll(io.LimitReader(a.in, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	if len(data) > maxSecret {
		return "", fmt.Errorf("the password has more than %d bytes", maxSecret)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if password == "" {
		return "", errors.New("the password on standard input is empty")
	}
	return password, nil
}

// ask asks for a line at the terminal.
func (a *app) ask(question string) (string, error) {
	if !client.IsTerminal(a.in) {
		return "", hint(errNoSecret, "give the name with --username, and the password with --password-stdin")
	}
	fmt.Fprint(a.err, question)
	return a.line()
}

// askPassword asks for a line at the terminal that is not shown there.
func (a *app) askPassword(question string) (_ string, err error) {
	if !client.IsTerminal(a.in) {
		return "", hint(errNoSecret, "pipe the password in, with --password-stdin")
	}
	fd := int(a.in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", os.NewSyscallError("ioctl", err)
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	// ^C while the terminal shows nothing must not leave it so.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	if err := unix.IoctlSetTermios(fd, unix.TCSETSW, &hidden); err != nil {
		return "", os.NewSyscallError("ioctl", err)
	}
	restore := func() error {
		fmt.Fprintln(a.err)
		return os.NewSyscallError("ioctl", unix.IoctlSetTermios(fd, unix.TCSETSW, before))
	}
	fmt.Fprint(a.err, question)
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := a.line()
		answers <- answer{text, err}
	}()
	select {
	case got := <-answers:
		return got.text, errors.Join(got.err, restore())
	case <-signals:
		return "", errors.Join(errInterrupted, restore())
	}
}

// line reads a line of standard input.
func (a *app) line() (string, error) {
	text, err := bufio.NewReader(io.LimitReader(a.in, maxSecret)).ReadString('\n')
	text = strings.TrimRight(text, "\r\n")
	if text == "" {
		if err == nil || errors.Is(err, io.EOF) {
			err = errors.New("nothing was typed")
		}
		return "", err
	}
	return text, nil
}
