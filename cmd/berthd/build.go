package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/containerd/platforms"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/gc"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/runtime"
	"github.com/berthd/berth/services"
)

// build makes the object graph. Read from top to bottom it is the architecture:
// what is made later stands on what was made before.
func build(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *parts, err error) {
	p := &parts{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()

	// One daemon for each root and each state.
	held, err := claim(cfg)
	if err != nil {
		return nil, err
	}
	p.opened(held)
	if err := extendPath(cfg.Root); err != nil {
		return nil, err
	}
	uuid, err := identity(cfg.Root)
	if err != nil {
		return nil, err
	}

	// Mechanisms: the journal, the blobs, the snapshot drivers.
	journal, err := events.Open(events.Options{Dir: filepath.Join(cfg.State, eventsDir), MaxBytes: cfg.Events.MaxBytes, Log: log})
	if err != nil {
		return nil, err
	}
	p.opened(journal)
	blobs, err := content.Open(filepath.Join(cfg.Root, contentDir))
	if err != nil {
		return nil, err
	}
	p.opened(blobs)
	drivers, err := openDrivers(cfg, log)
	if err != nil {
		return nil, err
	}
	p.opened(drivers)

	// Truth: what there is by name, and what runs.
	publish := publisher(journal, log)
	db, err := metadata.Open(ctx, metadata.Options{
		Path: filepath.Join(cfg.Root, database), Content: blobs, Drivers: drivers.usable(),
		Isolated: cfg.Sharing == config.Isolated, Publish: publish, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.opened(db)
	shim, err := shimBinary(cfg.Shim)
	if err != nil {
		return nil, err
	}
	tasks, err := runtime.Open(runtime.Config{
		Root: cfg.Root, State: cfg.State, Address: cfg.GRPC.Address, TTRPCAddress: cfg.TTRPCAddress(),
		Shim: shim, Publish: publish, Forward: journal.Forward, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.opened(tasks)

	// Engines: collection, images.
	collector := &gc.Scheduler{Store: db, Log: log}
	store := &images.Store{DB: db, Platform: platforms.DefaultSpec(), Snapshotter: drivers.standard(cfg.Snapshotter), Log: log}
	output, err := logs.Open(filepath.Join(cfg.Root, logsDir))
	if err != nil {
		return nil, err
	}
	p.opened(output)
	if err := output.Sweep(ctx, services.Recorded(db)); err != nil {
		log.Warn("logs of containers that are gone stay", "error", err)
	}

	// Surface: the services.
	metrics, err := p.endpoints(tasks)
	if err != nil {
		return nil, err
	}
	runtimes := &features{binary: cfg.Runtime.Binary, deadline: cfg.Deadlines.Features.Duration}
	p.server, err = services.New(services.Config{
		DB: db, Tasks: tasks, Journal: journal, Images: store, Logs: output,
		Collect: collector.Collect, RuntimeInfo: runtimes.info, Layout: p.layout(drivers),
		UUID: uuid, Build: version.Build(), Log: log, Metrics: metrics, Drain: cfg.Deadlines.Drain.Duration,
	})
	if err != nil {
		return nil, err
	}
	p.background = append(p.background,
		part{"supervision of tasks", tasks.Run},
		part{"garbage collection", collector.Run},
		part{"sweep of orphans", db.Sweep},
	)
	return p, nil
}
