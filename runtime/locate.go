package runtime

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// ShimSocket tells where the shim of a task listens, for a client that attaches to
// it directly. FailedPrecondition: the task has none, or one of another kind, which
// nobody can attach to.
func (t *Tasks) ShimSocket(ctx context.Context, ns, id string) (string, error) {
	k, err := t.lookup(ns, id)
	if err != nil {
		return "", err
	}
	if k.foreign() {
		return "", fmt.Errorf("attach to task %q: the shim of its runtime %q does not let clients attach: %w",
			id, k.view().intent.Runtime, errdefs.ErrFailedPrecondition)
	}
	v, err := k.settled(ctx, t.cfg.Deadlines.Connect)
	if err != nil {
		return "", err
	}
	if v.stand != connected {
		return "", fmt.Errorf("attach to task %q: it has no shim (%s): %w", id, v.stand, errdefs.ErrFailedPrecondition)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.shim.Socket, nil
}
