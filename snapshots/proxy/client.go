package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	api "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	"github.com/berthd/berth/snapshots"
)

const (
	// DefaultTimeout is how long one call may take where Config has no other. A
	// snapshotter may fetch a layer's index from a registry meanwhile.
	DefaultTimeout = 2 * time.Minute
	// maxMessage is how large one message may be, in bytes.
	maxMessage = 16 << 20
	// maxCalls is how many calls may be under way; more wait for their turn.
	maxCalls = 64
	// connectTimeout is how long it may take to connect to a socket.
	connectTimeout = 2 * time.Second
	// idleTimeout is after how long without a call the connection is given up.
	idleTimeout = time.Minute
	// slack is by how much two clocks of one deadline may differ.
	slack = 10 * time.Millisecond

	namespaceHeader = "containerd-namespace"
)

// Config describes a snapshotter. Name and Address are required.
type Config struct {
	Name         string
	Address      string        // path of its socket
	Capabilities []string      // what it can, as introspection reports it
	Timeout      time.Duration // of one call; 0: DefaultTimeout
}

// Client is a snapshotter outside of the daemon. It implements snapshots.Remote.
type Client struct {
	config Config
	conn   *grpc.ClientConn
	api    snapshotsgrpc.SnapshotsClient
	calls  chan struct{} // has room for maxCalls
}

var _ snapshots.Remote = (*Client)(nil)

// Open makes a client. It does not connect: the snapshotter need not be there.
func Open(c Config) (*Client, error) {
	if c.Name == "" || !filepath.IsAbs(c.Address) {
		return nil, fmt.Errorf("snapshotter %q at %q: it needs a name and the absolute path of its socket: %w", c.Name, c.Address, errdefs.ErrInvalidArgument)
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Address)
	}
	conn, err := grpc.NewClient("passthrough:///"+c.Name,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial),
		// What comes back is met within a second; what nobody calls is let alone.
		// (ResetConnectBackoff would be sooner, but is not safe beside a connect.)
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("snapshotter %q at %q: %w", c.Name, c.Address, err)
	}
	return &Client{config: c, conn: conn, api: snapshotsgrpc.NewSnapshotsClient(conn), calls: make(chan struct{}, maxCalls)}, nil
}

// Close ends the connection, and with it the calls that are under way.
func (c *Client) Close() error { return c.conn.Close() }

// Address is the path of the socket.
func (c *Client) Address() string { return c.config.Address }

// Capabilities implements snapshots.Remote.
func (c *Client) Capabilities() []string { return slices.Clone(c.config.Capabilities) }

// In implements snapshots.Remote.
func (c *Client) In(namespace string) snapshots.Snapshotter { return scoped{c, namespace} }

// Cleanup implements snapshots.Remote.
func (c *Client) Cleanup(ctx context.Context) error {
	return scoped{c, ""}.call(ctx, "cleanup", func(ctx context.Context, wait grpc.CallOption) error {
		_, err := c.api.Cleanup(ctx, &api.CleanupRequest{Snapshotter: c.config.Name}, wait)
		return err
	})
}

// Ping tells whether somebody listens: Unavailable.
func (c *Client) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.config.Address)
	if err != nil {
		return fmt.Errorf("snapshotter %q can't be reached, see whether its program runs: %w: %w", c.config.Name, err, errdefs.ErrUnavailable)
	}
	return conn.Close()
}

// connect sees to it that a call does not wait for a program that is not there,
// nor fail on account of one that was not there a while ago: it tells whether
// the call is to wait for the connection.
func (c *Client) connect(ctx context.Context) (wait grpc.CallOption, err error) {
	if c.conn.GetState() == connectivity.Ready {
		return grpc.WaitForReady(false), nil
	}
	if err := c.Ping(ctx); err != nil {
		return nil, err
	}
	return grpc.WaitForReady(true), nil
}

// call makes one call, within its bounds, and says what it was about.
func (s scoped) call(ctx context.Context, what string, do func(ctx context.Context, wait grpc.CallOption) error) error {
	c := s.client
	bounded, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-bounded.Done():
		return s.failed(ctx, what, context.DeadlineExceeded)
	}
	wait, err := c.connect(bounded)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := do(s.headers(bounded), wait); err != nil {
		return s.failed(ctx, what, err)
	}
	return nil
}

// headers names the namespace, unless who called the daemon has named it.
func (s scoped) headers(ctx context.Context) context.Context {
	given, _ := metadata.FromOutgoingContext(ctx)
	if s.namespace == "" || len(given.Get(namespaceHeader)) > 0 {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, namespaceHeader, s.namespace)
}

// failed says what a failure means: of what kind it is, and that a snapshotter
// which did not answer in time is not there for now. ctx is the caller's.
func (s scoped) failed(ctx context.Context, what string, err error) error {
	c := s.client
	if ctx.Err() != nil {
		return fmt.Errorf("snapshotter %q: %s: %w", c.config.Name, what, context.Cause(ctx))
	}
	native := err
	if _, ok := status.FromError(err); ok {
		native = errgrpc.ToNative(err)
	}
	if errors.Is(native, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(native) {
		// gRPC may see that a caller's time is up before its context does.
		if limit, ok := ctx.Deadline(); ok && time.Until(limit) < slack {
			return fmt.Errorf("snapshotter %q: %s: %w", c.config.Name, what, context.DeadlineExceeded)
		}
		return fmt.Errorf("snapshotter %q: %s: no answer within %s: %w", c.config.Name, what, c.config.Timeout, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("snapshotter %q: %s: %w", c.config.Name, what, native)
}
