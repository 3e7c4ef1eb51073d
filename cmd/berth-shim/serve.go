package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/cgroup"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/shim"
)

// socketFD is where the daemon leaves the listening socket.
const socketFD = 3

// A machine has many shims, each of which has little to do: its heap is collected
// when it has grown to gcPercent of the runtime's 4 MiB, not before (see
// shim/trim.go). For the same reason the daemon starts it with GOMAXPROCS=1, which
// keeps the allocator's caches few; to lower it here would be too late.
const gcPercent = 40

// flushTime bounds how long a shim that leaves tries to deliver its last events.
const flushTime = 5 * time.Second

// serve supervises a container until Shutdown.
func serve(a arguments) error {
	debug.SetGCPercent(gcPercent)
	log, output := newLog(a.debug)
	if err := sys.SetSubreaper(); err != nil {
		return err
	}
	cgroup.UseMounts(os.Getenv(cgroup.MountsVariable))
	_ = os.Unsetenv(cgroup.MountsVariable) // it is for nobody whom the shim starts
	config := shim.Config{Namespace: a.namespace, Log: log, Claim: true}
	if a.pod {
		config.Home, config.Moved = a.bundle, func(bundle string) { a.move(bundle, log, output) }
	} else {
		claim, err := shim.Claim(a.bundle)
		if err != nil {
			return err
		}
		defer claim.Close()
		config.Claimed = a.bundle
	}
	listener, err := inherited()
	if err != nil {
		return err
	}
	ignoreSignals(log)
	if a.socket == "" {
		yieldToDaemon(log) // else start has seen to it, which is this one's parent
	} else {
		if err := output.follow(a.bundle); err != nil {
			log.Debug("the daemon reads no log", "error", err)
		}
	}

	publisher := &shim.Publisher{Address: os.Getenv("TTRPC_ADDRESS"), Namespace: a.namespace, Log: log}
	config.Publish, config.Hurry = publisher.Publish, publisher.Hurry
	s := shim.New(config)
	if publisher.Address == "" && a.publish != "" && a.address != "" {
		publisher.Send = s.PublishBy(a.publish, a.address)
	}
	server, err := shim.NewServer(s)
	if err != nil {
		return err
	}
	log.Debug("shim serves", "namespace", a.namespace, "id", a.id, "pid", os.Getpid())
	return server.Serve(context.Background(), listener, func() {
		if a.socket != "" {
			_ = os.Remove(a.socket) // before its last connection ends: then there may be a new one
		}
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		if err := publisher.Flush(ctx); err != nil {
			log.Warn("shim leaves with events that the daemon did not take", "error", err)
		}
	})
}

// move makes a bundle the home of a shim that serves several containers, when that
// of the one before goes.
func (a arguments) move(bundle string, log *slog.Logger, output *boundedFile) {
	err := errors.Join(os.Chdir(bundle), output.move(bundle))
	if a.socket != "" {
		err = errors.Join(err, output.follow(bundle))
	}
	if err != nil {
		log.Warn("shim not moved into another bundle", "bundle", bundle, "error", err)
	}
}

// inherited takes the listening socket that the daemon has left.
func inherited() (net.Listener, error) {
	f := os.NewFile(socketFD, "socket")
	defer f.Close()
	listener, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("file descriptor %d is no listening socket; berth-shim serve is run by berthd: %w", socketFD, err)
	}
	if u, ok := listener.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the daemon made it, and removes it
	}
	return listener, nil
}

// ignoreSignals keeps a signal that is meant for the daemon, or sent by mistake,
// from ending the one process that can tell how a container ends. They are
// caught, not ignored: an ignored signal stays so in the containers.
func ignoreSignals(log *slog.Logger) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	go func() {
		for sig := range signals {
			if sig != unix.SIGPIPE {
				log.Warn("signal ignored, the shim leaves when its container is deleted", "signal", sig.String())
			}
		}
	}()
}

// yieldToDaemon makes the kernel, when memory runs out, prefer to end this shim
// and its container to ending the daemon.
func yieldToDaemon(log *slog.Logger) {
	score, err := sys.OOMScore(os.Getppid())
	if err == nil {
		err = sys.SetOOMScore(os.Getpid(), score+1)
	}
	if err != nil {
		log.Warn("oom score not set", "error", err)
	}
}
