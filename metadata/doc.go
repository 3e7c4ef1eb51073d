// Package metadata owns meta.db: the rows that name every container, image,
// lease, blob and snapshot, and the order between a row and what it names on
// disk. It does not own bytes or directories: those are package content's and
// the snapshot drivers'.
//
// Rows are wire messages (docs/adr/0004). Every bucket is at the top, and its
// keys start with the namespace; a zero byte, which no name may hold, ends each
// part of a key but the last:
//
//	meta.db
//	├── schema                                      "schema" → rows.Schema
//	├── namespaces   NS                           → namespaces.Namespace
//	├── containers   NS ID                        → containers.Container
//	├── images       NS NAME                      → images.Image
//	├── leases       NS LEASE                     → leases.Lease
//	├── held         NS LEASE TYPE ID             → (empty) what a lease keeps alive
//	├── blobs        NS DIGEST                    → content.Info
//	├── ingests      NS REF                       → rows.Ingest
//	├── snapshots    NS SNAPSHOTTER KEY           → rows.Snapshot
//	├── children     NS SNAPSHOTTER PARENT KEY    → (empty) index of snapshots
//	├── sandboxes    NS ID                        → types.Sandbox
//	├── mounts       NS NAME                      → rows.Activation
//	└── pending      SNAPSHOTTER REMOTE-KEY       → NS REMOTE-KEY: what may have to go, and what it is committed from
//
// # Order of writes
//
// Bytes are on disk, flushed, before a row names them, and a row is gone before
// its bytes go. So a crash can only leave things without a name, and those are
// swept at the next start (DB.Sweep). What is on disk and not yet named is
// protected while the process lives: a blob by the lane of its digest, which
// its commit holds from before the bytes get their name until the row is
// there; an ingest or a snapshot by being listed as in flight.
//
// # Group commit
//
// Update hands its function to the committer, one goroutine that runs all
// functions that wait in one transaction; those that arrive while it is flushed
// share the next (docs/adr/0005). A function may run more than once and must
// not act on the world.
//
// # Collection
//
// Collect marks on a read transaction, so writers go on, and sweeps in short
// write transactions. In between a write barrier is up: every Update records
// the rows it wrote, and each part of the sweep first marks from those, within
// its own transaction, before it removes what is still unmarked. Rows go before
// what they refer to, so that a row that a writer brings back to life in the
// middle of a sweep still finds everything it refers to.
package metadata
