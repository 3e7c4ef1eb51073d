package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/berthd/berth/internal/names"
)

// DefaultAddress is where the daemon listens unless it is told otherwise.
const DefaultAddress = "/run/berth/berth.sock"

// DefaultNamespace is the namespace of a client that names none.
const DefaultNamespace = "default"

// maxMessage bounds a message in both directions, in bytes; the daemon's bound
// is the same.
const maxMessage = 16 << 20

// dialTimeout is the default of Options.Timeout.
const dialTimeout = 5 * time.Second

// maxReconnect is the longest pause between attempts to reach a daemon that
// went away.
const maxReconnect = time.Second

// restartTime is how long a daemon may be away while it is started again: a
// socket that nobody listens on is one that a daemon has left.
const (
	restartTime  = time.Second
	restartPause = 20 * time.Millisecond
)

// Options says how a client behaves. The zero value is ready for use.
type Options struct {
	Namespace string        // default: DefaultNamespace
	Timeout   time.Duration // for the first connection; default: 5 s
	// FIFODir is where directories for a process's streams are made; default:
	// "fifo" beside the daemon's socket.
	FIFODir string
	// Away is called when a wait for a process loses the daemon. The process
	// runs on, and so does the wait. Default: nothing is called.
	Away func(error)
}

// Client speaks to one daemon within one namespace. It is safe for concurrent
// use.
type Client struct {
	conn      *grpc.ClientConn
	calls     grpc.ClientConnInterface // conn with headers and errors mapped
	address   string
	namespace string
	fifoDir   string
	away      func(error)
}

// maxPath is the longest path of a unix socket, in bytes (unix(7)).
const maxPath = 107

// DialError says that nobody answers at an address.
type DialError struct {
	Address string // path of the socket
	Err     error
}

// Error gives address and cause.
func (e *DialError) Error() string {
	return fmt.Sprintf("connect to berthd at %s: %v", e.Address, e.Err)
}

// Unwrap gives the cause, such as fs.ErrNotExist, syscall.ECONNREFUSED or
// fs.ErrPermission.
func (e *DialError) Unwrap() error { return e.Err }

// Dial connects to the daemon at address, the path of its socket with or without
// "unix://" before it. It returns when the connection stands, or a *DialError. A
// socket on which nobody listens is tried for a second, as a restart of the daemon
// leaves one for as long as that takes.
// The connection is kept, and made again whenever the daemon is.
func Dial(ctx context.Context, address string, o Options) (*Client, error) {
	path := strings.TrimPrefix(address, "unix://")
	if path == "" {
		path = DefaultAddress
	}
	// Names of fifos are made from it, which others open from elsewhere.
	path, err := filepath.Abs(path)
	if err == nil && len(path) > maxPath {
		err = fmt.Errorf("the path is longer than the %d bytes that a socket's may have: %w", maxPath, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, &DialError{Address: path, Err: err}
	}
	c := &Client{address: path, namespace: o.Namespace, fifoDir: o.FIFODir, away: o.Away}
	if c.namespace == "" {
		c.namespace = DefaultNamespace
	}
	if err := names.Namespace(c.namespace); err != nil {
		return nil, err
	}
	if c.fifoDir == "" {
		c.fifoDir = filepath.Join(filepath.Dir(path), "fifo")
	}
	if c.away == nil {
		c.away = func(error) {}
	}
	if o.Timeout == 0 {
		o.Timeout = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if c.conn, err = connect(ctx, path); err != nil {
		return nil, &DialError{Address: path, Err: err}
	}
	c.calls = scoped{conn: c.conn, namespace: c.namespace}
	return c, nil
}

// connect makes a connection and waits until it stands.
func connect(ctx context.Context, path string) (*grpc.ClientConn, error) {
	if err := probe(ctx, path); err != nil {
		return nil, err
	}
	pace := backoff.DefaultConfig
	pace.BaseDelay, pace.MaxDelay = 50*time.Millisecond, maxReconnect
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pace, MinConnectTimeout: dialTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return nil, err
	}
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return nil, errors.Join(fmt.Errorf("something listens, but does not answer: %w", context.Cause(ctx)), conn.Close())
		}
	}
	return conn, nil
}

// probe finds out whether somebody listens, for an error to tell apart: those of
// a connection that gRPC makes are texts. It waits for a daemon that is being
// started again.
func probe(ctx context.Context, path string) error {
	deadline := time.Now().Add(restartTime)
	var refused error // somebody has listened there
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			refused = err
		}
		if refused == nil {
			return plain(err)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return plain(refused)
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartPause):
		}
	}
}

// plain takes from an error of a dial what its address and "connect" say again.
func plain(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// Close ends the connection, and every call that is in flight on it. Clients
// made by In and Leased share the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Address is the path of the daemon's socket.
func (c *Client) Address() string { return c.address }

// Namespace is the namespace of the client's calls.
func (c *Client) Namespace() string { return c.namespace }

// In gives the same client within another namespace.
func (c *Client) In(namespace string) *Client {
	other := *c
	other.namespace = namespace
	other.calls = scoped{conn: c.conn, namespace: namespace}
	return &other
}

// Leased gives the same client under a lease: what its calls make belongs to the
// lease and stays until the lease ends, whatever refers to it.
func (c *Client) Leased(lease string) *Client {
	other := *c
	other.calls = scoped{conn: c.conn, namespace: c.namespace, lease: lease}
	return &other
}
