package diff

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	readAhead = 256 << 10 // bytes
	// maxWindow is how many bytes a zstd stream may refer back to, and with it
	// the memory that a stranger's layer can take: that of "zstd --long".
	maxWindow = 128 << 20
)

// stream is an uncompressed stream. Close ends decompression, not the reader
// below.
type stream struct {
	io.Reader
	below *source
	what  string // the compression, for errors
	close func()
}

func (s *stream) Close() error {
	s.close()
	return nil
}

// Read tells damage of the compressed stream from failures below it.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, s.damaged(err)
}

func (s *stream) damaged(err error) error {
	if s.below.failed != nil {
		return s.below.failed
	}
	return fmt.Errorf("damaged %s stream: %w: %w", s.what, err, errdefs.ErrInvalidArgument)
}

// source remembers the error of the reader below.
type source struct {
	r      io.Reader
	failed error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.failed = err
	}
	return n, err
}

// open undoes the compression of a layer. Wherever the media type says that
// there is one, the bytes decide which: labels are wrong often enough, and the
// digest of what comes out is checked by whoever knows it.
func open(r io.Reader, mediaType string) (*stream, error) {
	compression, layer := Compression(mediaType)
	if wrapped := wrapping(mediaType); layer && wrapped != "" {
		return nil, fmt.Errorf("layer of media type %q: nothing here can undo %q: %w", mediaType, wrapped, errdefs.ErrNotImplemented)
	}
	if !layer {
		return nil, fmt.Errorf("media type %q is not that of a layer: %w", mediaType, errdefs.ErrNotImplemented)
	}
	if compression == Plain {
		below := &source{r: r}
		return &stream{Reader: below, below: below, what: "plain", close: nothing}, nil
	}
	return sniff(r)
}

// Decompress undoes gzip or zstd, whichever the first bytes announce, or
// passes on what is neither. Closing it does not close r, and never fails.
func Decompress(r io.Reader) (io.ReadCloser, error) { return sniff(r) }

func sniff(r io.Reader) (*stream, error) {
	below := &source{r: r}
	buffered := bufio.NewReaderSize(below, readAhead)
	head, err := buffered.Peek(4)
	if below.failed != nil {
		return nil, below.failed
	}
	if err != nil && err != io.EOF {
		return nil, err
	}
	s := &stream{Reader: buffered, below: below, what: "plain", close: nothing}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		s.what = Gzip
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, s.damaged(err)
		}
		s.Reader = z // its Close only repeats the error of a Read
	case isZstd(head):
		s.what = Zstd
		z, err := zstdDecoder(buffered)
		if err != nil {
			return nil, s.damaged(err)
		}
		s.Reader, s.close = z, func() { leaveZstd(z) }
	}
	return s, nil
}

// isZstd knows data frames and skippable frames (RFC 8878, 3.1).
func isZstd(head []byte) bool {
	return bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18})
}

// zstdDecoders are kept from layer to layer: each has as much memory as its window
// is large, mostly 8 MiB. What nobody needs any more goes with a garbage collection.
var zstdDecoders sync.Pool

func zstdDecoder(r io.Reader) (*zstd.Decoder, error) {
	if z, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return z, z.Reset(r)
	}
	return zstd.NewReader(r, zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// leaveZstd ends what a decoder does, so that it can be used for another layer.
func leaveZstd(z *zstd.Decoder) {
	if z.Reset(nil) == nil {
		zstdDecoders.Put(z)
	}
}

func nothing() {}
