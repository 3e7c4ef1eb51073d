package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/remotes"
)

const (
	// maxFetches is how many blobs of one image are fetched at once.
	maxFetches = 4
	// tellEvery is how many bytes pass between two tellings of progress.
	tellEvery = 1 << 20
	// lockPause is between two looks whether another client's writer of the same
	// blob has ended.
	lockPause = 100 * time.Millisecond
)

// Registry is the repository that an image comes from or goes to;
// *remotes.Repository is one.
type Registry interface {
	Reference() remotes.Reference
	Get(ctx context.Context) (ocispec.Descriptor, []byte, error)
	Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	Blob(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error)
	PushBlob(ctx context.Context, desc ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (remotes.Pushed, error)
	PushManifest(ctx context.Context, desc ocispec.Descriptor, body []byte, tag string) error
}

// fetcher brings blobs of one image into the store.
type fetcher struct {
	store    *Store
	scope    metadata.Scope
	blobs    *metadata.Blobs
	from     Registry
	progress func(Progress)
	buffers  sync.Pool
}

func (s *Store) fetcher(scope metadata.Scope, from Registry, progress func(Progress)) *fetcher {
	f := &fetcher{store: s, scope: scope, blobs: s.DB.Blobs(scope), from: from, progress: progress}
	f.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	return f
}

// sourceLabel tells where a blob can be had, for pushes to the same registry and
// for repairs.
func (f *fetcher) sourceLabel() map[string]string {
	ref := f.from.Reference()
	key, value := labels.DistributionSource+ref.Registry, ref.Repository
	if len(key)+len(value) > labels.MaxSize {
		return nil
	}
	return map[string]string{key: value}
}

// addSource notes one more place where a blob that was there can be had.
func (f *fetcher) addSource(ctx context.Context, d digest.Digest) error {
	for key, repository := range f.sourceLabel() {
		info, err := f.blobs.Info(ctx, d)
		if err != nil {
			return err
		}
		var known []string
		if old := info.Labels[key]; old != "" {
			known = strings.Split(old, ",")
		}
		if slices.Contains(known, repository) {
			return nil
		}
		known = append(known, repository)
		slices.Sort(known)
		value := strings.Join(known, ",")
		if len(key)+len(value) > labels.MaxSize {
			return nil
		}
		return addLabels(ctx, f.blobs, d, map[string]string{key: value})
	}
	return nil
}

// refOf names the ingest of a blob as other clients name it, so that two that fetch
// the same meet.
func refOf(d ocispec.Descriptor) string {
	kind := "unknown"
	switch KindOf(d.MediaType) {
	case Index:
		kind = "index"
	case Manifest:
		kind = "manifest"
	case Config:
		kind = "config"
	case Layer:
		kind = "layer"
	}
	return kind + "-" + d.Digest.String()
}

// document brings an index, a manifest or a config.
func (f *fetcher) document(ctx context.Context, d ocispec.Descriptor, parent digest.Digest) error {
	if d.Size > maxDocument {
		return invalid("it has %d bytes, more than %d", d.Size, maxDocument)
	}
	tell(f.progress, Progress{Digest: d.Digest, MediaType: d.MediaType, Status: Waiting, Total: d.Size, Parent: parent})
	return f.blob(ctx, d, nil)
}

// put stores a document that was fetched together with its descriptor.
func (f *fetcher) put(ctx context.Context, d ocispec.Descriptor, body []byte) error {
	return f.once(ctx, d, nil, func(int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(string(body))), nil
	})
}

// blob fetches a blob. What comes can be read from a meanwhile; nil: nobody does.
func (f *fetcher) blob(ctx context.Context, d ocispec.Descriptor, a *arrival) error {
	return f.once(ctx, d, a, func(offset int64) (io.ReadCloser, error) {
		body, err := f.from.Blob(ctx, d, offset)
		if errdefs.IsNotFound(err) && len(d.URLs) > 0 {
			// An image must not send the daemon wherever it likes.
			err = fmt.Errorf("%w; it is said to be at %.200q, where it is not looked for: push the image together with this layer", err, d.URLs)
		}
		return body, err
	})
}

