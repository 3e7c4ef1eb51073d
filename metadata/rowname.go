package metadata

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/containers/v1"
	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/namespaces/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata/rows"
)

// messages makes an empty row of each table that holds messages with a name.
var messages = map[string]func() proto.Message{
	namespacesBucket:       func() proto.Message { return &namespaces.Namespace{} },
	containerTable.bucket:  func() proto.Message { return containerTable.make() },
	sandboxTable.bucket:    func() proto.Message { return sandboxTable.make() },
	imageTable.bucket:      func() proto.Message { return imageTable.make() },
	leaseTable.bucket:      func() proto.Message { return leaseTable.make() },
	blobTable.bucket:       func() proto.Message { return blobTable.make() },
	ingestTable.bucket:     func() proto.Message { return ingestTable.make() },
	snapshotTable.bucket:   func() proto.Message { return snapshotTable.make() },
	activationTable.bucket: func() proto.Message { return activationTable.make() },
}

// ownName is the name that a row has in itself, which is the last part of its
// key too.
func ownName(m proto.Message) string {
	switch m := m.(type) {
	case *namespaces.Namespace:
		return m.Name
	case *containers.Container:
		return m.Id
	case *types.Sandbox:
		return m.SandboxId
	case *images.Image:
		return m.Name
	case *leases.Lease:
		return m.Id
	case *contentapi.Info:
		return m.Digest
	case *rows.Ingest:
		return m.GetStatus().GetRef()
	case *rows.Snapshot:
		return m.GetInfo().GetName()
	case *rows.Activation:
		return m.GetInfo().GetName()
	}
	return ""
}

// sound tells what is wrong with a row that comes from a damaged file: its key
// and what it holds have to fit.
func sound(bucket, key string, value []byte) error {
	ns, rest, ok := cut(key)
	if bucket == namespacesBucket {
		ns, rest, ok = key, key, true
	}
	if !ok || rest == "" {
		return fmt.Errorf("a key of %q has no namespace", bucket)
	}
	if err := names.Namespace(ns); err != nil {
		return err
	}
	make := messages[bucket]
	if make == nil {
		return nil
	}
	m := make()
	if err := proto.Unmarshal(value, m); err != nil {
		return fmt.Errorf("%q: %w", named(rest), err)
	}
	if name, own := rest[strings.LastIndex(rest, separator)+1:], ownName(m); name != own {
		return fmt.Errorf("row %q is that of %q", short(name), short(own))
	}
	if bucket == blobTable.bucket {
		return digest.Digest(rest).Validate()
	}
	return nil
}
