package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/diff"
	"github.com/berthd/berth/metadata"
)

const (
	bufferSize = 512 << 10 // bytes copied at once
	maxFiles   = 100_000   // names kept of one archive
	maxName    = 4096      // bytes in one of them
	maxArchive = 1 << 40   // bytes of one archive, uncompressed

	dockerFile = "manifest.json" // what an OCI layout's index.json is to docker
)

// loader writes the files of an archive into the content store.
type loader struct {
	blobs    *metadata.Blobs
	prefix   string // of the refs of its ingests
	progress func(Progress)
	compress bool // layers of a docker archive
	buf      []byte

	index  []byte // index.json, nil if there is none
	docker []byte // manifest.json, nil if there is none
	// files are the blobs by path, links the targets of links by path.
	files map[string]ocispec.Descriptor
	links map[string]string
}

// load reads the archive to its end.
func (l *loader) load(ctx context.Context, r io.Reader) error {
	uncompressed, err := diff.Decompress(r)
	if err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	defer uncompressed.Close() // which never fails
	l.buf, l.files, l.links = make([]byte, bufferSize), map[string]ocispec.Descriptor{}, map[string]string{}
	tr := tar.NewReader(&limited{r: uncompressed, left: maxArchive})
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive: %w", blame(err))
		}
		if len(l.files)+len(l.links) >= maxFiles {
			return invalid("archive: it has more than %d files", maxFiles)
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := l.entry(ctx, h, tr); err != nil {
			return fmt.Errorf("archive: %.300q: %w", h.Name, err)
		}
	}
}

// blame says what is wrong with a tar in words, and leaves other errors alone.
func blame(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("it ends too early: save or copy it again")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return invalid("it is no tar, plain or compressed with gzip or zstd, or is damaged")
	}
	return err
}

func (l *loader) entry(ctx context.Context, h *tar.Header, r io.Reader) (err error) {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return invalid("the name has more than %d bytes", maxName)
	}
	name := clean(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		l.links[name] = clean(path.Join(path.Dir(name), h.Linkname))
		return nil
	case tar.TypeLink:
		l.links[name] = clean(h.Linkname)
		return nil
	default:
		return nil
	}
	base := path.Base(name)
	switch {
	case name == ocispec.ImageIndexFile:
		l.index, err = readSmall(h, r)
	case name == dockerFile:
		l.docker, err = readSmall(h, r)
	case name == ocispec.ImageLayoutFile, name == "repositories", base == "VERSION", base == "json":
	default:
		l.files[name], err = l.file(ctx, name, h.Size, r)
	}
	return err
}

func clean(name string) string { return path.Clean("/" + name)[1:] }

func readSmall(h *tar.Header, r io.Reader) ([]byte, error) {
	if h.Size > maxDocument {
		return nil, invalid("it has %d bytes, more than %d", h.Size, maxDocument)
	}
	data, err := io.ReadAll(r)
	return data, blame(err)
}

// file writes a file as a blob. In an OCI layout its path is its digest; else
// the digest is found out.
func (l *loader) file(ctx context.Context, name string, size int64, r io.Reader) (ocispec.Descriptor, error) {
	var want digest.Digest
	if rest, ok := strings.CutPrefix(name, ocispec.ImageBlobsDir+"/"); ok {
		algorithm, hex, _ := strings.Cut(rest, "/")
		want = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
		if err := want.Validate(); err != nil {
			return ocispec.Descriptor{}, invalid("the path is no digest: %v", err)
		}
	}
	return l.ingest(ctx, name, want, size, r)
}

// ingest writes a blob. What the store has already is not written again.
func (l *loader) ingest(ctx context.Context, name string, want digest.Digest, size int64, r io.Reader) (_ ocispec.Descriptor, err error) {
	d := ocispec.Descriptor{Digest: want, Size: size}
	w, err := l.blobs.Writer(ctx, l.prefix+name, content.Expect{Size: size, Digest: want})
	if errdefs.IsAlreadyExists(err) {
		tell(l.progress, progressOf(d, Loaded, size))
		return d, nil
	}
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, w.End(ctx, err == nil)) }()
	status, err := w.Status()
	if err != nil {
		return d, err
	}
	if status.Offset != size || size == 0 { // else another namespace has lent it
		if err := l.copy(w, want, size, r); err != nil {
			return d, err
		}
	}
	d.Digest = w.Digest()
	if want != "" && d.Digest != want {
		return d, invalid("its content has the digest %s: the archive is damaged, save it again", d.Digest)
	}
	if err := w.Commit(ctx, size, d.Digest, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return d, err
	}
	tell(l.progress, progressOf(d, Loaded, size))
	return d, nil
}

func (l *loader) copy(w io.Writer, want digest.Digest, size int64, r io.Reader) error {
	for done := int64(0); ; {
		n, err := io.ReadFull(r, l.buf)
		if n > 0 {
			if _, err := w.Write(l.buf[:n]); err != nil {
				return err
			}
			if done += int64(n); want != "" {
				tell(l.progress, Progress{Digest: want, Status: Loading, Offset: done, Total: size})
			}
		}
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF && done == size:
			return nil
		case err != nil:
			return blame(err)
		}
	}
}

// find gives the blob of a path, through links.
func (l *loader) find(name string) (ocispec.Descriptor, error) {
	at := clean(name)
	for range 8 {
		if d, ok := l.files[at]; ok {
			return d, nil
		}
		next, ok := l.links[at]
		if !ok {
			break
		}
		at = next
	}
	return ocispec.Descriptor{}, fmt.Errorf("archive: %s names %q, which is missing: save it again: %w", dockerFile, name, errdefs.ErrNotFound)
}

// limited ends an archive that has no end.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("it has more than %d bytes: %w", int64(maxArchive), errdefs.ErrResourceExhausted)
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	return n, err
}
