package scenario

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func contentScenario() *Scenario {
	return &Scenario{
		Name:   "content",
		Title:  "Write one large blob through the content service and read it back; the limit hashes and writes (with fsync), or reads, a file in the benchmark",
		Rounds: func(p *Params) int { return p.ContentRounds },
		Round: func(ctx context.Context, r *Run, round int) error {
			return r.contentOnce(ctx, uint64(round))
		},
		LimitRound: func(ctx context.Context, r *Run, round int) error { return r.fileOnce(uint64(round)) },
	}
}

// blob is reproducible random data: one block repeated, with a different
// number at the start of each repetition.
type blob struct {
	block []byte
	size  int64
	at    int64
}

func newBlob(seed uint64, size int64) *blob {
	rng := rand.New(rand.NewPCG(seed, 99))
	b := &blob{block: make([]byte, 4<<20), size: size}
	for i := range b.block {
		b.block[i] = byte(rng.Uint32())
	}
	return b
}

func (b *blob) Read(p []byte) (int, error) {
	if b.at >= b.size {
		return 0, io.EOF
	}
	off := b.at % int64(len(b.block))
	if off == 0 {
		b.block[0], b.block[1] = byte(b.at>>22), byte(b.at>>30)
	}
	n := copy(p, b.block[off:min(int64(len(b.block)), off+b.size-b.at)])
	b.at += int64(n)
	return n, nil
}

func (b *blob) digest() (digest.Digest, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{b}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	b.at = 0
	return digest.NewDigest(digest.SHA256, h), nil
}

func (r *Run) contentOnce(ctx context.Context, seed uint64) error {
	b := newBlob(seed, r.P.ContentBytes)
	dgst, err := b.digest()
	if err != nil {
		return err
	}
	desc := v1.Descriptor{Digest: dgst, Size: b.size}
	store := r.D.Client.ContentStore()

	begin := time.Now()
	labels := content.WithLabels(map[string]string{"containerd.io/gc.root": "bench"})
	if err := content.WriteBlob(ctx, store, "bench-"+dgst.Encoded()[:12], b, desc, labels); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	r.addMBs("write", b.size, time.Since(begin))

	begin = time.Now()
	ra, err := store.ReaderAt(ctx, desc)
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	defer ra.Close()
	n, err := drain(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if n != b.size {
		return fmt.Errorf("read %d bytes, not %d", n, b.size)
	}
	r.addMBs("read", n, time.Since(begin))
	return store.Delete(ctx, dgst)
}

// drain reads to the end in 1 MiB pieces.
func drain(in io.Reader) (int64, error) {
	buf := make([]byte, 1<<20)
	var n int64
	for {
		m, err := in.Read(buf)
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// fileOnce is the limit.
func (r *Run) fileOnce(seed uint64) error {
	b := newBlob(seed, r.P.ContentBytes)
	path := filepath.Join(r.WorkDir, "blob")
	defer os.Remove(path)
	begin := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(io.MultiWriter(h, f), struct{ io.Reader }{b}, make([]byte, 1<<20)); err != nil {
		return err
	}
	_ = h.Sum(nil)
	if err := f.Sync(); err != nil {
		return err
	}
	r.addMBs("write", b.size, time.Since(begin))

	begin = time.Now()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := drain(f)
	if err != nil {
		return err
	}
	r.addMBs("read", n, time.Since(begin))
	return nil
}
