package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Daemon is one berthd with directories of its own. It is not safe for
// concurrent use.
type Daemon struct {
	Programs *Programs
	Dir      string   // holds everything below
	Root     string   // --root
	State    string   // --state
	Address  string   // --address
	Args     []string // further arguments
	Env      []string // further environment, as KEY=VALUE; the next Start takes it

	config []string // arguments
	log    *os.File
	cmd    *exec.Cmd
}

// Race is the environment variable that programs built with the race detector
// are run with: they go on after a report, and don't linger at their end.
const Race = "GORACE=halt_on_error=0 atexit_sleep_ms=0"

// startTimeout bounds how long a daemon may take until it serves. The race
// detector and a busy machine make it slow.
const startTimeout = 30 * time.Second

// stopTimeout bounds how long a daemon may take to end after SIGTERM.
const stopTimeout = 30 * time.Second

// New prepares a daemon in a new directory with a short path, as socket paths
// are limited. Start starts it.
func New(p *Programs) (*Daemon, error) {
	dir, err := os.MkdirTemp("/tmp", "berth-t-")
	if err == nil {
		err = os.Chmod(dir, 0o711) // containers with users of their own pass through
	}
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Programs: p,
		Dir:      dir,
		Root:     filepath.Join(dir, "root"),
		State:    filepath.Join(dir, "state"),
		Address:  filepath.Join(dir, "berth.sock"),
	}
	if d.log, err = os.Create(filepath.Join(dir, "daemon.log")); err != nil {
		return nil, err
	}
	// The OCI runtime that the tests are to run with; see test/vm/suites.
	if binary := os.Getenv("BERTH_OCI_BINARY"); binary != "" {
		file := filepath.Join(dir, "berth.toml")
		d.config = []string{"--config", file}
		err = os.WriteFile(file, fmt.Appendf(nil, "[runtime]\nbinary = %q\n", binary), 0o600)
	}
	return d, err
}

// Start starts the daemon and returns when it serves.
func (d *Daemon) Start() error {
	if d.cmd != nil {
		return errors.New("the daemon runs already")
	}
	args := append([]string{"--root", d.Root, "--state", d.State, "--address", d.Address, "--log-level", "debug"}, append(d.config, d.Args...)...)
	cmd := exec.Command(d.Programs.Path("berthd"), args...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Programs that the daemon looks for, its shim among them, lie beside it.
	cmd.Env = append(append(os.Environ(), Race), d.Env...)
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd = cmd
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := d.ready(ctx); err != nil {
		return errors.Join(fmt.Errorf("berthd does not serve: %w; its log:\n%s", err, d.Log()), d.Kill())
	}
	return nil
}

// ready asks the health service until it answers.
func (d *Daemon) ready(ctx context.Context) error {
	conn, err := d.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

// Dial makes a gRPC connection to the daemon. It may be made before the daemon
// runs, and reconnects quickly.
func (d *Daemon) Dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+d.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			for {
				conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
				if err == nil || ctx.Err() != nil {
					return conn, err
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		}))
}

// PID is the daemon's process id, 0 while it does not run.
func (d *Daemon) PID() int {
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Kill kills the daemon with SIGKILL, as a crash would.
func (d *Daemon) Kill() error {
	if d.cmd == nil {
		return nil
	}
	err := d.cmd.Process.Kill()
	d.cmd.Wait()
	d.cmd = nil
	return err
}

// Stop ends the daemon with SIGTERM and waits for it. It is an error if it has
// to be killed, ends with another status than 0, or wrote a race report.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return d.races()
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-time.After(stopTimeout):
		err = errors.Join(errors.New("still there after SIGTERM, killed"), d.cmd.Process.Kill())
		<-done
	}
	d.cmd = nil
	if err != nil {
		err = fmt.Errorf("stop berthd: %w; its log:\n%s", err, d.Log())
	}
	return errors.Join(err, d.races())
}

// races tells whether the race detector found something, or the daemon died of
// a panic.
func (d *Daemon) races() error {
	log := d.Log()
	for _, sign := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: ", "panic recovered"} {
		if at := strings.Index(log, sign); at >= 0 {
			return fmt.Errorf("in berthd's log:\n%s", log[max(0, at-200):min(len(log), at+6000)])
		}
	}
	return nil
}

// Log is what the daemon has written so far.
func (d *Daemon) Log() string {
	data, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(bytes.ToValidUTF8(data, []byte("?")))
}

// Close ends the daemon, looks for what it left, and removes its directory,
// unless something is mounted below it still.
func (d *Daemon) Close() error {
	err := errors.Join(d.Stop(), d.log.Close())
	left := d.Left()
	if left != nil {
		err = errors.Join(err, left, d.clear())
	}
	return errors.Join(err, os.RemoveAll(d.Dir))
}
