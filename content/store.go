// Package content owns blobs: bytes named by their digest. It knows no
// namespaces and no labels; those are rows of package metadata.
//
// Disk keeps them like this:
//
//	ROOT/
//	├── blobs/sha256/HEX   a blob, 0444; the name is there only once every byte is on disk
//	└── ingest/HEX/        an ingest; HEX is the sha256 of its ref
//	    ├── ref            the ref, as it was given
//	    ├── state.json     when it began, what is expected, during which boot
//	    ├── hash.json      the state of the hash after some bytes that are on disk
//	    └── data           the bytes so far
//
// Blobs outlive the machine's power. Ingests live as long as the boot: they
// outlive the daemon, but what a power cut leaves of them can't be trusted and
// is begun anew. Names that start with ".tmp-" belong to a writer; when a store
// is opened there is none, and they are removed.
package content

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Store keeps blobs and the ingests that become blobs. All methods are safe for
// concurrent use. Errors are of the kinds of containerd/errdefs: an unknown
// digest or ref is NotFound.
type Store interface {
	Stat(ctx context.Context, d digest.Digest) (Info, error)
	// Open opens a blob for reading at any offset. A blob that is deleted while
	// open can be read to its end.
	Open(ctx context.Context, d digest.Digest) (Reader, error)
	// Delete removes a blob's bytes. An unknown one is NotFound.
	Delete(ctx context.Context, d digest.Digest) error
	All(ctx context.Context) iter.Seq2[Info, error]

	// Ingest opens the ingest named ref, which may be any non-empty text, at
	// the end of what an earlier writer left in it; a want.Size other than the
	// recorded one starts it anew. While another writer has it: Unavailable.
	Ingest(ctx context.Context, ref string, want Expect) (Ingest, error)
	Status(ctx context.Context, ref string) (IngestInfo, error)
	Ingests(ctx context.Context) iter.Seq2[IngestInfo, error]
	// Abort drops an ingest. An unknown one is NotFound; one that a writer
	// holds is Unavailable.
	Abort(ctx context.Context, ref string) error
}

// Expect is what a writer knows of its blob beforehand. The zero value means
// nothing is known.
type Expect struct {
	Size   int64         // bytes; 0 when not known
	Digest digest.Digest // decides the algorithm while writing; empty means sha256
}

// Info describes a stored blob.
type Info struct {
	Digest    digest.Digest
	Size      int64 // bytes
	CreatedAt time.Time
}

// IngestInfo describes an ingest.
type IngestInfo struct {
	Ref       string
	Offset    int64 // bytes there so far
	Total     int64 // bytes expected; 0 when not known
	Expected  digest.Digest
	StartedAt time.Time
	UpdatedAt time.Time
}

// Reader reads a blob. Size is in bytes.
type Reader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Ingest is one writer's hold on an ingest. It is not safe for concurrent use.
type Ingest interface {
	io.Writer // appends
	// Status tells where the ingest stands; Digest is of the bytes so far.
	Status() (IngestInfo, error)
	Digest() digest.Digest
	// Open opens the bytes for reading while they come: what was written before a
	// read can be read. The reader may be used beside the writer, and stays good
	// after it, whatever becomes of the ingest; its Size is that of the bytes when
	// it was opened.
	Open() (Reader, error)
	// Truncate drops all bytes after size, which is not beyond the end.
	Truncate(size int64) error
	// Commit turns the ingest into a blob: checked against size (0: any) and
	// want (empty: any), flushed, renamed, its directory flushed. A mismatch is
	// FailedPrecondition and keeps the ingest. A blob that exists already is
	// AlreadyExists, and the ingest is gone. The hold ends when it succeeds or
	// answers AlreadyExists.
	Commit(ctx context.Context, size int64, want digest.Digest) (Info, error)
	// Close lets go and keeps the bytes for a later writer. Closing twice, or
	// after Commit, is no error.
	Close() error
}
