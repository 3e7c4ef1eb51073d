package client

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/internal/labels"
)

// cleanupTimeout bounds, together, the calls that undo or end something. They
// are made even if the caller's context has ended.
const cleanupTimeout = 30 * time.Second

// cleanupContext is for what has to happen although ctx may have ended.
func cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}

// Lease makes a lease that lasts until end is called, or for at most the time
// given should this program die. It gives a client under that lease. What was
// made under it and nothing refers to by then goes with it.
func (c *Client) Lease(ctx context.Context, most time.Duration) (leased *Client, end func() error, err error) {
	expire := time.Now().Add(most).UTC().Format(time.RFC3339)
	made, err := c.Leases().Create(ctx, &leases.CreateRequest{Labels: map[string]string{labels.GCExpire: expire}})
	if err != nil {
		return nil, nil, fmt.Errorf("create lease: %w", err)
	}
	id := made.GetLease().GetId()
	return c.Leased(id), func() error {
		ctx, cancel := cleanupContext(ctx)
		defer cancel()
		if _, err := c.Leases().Delete(ctx, &leases.DeleteRequest{Id: id}); err != nil {
			return fmt.Errorf("delete lease %q: %w", id, err)
		}
		return nil
	}, nil
}
