package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
)

const (
	// maxSources bounds how many repositories are asked for a blob.
	maxSources = 8
	// repairRef begins the refs of ingests that a repair writes.
	repairRef = "repair/"
)

// mendBlob puts right a blob whose bytes are missing, short or wrong: if they
// are what the digest says after all its rows get the size, else they are
// fetched again, else its rows are dropped with what is left of them, so that
// whoever needs it can bring it in again.
func (c *check) mendBlob(d digest.Digest) fix {
	return func(ctx context.Context) (string, error) {
		rows, err := c.db.blobRowsOf(d)
		if err != nil {
			return "", err
		}
		if len(rows) == 0 {
			return "", errGone
		}
		size, right, err := c.db.verify(ctx, d)
		if err != nil {
			return "", err
		}
		if right {
			wrong := false
			for _, row := range rows {
				wrong = wrong || row.Size != size
			}
			if !wrong {
				return "", errGone
			}
			return "its bytes are right, and its rows have their size now", c.db.eachBlobRow(ctx, d, func(row *contentapi.Info) bool {
				row.Size = size
				return true
			})
		}
		from, err := c.refetch(ctx, d, rows)
		if err == nil {
			return "fetched again from " + from, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if dropped := c.db.dropBlob(ctx, d); dropped != nil {
			return "", errors.Join(err, dropped)
		}
		return fmt.Sprintf("dropped (%v): pull or import again what needs it", err), nil
	}
}

// verify reads the bytes of a blob and tells whether they are what its digest
// says. Missing ones, and those that can't be read, are not.
func (db *DB) verify(ctx context.Context, d digest.Digest) (size int64, right bool, err error) {
	r, err := db.content.Open(ctx, d)
	if errors.Is(err, errdefs.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	verifier := d.Verifier()
	_, err = io.Copy(verifier, &stoppable{ctx, io.NewSectionReader(r, 0, r.Size())})
	size = r.Size()
	closed := r.Close()
	if ctx.Err() != nil {
		return 0, false, ctx.Err()
	}
	return size, err == nil && closed == nil && verifier.Verified(), nil
}

// dropBlob drops all rows of a blob, and its bytes.
func (db *DB) dropBlob(ctx context.Context, d digest.Digest) error {
	if err := db.eachBlobRow(ctx, d, func(*contentapi.Info) bool { return false }); err != nil {
		return err
	}
	return second(db.removeBlob(ctx, d))
}

// source is a repository that had a blob.
type source struct{ host, repository string }

// sources lists where the rows of a blob say that it came from.
func sources(rows map[string]*contentapi.Info) []source {
	var all []source
	for _, ns := range slices.Sorted(maps.Keys(rows)) {
		for _, key := range slices.Sorted(maps.Keys(rows[ns].Labels)) {
			host, ok := strings.CutPrefix(key, labels.DistributionSource)
			if !ok || host == "" {
				continue
			}
			for repository := range strings.SplitSeq(rows[ns].Labels[key], ",") {
				if s := (source{host, repository}); repository != "" && !slices.Contains(all, s) {
					all = append(all, s)
				}
			}
		}
	}
	return all[:min(len(all), maxSources)]
}

// refetch gets a blob from where it came from, and tells from where it did.
func (c *check) refetch(ctx context.Context, d digest.Digest, rows map[string]*contentapi.Info) (string, error) {
	all := sources(rows)
	switch {
	case len(all) == 0:
		return "", errors.New("no registry is recorded that has it")
	case c.options.Repair.Fetch == nil:
		return "", errors.New("nothing may be fetched")
	}
	size := int64(0)
	for _, row := range rows {
		size = max(size, row.Size)
	}
	var errs []error
	for _, s := range all {
		err := c.fetchFrom(ctx, s, ocispec.Descriptor{Digest: d, Size: size})
		if err == nil {
			return s.host + "/" + s.repository, nil
		}
		errs = append(errs, fmt.Errorf("fetch from %s/%s: %w", s.host, s.repository, err))
		if ctx.Err() != nil {
			break
		}
	}
	return "", errors.Join(errs...)
}

// fetchFrom gets a blob from one repository. Its old bytes go when the new ones
// are there.
func (c *check) fetchFrom(ctx context.Context, s source, desc ocispec.Descriptor) (err error) {
	r, err := c.options.Repair.Fetch.Fetch(ctx, s.host, s.repository, desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	db := c.db
	h, err := db.ingests.take("", repairRef+desc.Digest.String())
	if err != nil {
		return err
	}
	defer db.ingests.release(h)
	backend := db.ingests.assign(h, "", repairRef+desc.Digest.String(), "")
	ingest, err := db.content.Ingest(ctx, backend, content.Expect{Size: desc.Size, Digest: desc.Digest})
	if err != nil {
		return err
	}
	if err = c.fill(ctx, ingest, r, desc); err != nil {
		return errors.Join(err, ingest.Close(), ignoreNotFound(db.content.Abort(context.WithoutCancel(ctx), backend)))
	}
	return nil
}

// fill writes an ingest and puts its bytes in the place of the damaged ones.
func (c *check) fill(ctx context.Context, ingest content.Ingest, r io.Reader, desc ocispec.Descriptor) error {
	n, err := io.Copy(ingest, &stoppable{ctx, io.LimitReader(r, desc.Size+1)})
	if err != nil {
		return err
	}
	if got := ingest.Digest(); n != desc.Size || got != desc.Digest {
		return fmt.Errorf("it gave %d bytes with digest %s", n, got)
	}
	unlock, err := c.db.lanes.lock(ctx, desc.Digest.String())
	if err != nil {
		return err
	}
	defer unlock()
	if err := ignoreNotFound(c.db.content.Delete(ctx, desc.Digest)); err != nil {
		return err
	}
	_, err = ingest.Commit(ctx, desc.Size, desc.Digest)
	return err
}

// Whole tells whether the namespace has a blob whose bytes are on disk, as many
// as its row and the descriptor say; a size of 0 says nothing.
func (b *Blobs) Whole(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	row, err := b.Info(ctx, d.Digest)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := b.db.content.Stat(ctx, d.Digest)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	return err == nil && info.Size == row.Size && (d.Size == 0 || d.Size == info.Size), err
}
