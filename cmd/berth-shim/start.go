package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	api "github.com/berthd/berth/api/berth/shim/v1"
	"github.com/berthd/berth/api/berth/shim/v1/shimttrpc"
	"github.com/berthd/berth/api/runtime/bootstrap/v1"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// Bounds of start.
const (
	maxInput  = 16 << 20 // of what is read from standard input, and of a config.json
	dialTime  = 5 * time.Second
	lockTime  = 2 * time.Second // who has the lock waits for nobody
	lockLook  = time.Millisecond
	maxSocket = 107 // what fits into a sockaddr_un, with the final zero
)

// socketDir is where daemons that don't say otherwise expect sockets.
const socketDir = "/run/containerd/s"

// addressFile is where the daemon, and delete, find the address.
const addressFile = "address"

// start leaves a server for a container, or finds that of its group, and prints
// where it listens. It is how other daemons than berthd start a shim; the working
// directory is the bundle.
func start(a arguments) error {
	bundle, err := os.Getwd()
	if err != nil {
		return err
	}
	params, err := readParams(a.id)
	if err != nil {
		return err
	}
	group, err := groupOf(bundle, a.id)
	if err != nil {
		return err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = socketDir
	}
	path, err := a.socketPath(dir, group)
	if err != nil {
		return err
	}
	if err := a.listenOrJoin(bundle, dir, path); err != nil {
		return err
	}
	address := "unix://" + path
	if err := os.WriteFile(filepath.Join(bundle, addressFile), []byte(address), 0o600); err != nil {
		return err
	}
	output := []byte(address)
	if params != nil {
		if output, err = proto.Marshal(&bootstrap.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}); err != nil {
			return err
		}
	}
	_, err = os.Stdout.Write(output)
	return err
}

// readParams reads the BootstrapParams from standard input. Earlier daemons send
// the options of the runtime there, or nothing: then they are nil. The options
// come again with Create.
func readParams(id string) (*bootstrap.BootstrapParams, error) {
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if len(data) > maxInput {
		return nil, fmt.Errorf("standard input: more than %d bytes", maxInput)
	}
	var params bootstrap.BootstrapParams
	// Options would have the name of their type in place of the id.
	if proto.Unmarshal(data, &params) != nil || params.GetInstanceId() != id {
		return nil, nil
	}
	return &params, nil
}

// groupAnnotations name a group of containers that share a shim: the first that
// is there counts.
var groupAnnotations = []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}

// groupOf tells which group a bundle's container belongs to; without one it is a
// group of its own.
func groupOf(bundle, id string) (string, error) {
	f, err := os.Open(filepath.Join(bundle, record.ConfigFile))
	if errors.Is(err, fs.ErrNotExist) {
		return id, nil // a sandbox of its own kind
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	err = json.NewDecoder(io.LimitReader(f, maxInput)).Decode(&spec)
	if err != nil && !errors.Is(err, io.EOF) { // a sandbox may have an empty one
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, name := range groupAnnotations {
		if group := spec.Annotations[name]; group != "" {
			return group, nil
		}
	}
	return id, nil
}

// socketPath is where the shim of a group listens.
func (a arguments) socketPath(dir, group string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("socket directory %q is not an absolute path", dir)
	}
	sum := sha256.Sum256([]byte(filepath.Join(a.address, a.namespace, group)))
	path := filepath.Join(dir, hex.EncodeToString(sum[:]))
	if len(path) > maxSocket {
		return "", fmt.Errorf("socket directory %q is too long by %d bytes", dir, len(path)-maxSocket)
	}
	return path, nil
}

// listenOrJoin sees to it that somebody listens on path: the shim that does, or
// a new one. Of several that try at once one makes it.
func (a arguments) listenOrJoin(bundle, dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for deadline := time.Now().Add(dialTime); ; time.Sleep(lockLook) {
		err := a.join(path)
		if unheard(err) {
			var made bool
			if made, err = a.listen(bundle, path); made || err != nil {
				return err
			}
			continue
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, errLeaving) || time.Now().After(deadline) {
			return fmt.Errorf("the shim of the group does not answer: %w", err)
		}
	}
}

// unheard tells whether a connection failed because nobody listens.
func unheard(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// isHeard tells whether somebody listens on a socket at this moment.
func isHeard(path string) bool {
	conn, err := (&net.Dialer{Timeout: dialTime}).Dial("unix", path)
	if err == nil {
		_ = conn.Close() // nothing was said
	}
	return !unheard(err)
}

// errLeaving is of a shim that is about to end.
var errLeaving = errors.New("it is leaving")

// join tells the shim that listens on path, if there is one, of the container.
func (a arguments) join(path string) error {
	conn, err := (&net.Dialer{Timeout: dialTime}).Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	_, err = shimttrpc.NewGroupClient(client).Join(ctx, &api.JoinRequest{Id: a.id})
	switch code := status.Code(err); {
	case code == codes.Unimplemented: // a shim of another kind, which has to do
		return nil
	case code == codes.Unavailable, errors.Is(err, ttrpc.ErrClosed), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("%w: %w", errLeaving, err)
	}
	return err
}

// listen binds a socket, in place of one that nobody listens on, and leaves a
// server with it. It does not if somebody else was faster.
func (a arguments) listen(bundle, path string) (made bool, err error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	defer unlock()
	if isHeard(path) {
		return false, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return false, err
	}
	listener.SetUnlinkOnClose(false) // it is the server's
	defer listener.Close()
	if err = os.Chmod(path, 0o600); err == nil {
		err = a.leaveServer(bundle, path, listener)
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(path))
	}
	return true, nil
}

// lockDir keeps others from making and removing sockets in a directory.
func lockDir(dir string) (unlock func(), err error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), lock.Close())
	}
	return func() { _ = lock.Close() }, nil // only drops the lock
}

