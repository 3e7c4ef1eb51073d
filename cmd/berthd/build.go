package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/containerd/platforms"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/gc"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/internal/activate"
	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
	"github.com/berthd/berth/restart"
	"github.com/berthd/berth/runtime"
	"github.com/berthd/berth/services"
)

// build makes the object graph. Read from top to bottom it is the architecture:
// what is made later stands on what was made before.
func build(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *parts, err error) {
	p := &parts{cfg: cfg, log: log}
	memory := limitMemory(cfg.Memory)
	p.opened(memory)
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
	if err := setEnvironment(cfg); err != nil {
		return nil, err
	}

	// What a daemon that was killed has left mounted is in nobody's way.
	if err := mount.SweepTemp(); err != nil {
		log.Warn("temporary mounts of a process that is dead stay", "error", err)
	}

	// Mechanisms and truth: what there is by name.
	st, err := p.openStores(ctx)
	if err != nil {
		return nil, err
	}

	// Truth: what runs.
	tasks, err := p.openTasks(st)
	if err != nil {
		return nil, err
	}
	metrics, err := p.endpoints(tasks)
	if err != nil {
		return nil, err
	}

	// Engines: collection, images, restart policies, features of OCI runtimes.
	collector := &gc.Scheduler{
		Store: &countedStore{st.db, metrics}, Log: log, StartupDelay: cfg.GC.StartupDelay.Duration,
		Delay: cfg.GC.ScheduleDelay.Duration, Budget: cfg.GC.PauseThreshold,
	}
	registries := remotes.New(remotes.Config{HostsDir: cfg.Registry.HostsDir, UserAgent: "berth/" + version.Build().Version})
	p.opened(closing(registries.Close))
	verifiers := &images.Verifiers{Dir: cfg.Verifiers.Dir, Max: cfg.Verifiers.Max, Timeout: cfg.Verifiers.Timeout.Duration, Log: log}
	store := &images.Store{DB: st.db, Platform: platforms.DefaultSpec(), Snapshotter: st.drivers.standard(cfg.Snapshotter), Log: log,
		Layers: diff.Options{MaxSize: cfg.Images.MaxLayer, Processors: processors(cfg.Processors)}, Verify: verifiers.Verify}
	if err := store.Sweep(ctx); err != nil {
		log.Warn("what imports have left that were cut off stays for a day", "error", err)
	}
	keeper := &restart.Engine{Store: restart.Records{DB: st.db}, Tasks: tasks, Journal: st.journal, Log: log}
	runtimes := &features{binary: cfg.Runtime.Binary, deadline: cfg.Deadlines.Features.Duration, foreign: tasks.Info}

	// Surface: the services.
	p.server, err = services.New(services.Config{
		DB: st.db, Tasks: tasks, Journal: st.journal, Images: store, Remotes: registries, Logs: st.output,
		Collect: collector.Collect, Failing: failing(keeper), RuntimeInfo: runtimes.info, Layout: p.layout(st.drivers),
		UUID: st.uuid, Build: version.Build(), Log: log, Metrics: metrics, Memory: memory, Drain: cfg.Deadlines.Drain.Duration,
	})
	if err != nil {
		return nil, err
	}
	memory.Small() // the start is over
	p.background = append(p.background,
		part{"supervision of tasks", tasks.Run},
		part{"restart policies", keeper.Run},
		part{"garbage collection", collector.Run},
		part{"sweep of orphans", st.db.Sweep},
		part{"copies of the database", st.db.KeepGenerations},
	)
	return p, nil
}

// stores are what remembers.
type stores struct {
	uuid    string
	journal *events.Journal
	drivers drivers
	db      *metadata.DB
	output  *logs.Store
	publish func(ctx context.Context, namespace, topic string, event proto.Message)
}

// openStores opens the journal, the blobs, the snapshot drivers, the database
// that names what is in them, and the logs.
func (p *parts) openStores(ctx context.Context) (_ stores, err error) {
	var s stores
	if s.uuid, err = identity(p.cfg.Root); err != nil {
		return s, err
	}
	s.journal, err = events.Open(events.Options{Dir: filepath.Join(p.cfg.State, eventsDir), MaxBytes: p.cfg.Events.MaxBytes, Log: p.log})
	if err != nil {
		return s, err
	}
	p.opened(s.journal)
	s.publish = publisher(s.journal, p.log)
	blobs, err := content.Open(filepath.Join(p.cfg.Root, contentDir))
	if err != nil {
		return s, err
	}
	p.opened(blobs)
	if s.drivers, err = openDrivers(p.cfg, p.log); err != nil {
		return s, err
	}
	p.opened(s.drivers)
	bootID, err := sys.BootID()
	if err != nil {
		return s, err
	}
	s.db, err = metadata.Open(ctx, metadata.Options{
		Path: filepath.Join(p.cfg.Root, database), Content: blobs, Drivers: s.drivers.usable(), Remotes: s.drivers.remotes(),
		Mounts: &activate.Place{Root: filepath.Join(p.cfg.State, mountsDir)}, BootID: bootID,
		Isolated: p.cfg.Sharing == config.Isolated, Publish: s.publish, Log: p.log,
	})
	if err != nil {
		return s, err
	}
	p.opened(s.db)
	if s.output, err = logs.Open(filepath.Join(p.cfg.Root, logsDir)); err != nil {
		return s, err
	}
	p.opened(s.output)
	if err := s.output.Sweep(ctx, services.Recorded(s.db)); err != nil {
		p.log.Warn("logs of containers that are gone stay", "error", err)
	}
	return s, nil
}

// openTasks opens what runs.
func (p *parts) openTasks(st stores) (*runtime.Tasks, error) {
	shim, err := shimBinary(p.cfg.Shim)
	if err != nil {
		return nil, err
	}
	// What ran below a shim that has died comes to the daemon, which then can
	// wait for it.
	if err := sys.SetSubreaper(); err != nil {
		return nil, err
	}
	limits := p.cfg.Deadlines
	tasks, err := runtime.Open(runtime.Config{
		Root: p.cfg.Root, State: p.cfg.State, Address: p.cfg.GRPC.Address, TTRPCAddress: p.cfg.TTRPCAddress(),
		Shim: shim, GRPC: newGRPCShim, Publish: st.publish, Forward: st.journal.Forward, Rootfs: services.TaskMounts{DB: st.db}, Reap: true, Log: p.log,
		Deadlines: runtime.Deadlines{Create: limits.Create.Duration, Start: limits.Start.Duration, Delete: limits.Delete.Duration},
	})
	if err != nil {
		return nil, err
	}
	p.opened(tasks)
	p.settle = tasks.Settle
	return tasks, nil
}
