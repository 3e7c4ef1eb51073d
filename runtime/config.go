package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/sys"
)

// Config is what Open needs. Root, State and Shim are required; every other
// field works when it is zero.
type Config struct {
	Root  string // what outlives the machine's power, such as /var/lib/berth
	State string // what lives as long as the boot, such as /run/berth

	Address      string // the daemon's gRPC socket, told to shims
	TTRPCAddress string // the daemon's ttrpc socket, where shims forward events to
	Shim         string // path of the berth-shim binary
	// Daemon is the daemon's own binary, whose "publish" a foreign shim may run.
	// Default: the binary of this process.
	Daemon string

	// GRPC makes the client of a foreign shim that speaks gRPC from a connection to
	// it, which the client closes. Without it such shims are refused.
	GRPC func(conn net.Conn) (ShimClient, error)

	// Publish takes an event of the daemon's own: the exit and the delete of a
	// task whose shim has died.
	Publish func(ctx context.Context, namespace, topic string, event proto.Message)
	// Forward takes an event as a shim sent it. An error makes the shim send it
	// again.
	Forward func(ctx context.Context, e *types.Envelope) error

	// Rootfs mounts what shims can't; nil: they are given all.
	Rootfs Rootfs

	// Reap has the orphans reaped that the kernel gives to this process, which is
	// a subreaper or the first of a pid namespace.
	Reap bool
	// Watch is how often all tasks, their processes and what they leave are
	// compared: every 30 seconds.
	Watch time.Duration

	Log       *slog.Logger
	Deadlines Deadlines

	Now    func() time.Time       // the clock of records that the daemon writes
	BootID func() (string, error) // tells this boot from every other
}

// Deadlines bounds each call to something outside the daemon. A zero field
// means its default.
type Deadlines struct {
	Create     time.Duration // shim start, rootfs mounts and the OCI runtime's create: 2 minutes
	Start      time.Duration // start of init or an exec: 1 minute
	Checkpoint time.Duration // a dump, and a start that restores one: 10 minutes
	Delete     time.Duration // the shim's Delete, output drained: 1 minute
	Control    time.Duration // pause, resume, update, exec, resize, closing of stdin, pids: 10 seconds
	Kill       time.Duration // 10 seconds
	State      time.Duration // state and statistics: 2 seconds
	Connect    time.Duration // to a shim that is already there, and its first answer: 5 seconds
	Shutdown   time.Duration // until a shim without containers has left: 5 seconds
	ShimDelete time.Duration // the run of "berth-shim delete" for a dead shim: 1 minute
	ShimStart  time.Duration // the start of a foreign shim, and the connection to it: 1 minute each
	// Events is how long a living shim may take to deliver the exit event of a
	// process that ended while the daemon was away: 10 seconds. Then the daemon
	// publishes it itself.
	Events time.Duration
	// Retry is the first pause before an unanswered shim is tried again: 500
	// milliseconds. It doubles up to one minute.
	Retry time.Duration
}

const maxRetry = time.Minute

// socketMax is how long a shim's socket path may be: sun_path has 108 bytes.
const socketMax = 106

func (c *Config) setDefaults() error {
	for _, required := range []struct{ name, value string }{
		{"Root", c.Root}, {"State", c.State}, {"Shim", c.Shim},
	} {
		if required.value == "" {
			return fmt.Errorf("runtime: %s is not set", required.name)
		}
		if !filepath.IsAbs(required.value) {
			return fmt.Errorf("runtime: %s is not an absolute path: %q", required.name, required.value)
		}
	}
	if n := len(socketPath(c.State, "x", "x")); n > socketMax {
		return fmt.Errorf("runtime: state directory %q is too long: shim sockets in it need %d bytes of %d", c.State, n, socketMax)
	}
	if c.Publish == nil {
		c.Publish = func(context.Context, string, string, proto.Message) {}
	}
	if c.Forward == nil {
		c.Forward = func(context.Context, *types.Envelope) error { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Watch == 0 {
		c.Watch = 30 * time.Second
	}
	if c.Daemon == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
		c.Daemon = self
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.BootID == nil {
		c.BootID = sys.BootID
	}
	c.Deadlines.setDefaults()
	return nil
}

func (d *Deadlines) setDefaults() {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&d.Create, 2 * time.Minute},
		{&d.Start, time.Minute},
		{&d.Checkpoint, 10 * time.Minute},
		{&d.Delete, time.Minute},
		{&d.Control, 10 * time.Second},
		{&d.Kill, 10 * time.Second},
		{&d.State, 2 * time.Second},
		{&d.Connect, 5 * time.Second},
		{&d.Shutdown, 5 * time.Second},
		{&d.ShimDelete, time.Minute},
		{&d.ShimStart, time.Minute},
		{&d.Events, 10 * time.Second},
		{&d.Retry, 500 * time.Millisecond},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
}
