package scenario

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/pkg/cio"
)

const shortOutput = 64 << 10

func stdioScenario() *Scenario {
	return &Scenario{
		Name:   "stdio",
		Title:  "Container output through the client's fifo: throughput of one large stream, and completeness of many short ones; the limit reads the OCI runtime's pipe",
		Rounds: func(p *Params) int { return p.StdioRounds },
		Setup:  setupPayload,
		Round: func(ctx context.Context, r *Run, round int) error {
			if err := r.stdioLarge(ctx); err != nil {
				return err
			}
			if round > 0 {
				return nil
			}
			return r.stdioShort(ctx)
		},
		LimitPartial: true,
		LimitSetup:   limitSetup,
		LimitRound:   func(ctx context.Context, r *Run, round int) error { return r.State.(*direct).pipeOnce() },
	}
}

// counter counts bytes and discards them.
type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

func (r *Run) counted(c *counter) cio.Creator {
	return cio.NewCreator(cio.WithStreams(nil, c, io.Discard), cio.WithFIFODir(filepath.Join(r.D.Dir, "fifo")))
}

// printed runs one printing container and returns how long it took from the
// start to the last byte.
func (r *Run) printed(ctx context.Context, id string, size int64) (got int64, took time.Duration, err error) {
	var c counter
	b, err := r.start(ctx, id, r.counted(&c), "print", fmt.Sprint(size))
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := b.waitExit(ctx, 0); err != nil {
		return 0, 0, err
	}
	drained := make(chan struct{})
	go func() {
		b.task.IO().Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("output does not end: %w", ctx.Err())
	}
	took = time.Since(begin)
	return c.n.Load(), took, b.remove(ctx)
}

func (r *Run) stdioLarge(ctx context.Context) error {
	size := r.P.StdioBytes
	got, took, err := r.printed(ctx, r.id("print"), size)
	if err != nil {
		return err
	}
	if got != size {
		r.note("WRONG large stream: %d bytes, not %d", got, size)
	}
	r.addMBs("one large stream", got, took)
	return nil
}

func (r *Run) stdioShort(ctx context.Context) error {
	n := r.P.StdioShort
	ids := make([]string, n)
	for i := range ids {
		ids[i] = r.id("short")
	}
	var short atomic.Int64
	var lost atomic.Int64
	err := parallel(4, n, func(i int) error {
		got, _, err := r.printed(ctx, ids[i], shortOutput)
		if got != shortOutput && err == nil {
			short.Add(1)
			lost.Add(shortOutput - got)
		}
		return err
	})
	if err != nil {
		return err
	}
	r.add(fmt.Sprintf("short streams incomplete, of %d", n), "count", report.Lower, float64(short.Load()))
	r.add("short streams: bytes lost", "B", report.Lower, float64(lost.Load()))
	return nil
}

// pipeOnce is the limit.
func (d *direct) pipeOnce() error {
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	size := d.r.P.StdioBytes
	b, err := d.mountRootfs(d.r.id("pipe"))
	if err != nil {
		return err
	}
	if err := d.writeSpec(b, "print", fmt.Sprint(size)); err != nil {
		return err
	}
	err = d.create(b, pw)
	pw.Close()
	if err != nil {
		return err
	}
	if err := d.start(b); err != nil {
		return err
	}
	begin := time.Now()
	n, err := drain(pr)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes, not %d", n, size)
	}
	d.r.addMBs("one large stream", n, time.Since(begin))
	return d.down(b)
}
