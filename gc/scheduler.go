// Package gc owns the decision when to collect. What goes is package
// metadata's.
package gc

import (
	"context"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/metadata"
)

// Store is what is collected; *metadata.DB is one.
type Store interface {
	Collect(ctx context.Context) (metadata.Report, error)
	OnDelete(hook func())
	OnExpire(hook func(at time.Time))
}

// Scheduler runs collections. The zero value of every field but Store works.
type Scheduler struct {
	Store Store
	Log   *slog.Logger
}

// Run collects when there is reason to, until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error { return errdefs.ErrNotImplemented }

// Collect waits for a collection that starts after the call. Run must be running.
func (s *Scheduler) Collect(ctx context.Context) (metadata.Report, error) {
	return metadata.Report{}, errdefs.ErrNotImplemented
}
