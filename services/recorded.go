package services

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/logs"
	"github.com/berthd/berth/metadata"
)

// Recorded asks the database whether a container has a record.
func Recorded(db *metadata.DB) logs.Recorded {
	return func(ctx context.Context, namespace, id string) (bool, error) {
		_, err := db.Containers(metadata.Scope{Namespace: namespace}).Get(ctx, id)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	}
}