// flock waits for a lock, for at most lockTime.
func flock(f *os.File) error {
	for deadline := time.Now().Add(lockTime); ; time.Sleep(lockLook) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			return err
		}
	}
}

// leaveServer starts the server on a socket, in a session of its own.
func (a arguments) leaveServer(bundle, path string, listener *net.UnixListener) error {
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(bundle, record.ShimLogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{program, "serve", "-namespace", a.namespace, "-id", a.id, "-bundle", bundle, "-socket", path, "-pod"}
	if a.publish != "" {
		args = append(args, "-address", a.address, "-publish-binary", a.publish)
	}
	if a.debug {
		args = append(args, "-debug")
	}
	var p *os.Process
	err = sys.StartSmall(func() (err error) {
		p, err = os.StartProcess(self, args, &os.ProcAttr{
			Dir: bundle, Env: serverEnv(), Files: []*os.File{null, log, log, socket},
			Sys: &syscall.SysProcAttr{Setsid: true},
		})
		return err
	})
	if err != nil {
		return err
	}
	if score, err := sys.OOMScore(os.Getppid()); err == nil {
		_ = sys.SetOOMScore(p.Pid, score+1) // refused without CAP_SYS_RESOURCE, and nobody to tell
	}
	return p.Release()
}

// serverEnv is the environment of a server: what berthd gives it (see
// runtime/launch.go).
func serverEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		switch key, _, _ := strings.Cut(e, "="); key {
		case "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
			continue
		}
		env = append(env, e)
	}
	return append(env, "GOMAXPROCS=1")
}

// dropSocket removes the socket that a bundle names, if nobody listens on it: a
// shim that was killed could not.
func dropSocket(bundle string) error {
	data, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // berthd's, which removes its sockets itself
	}
	if err != nil {
		return err
	}
	path, ok := strings.CutPrefix(string(data), "unix://")
	if !ok || !filepath.IsAbs(path) {
		return nil
	}
	if listens(path) {
		return nil
	}
	unlock, err := lockDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	if isHeard(path) { // by now
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dyingTime is how long a connection has to last to be one to a live shim: the
// kernel closes the sockets of a process that was killed one after the other.
const dyingTime = 100 * time.Millisecond

// listens tells whether somebody listens on a socket and goes on to.
func listens(path string) bool {
	conn, err := (&net.Dialer{Timeout: dialTime}).Dial("unix", path)
	if err != nil {
		return !errors.Is(err, unix.ECONNREFUSED)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(dyingTime)); err != nil {
		return true
	}
	_, err = conn.Read(make([]byte, 1)) // a shim says nothing unasked
	return errors.Is(err, os.ErrDeadlineExceeded)
}