// once fetches a blob, unless it is there or another fetch of it is under way, which
// is waited for.
func (f *fetcher) once(ctx context.Context, d ocispec.Descriptor, a *arrival, open func(offset int64) (io.ReadCloser, error)) (err error) {
	stored := func() (content.Reader, error) { return f.blobs.Open(ctx, d.Digest) }
	defer func() {
		// What ends because something else failed fails for that reason.
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if a != nil {
			a.end(stored, err)
		}
	}()
	leave, err := f.store.blobs.enter(ctx, d.Digest.String())
	if err != nil {
		return err
	}
	defer leave()
	w, err := f.writer(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		tell(f.progress, progressOf(d, Exists, d.Size))
		return f.addSource(ctx, d.Digest)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.End(ctx, err == nil || keepable(err))) }()
	return f.fill(ctx, w, d, a, open)
}

// keepable tells whether what was fetched before a failure is worth keeping for the
// next attempt: the way to the registry failed, not what came.
func keepable(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err) || errdefs.IsUnauthorized(err)
}

// writer opens the ingest of a blob. A client that writes the same one is waited for.
func (f *fetcher) writer(ctx context.Context, d ocispec.Descriptor) (*metadata.Writer, error) {
	for {
		w, err := f.blobs.Writer(ctx, refOf(d), content.Expect{Size: d.Size, Digest: d.Digest})
		if !errdefs.IsUnavailable(err) {
			return w, err
		}
		tell(f.progress, progressOf(d, Waiting, 0))
		timer := time.NewTimer(lockPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// fill fetches what a writer lacks, and commits.
func (f *fetcher) fill(ctx context.Context, w *metadata.Writer, d ocispec.Descriptor, a *arrival, open func(offset int64) (io.ReadCloser, error)) error {
	status, err := w.Status()
	if err != nil {
		return err
	}
	resumed := status.Offset > 0 && status.Offset < d.Size
	if status.Offset > d.Size { // another client's, by the same name
		if err := w.Truncate(0); err != nil {
			return err
		}
		status.Offset = 0
	}
	if status.Offset < d.Size {
		if a != nil && !resumed {
			// What an earlier fetch left has not been compared with anything.
			coming, err := w.Open(ctx)
			if err != nil {
				return err
			}
			a.begin(coming)
		}
		if err := f.copy(w, d, a, status.Offset, open); err != nil {
			return err
		}
	}
	got := w.Digest()
	if got != d.Digest && resumed {
		if err := w.Truncate(0); err != nil {
			return err
		}
		if err := f.copy(w, d, a, 0, open); err != nil {
			return err
		}
		got = w.Digest()
	}
	if got != d.Digest {
		return fmt.Errorf("%s sent %s as %s: it is damaged there, or on the way: %w", f.from.Reference(), got, d.Digest, errdefs.ErrDataLoss)
	}
	// It is all there: that something else was cut off is no reason to lose it.
	last, cancel := undoContext(ctx)
	defer cancel()
	err = w.Commit(last, d.Size, d.Digest, f.sourceLabel())
	if errdefs.IsAlreadyExists(err) {
		err = f.addSource(ctx, d.Digest)
	}
	if err == nil {
		tell(f.progress, progressOf(d, Downloaded, d.Size))
	}
	return err
}

// copy fetches from offset to the end.
func (f *fetcher) copy(w *metadata.Writer, d ocispec.Descriptor, a *arrival, offset int64, open func(offset int64) (io.ReadCloser, error)) (err error) {
	body, err := open(offset)
	if err != nil {
		return err
	}
	defer body.Close() // which never fails
	buffer := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(buffer)
	told := offset
	tell(f.progress, progressOf(d, Downloading, offset))
	for offset < d.Size {
		n, err := readFull(body, (*buffer)[:min(int64(len(*buffer)), d.Size-offset)])
		if n > 0 {
			if _, err := w.Write((*buffer)[:n]); err != nil {
				return err
			}
			offset += int64(n)
			if a != nil {
				a.reach(offset)
			}
			if offset-told >= tellEvery {
				tell(f.progress, progressOf(d, Downloading, offset))
				told = offset
			}
		}
		if err == io.EOF && offset < d.Size {
			return fmt.Errorf("%d of %d bytes came: %w", offset, d.Size, errdefs.ErrUnavailable)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// readFull reads until p is full, or no more comes.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}
