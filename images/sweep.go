package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// Sweep ends the leases of imports and unpackings that ended with the daemon
// they ran in. Nothing goes on with what they hold: it becomes garbage. It is
// for the start, before the first import.
func (s *Store) Sweep(ctx context.Context) error {
	all, err := s.DB.Namespaces().List(ctx)
	if err != nil {
		return fmt.Errorf("sweep imports: %w", err)
	}
	var errs []error
	for _, ns := range all {
		leases := s.DB.Leases(metadata.Scope{Namespace: ns.Name})
		left, err := leases.List(ctx, fmt.Sprintf("labels.%q", labels.Import))
		errs = append(errs, err)
		for _, lease := range left {
			if err := leases.Delete(ctx, lease.Id); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, err)
				continue
			}
			s.log().Info("import that was cut off is dropped", slog.String("namespace", ns.Name), slog.String("lease", lease.Id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep imports: %w", err)
	}
	return nil
}
