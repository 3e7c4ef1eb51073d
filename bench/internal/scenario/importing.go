package scenario

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/bench/internal/ociimage"
	"github.com/berthd/berth/bench/internal/report"

	"golang.org/x/sys/unix"
)

func importScenario() *Scenario {
	s := &Scenario{
		Name:    "import",
		Title:   "Import and unpack of the large image over the API; MB/s counts uncompressed layer bytes; the limit extracts the same layers with zcat or zstdcat and tar",
		Rounds:  func(p *Params) int { return p.ImportRounds },
		Prepare: prepareLarge,
		Round: func(ctx context.Context, r *Run, round int) error {
			for _, c := range []ociimage.Compression{ociimage.Gzip, ociimage.Zstd} {
				unix.Sync()
				if err := r.importOnce(ctx, c, round == 0); err != nil {
					return fmt.Errorf("%s: %w", c, err)
				}
			}
			return nil
		},
		LimitRound: func(ctx context.Context, r *Run, round int) error {
			for _, c := range []ociimage.Compression{ociimage.Gzip, ociimage.Zstd} {
				unix.Sync()
				if err := r.extractOnce(ctx, c); err != nil {
					return fmt.Errorf("%s: %w", c, err)
				}
			}
			return nil
		},
		Shares: map[string]string{},
	}
	for _, c := range []string{"gzip", "zstd"} {
		s.Shares[c+" unpack"] = c + " import+unpack"
	}
	return s
}

func (r *Run) seconds(metric string, d time.Duration) {
	r.add(metric, "s", report.Lower, d.Seconds())
}

func (r *Run) importOnce(ctx context.Context, c ociimage.Compression, verify bool) error {
	img, err := r.largeImage(c)
	if err != nil {
		return err
	}
	name := string(c)
	begin := time.Now()
	if err := r.importImage(ctx, img); err != nil {
		return err
	}
	imported := time.Now()
	if err := r.unpackImage(ctx, img); err != nil {
		return err
	}
	end := time.Now()
	r.seconds(name+" import", imported.Sub(begin))
	r.seconds(name+" unpack", end.Sub(imported))
	r.seconds(name+" import+unpack", end.Sub(begin))
	r.addMBs(name+" import+unpack rate", img.TarBytes, end.Sub(begin))
	if verify {
		if err := r.verifyRootfs(ctx, img); err != nil {
			return err
		}
	}
	begin = time.Now()
	err = r.dropImage(ctx, img.Ref, img)
	r.seconds(name+" delete, synchronous", time.Since(begin))
	return err
}

// extractOnce is the limit: one process decompresses, one extracts.
func (r *Run) extractOnce(ctx context.Context, c ociimage.Compression) error {
	img, err := r.largeImage(c)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.WorkDir, "extract")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	begin := time.Now()
	for _, l := range img.Layers {
		f, err := os.Open(img.BlobPath(l.Digest))
		if err != nil {
			return err
		}
		err = extractStream(ctx, c, f, dir)
		f.Close()
		if err != nil {
			return err
		}
	}
	took := time.Since(begin)
	r.seconds(string(c)+" import+unpack", took)
	r.addMBs(string(c)+" import+unpack rate", img.TarBytes, took)
	return nil
}
