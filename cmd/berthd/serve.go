package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/internal/socket"
	"github.com/berthd/berth/internal/version"
)

// serve runs the daemon until a signal or ctx ends it.
func serve(ctx context.Context, f *flags, errOut io.Writer) error {
	began := time.Now()
	cfg, err := f.load()
	if err != nil {
		return err
	}
	level, err := config.ParseLevel(cfg.Log.Level)
	if err != nil {
		return err
	}
	log, dial := obs.Logger(errOut, level, cfg.Log.Format)
	// A reader of standard error that has gone must not take the daemon along.
	// The signal is caught and not ignored: containers would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	syscall.Umask(0o022) // whoever starts the daemon: modes below state matter
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the daemon at once
	defer stop()
	r := &reloader{flags: f, running: cfg, level: dial, log: log, signals: make(chan os.Signal, 4)}
	signal.Notify(r.signals, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(r.signals)

	p, err := build(ctx, cfg, log)
	if err != nil {
		return err
	}
	return errors.Join(p.run(ctx, r, errOut, began), p.close())
}

// limitMemory keeps the daemon small. What the environment says to Go's own
// variables counts more.
func limitMemory(m config.Memory) *keeper {
	if os.Getenv("GOMEMLIMIT") == "" && m.Limit > 0 {
		debug.SetMemoryLimit(m.Limit)
	}
	if os.Getenv("GOGC") != "" {
		return newKeeper(0)
	}
	return newKeeper(m.GCPercent)
}

// settleTime is how long a daemon that was told to stop takes events from the
// shims of tasks that were deleted just before. Mostly there are none.
const settleTime = time.Second

// run listens, tells whoever started the daemon that it is ready, and serves
// until ctx ends.
func (p *parts) run(ctx context.Context, r *reloader, errOut io.Writer, began time.Time) error {
	owner := socket.Options{Mode: 0o660, UID: p.cfg.GRPC.UID, GID: p.cfg.GRPC.GID}
	forGRPC, err := socket.Listen(p.cfg.GRPC.Address, owner)
	if err != nil {
		return err
	}
	forTTRPC, err := socket.Listen(p.cfg.TTRPCAddress(), socket.Options{Mode: 0o660, UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		return errors.Join(err, forGRPC.Close())
	}

	background, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var wg sync.WaitGroup
	for _, b := range p.background {
		wg.Go(func() {
			if err := b.run(background); err != nil && background.Err() == nil {
				p.log.Error("part of the daemon has ended", "part", b.name, "error", err)
			}
		})
	}
	wg.Go(func() { r.watch(background, errOut) })
	wg.Go(func() {
		debug.FreeOSMemory() // what the start needed
	})
	p.log.Info("berthd serves", "address", p.cfg.GRPC.Address, "pid", os.Getpid(), "version", version.String(), obs.Took(began))
	notify(p.log, daemon.SdNotifyReady)
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		defer stop()
		bound, cancel := context.WithTimeout(background, settleTime)
		defer cancel()
		p.settle(bound)
	})()
	err = p.server.Serve(serving, forGRPC, forTTRPC)
	notify(p.log, daemon.SdNotifyStopping)
	p.log.Info("berthd stops; containers run on")
	end()
	err = errors.Join(err, waitFor(&wg, p.cfg.Deadlines.Shutdown.Duration))
	if err != nil {
		// To close the stores would be to wait for what does not end. They are
		// whole at any moment: the end of the process does them no harm.
		p.closers = nil
	}
	return err
}

// waitFor waits for the daemon's own parts, but not for ever.
func waitFor(wg *sync.WaitGroup, bound time.Duration) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("parts of the daemon did not end within %s", bound)
	}
}

// notify tells systemd, if it is there, what the daemon is at.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd could not be told", "state", state, "error", err)
	}
}

// reloader acts on the signals that do not end the daemon, and takes over what
// can change while it runs.
type reloader struct {
	flags   *flags
	running config.Config
	level   *slog.LevelVar
	log     *slog.Logger
	signals chan os.Signal
}

// watch acts on signals until ctx ends.
func (r *reloader) watch(ctx context.Context, errOut io.Writer) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-r.signals:
			if s == syscall.SIGHUP {
				r.reload()
				continue
			}
			r.log.Info("stacks of all goroutines follow")
			fmt.Fprintf(errOut, "%s\n", obs.Stacks())
		}
	}
}

// reload reads the configuration again. A bad one changes nothing.
func (r *reloader) reload() {
	notify(r.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
	defer notify(r.log, daemon.SdNotifyReady)
	loaded, err := r.flags.load()
	if err != nil {
		r.log.Error("configuration not reloaded; the old one stays", "error", err)
		return
	}
	level, err := config.ParseLevel(loaded.Log.Level)
	if err != nil {
		r.log.Error("configuration not reloaded; the old one stays", "error", err)
		return
	}
	r.level.Set(level)
	r.log.Info("configuration reloaded", "log_level", level.String())
	if fixed := config.Fixed(r.running, loaded); len(fixed) > 0 {
		r.log.Warn("some changed keys need a restart of berthd", "keys", fixed)
	}
}
