package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/internal/config"
	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/restart"
	"github.com/berthd/berth/runtime"
	"github.com/berthd/berth/services"
)

// parts is the whole daemon, built and not yet serving.
type parts struct {
	cfg        config.Config
	log        *slog.Logger
	server     *services.Server
	settle     func(ctx context.Context) // lets what is on its way out go, before the server stops
	background []part                    // run beside the server
	closers    []io.Closer               // in the order they were opened
}

// part is something that runs as long as the daemon.
type part struct {
	name string
	run  func(ctx context.Context) error
}

// closing is a closer that never fails.
type closing func()

// Close implements io.Closer.
func (c closing) Close() error {
	c()
	return nil
}

// opened notes what close has to close.
func (p *parts) opened(c io.Closer) { p.closers = append(p.closers, c) }

// close closes everything, what stands on others first.
func (p *parts) close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c.Close())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// publisher puts the daemon's own events into the journal. That one could not
// be written undoes nothing: what it tells has happened.
func publisher(journal *events.Journal, log *slog.Logger) func(ctx context.Context, namespace, topic string, event proto.Message) {
	return func(ctx context.Context, namespace, topic string, event proto.Message) {
		if err := journal.PublishOnce(ctx, namespace, topic, event); err != nil {
			log.Error("event lost", "namespace", namespace, "topic", topic, "error", err)
		}
	}
}

// endpoints opens what the configuration wants served over HTTP. The metrics
// are nil if nobody can read them.
func (p *parts) endpoints(tasks *runtime.Tasks) (*obs.Metrics, error) {
	if address := p.cfg.Debug.Address; address != "" {
		e, err := listenHTTP("debug endpoint", address, debugHandler())
		if err != nil {
			return nil, err
		}
		p.opened(e)
		p.background = append(p.background, part{e.what, e.run})
	}
	address := p.cfg.Metrics.Address
	if address == "" {
		return nil, nil
	}
	m := obs.NewMetrics(func() map[string]int {
		n := map[string]int{}
		for _, t := range tasks.Report() {
			n[t.Verdict]++
		}
		return n
	})
	e, err := listenHTTP("metrics endpoint", address, metricsHandler(m))
	if err != nil {
		return nil, err
	}
	p.opened(e)
	p.background = append(p.background, part{e.what, e.run})
	return m, nil
}

// processors are the programs between a layer's blob and its tar, in the order of
// their ids.
func processors(all map[string]config.Processor) []diff.Processor {
	var out []diff.Processor
	for _, id := range slices.Sorted(maps.Keys(all)) {
		p := all[id]
		out = append(out, diff.Processor{
			ID: id, Accepts: p.Accepts, Returns: p.Returns, Path: p.Path, Args: p.Args, Env: p.Env, Timeout: p.Timeout.Duration,
		})
	}
	return out
}

// failing tells of the containers that can't be kept as their labels say.
func failing(e *restart.Engine) func() []runtime.Finding {
	return func() []runtime.Finding {
		var found []runtime.Finding
		for _, f := range e.Failures() {
			found = append(found, runtime.Finding{
				Kind: "restart", Namespace: f.Namespace, Object: f.ID, Since: f.Since,
				Text: fmt.Sprintf("can't be kept as its labels say: %v; tried again in %s", f.Err, max(0, time.Until(f.Next)).Round(time.Second)),
			})
		}
		return found
	}
}

// layout is what clients want to know of where things are.
func (p *parts) layout(all drivers) services.Layout {
	return services.Layout{
		Root:         p.cfg.Root,
		Database:     filepath.Join(p.cfg.Root, database),
		Content:      filepath.Join(p.cfg.Root, contentDir),
		Policy:       p.cfg.Sharing,
		OptPath:      services.OptPath(p.cfg.Root),
		Snapshotters: all.told(),
	}
}

// countedStore is the database whose collections are counted.
type countedStore struct {
	*metadata.DB
	metrics *obs.Metrics
}

// Collect implements gc.Store.
func (s *countedStore) Collect(ctx context.Context) (metadata.Report, error) {
	r, err := s.DB.Collect(ctx)
	if err == nil {
		s.metrics.Collection(r.Duration, r.LongestStall, map[string]int64{
			"blob": r.Content, "snapshot": r.Snapshots, "image": r.Images, "lease": r.Leases, "ingest": r.Ingests,
		})
	}
	return r, err
}

// ociBinaryVariable names the variable by which shims learn which OCI runtime
// to use for tasks that name none.
const ociBinaryVariable = "BERTH_OCI_BINARY"

// setEnvironment sets what shims and OCI runtimes inherit: the default runtime,
// and a PATH in which programs installed from images come after all others.
func setEnvironment(c config.Config) error {
	path := os.Getenv("PATH") + string(os.PathListSeparator) + filepath.Join(services.OptPath(c.Root), "bin")
	return errors.Join(os.Setenv("PATH", path), os.Setenv(ociBinaryVariable, c.Runtime.Binary))
}
