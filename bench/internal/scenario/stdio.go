package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/bench/internal/config"
	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"

	"github.com/containerd/containerd/v2/pkg/cio"
)

const shortOutput = 64 << 10

func stdioScenario() *Scenario {
	return &Scenario{
		Name:   "stdio",
		Title:  "Container output through the client's fifo and into a log that the shim writes: throughput of one large stream and the shim's memory meanwhile, and completeness of many short ones; the limit reads the OCI runtime's pipe",
		Rounds: func(p *Params) int { return p.StdioRounds },
		Setup:  setupPayload,
		Round: func(ctx context.Context, r *Run, round int) error {
			if err := r.stdioLarge(ctx); err != nil {
				return err
			}
			for _, form := range []string{"raw", "lines"} {
				if err := r.stdioLog(ctx, form); err != nil {
					return fmt.Errorf("log, %s: %w", form, err)
				}
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
	done := r.watchShims(b, size)
	err = b.waitExit(ctx, 0)
	done()
	if err != nil {
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

// watchShims looks at the memory of the shims while a large stream is passed on,
// until done is called.
func (r *Run) watchShims(b *box, size int64) (done func()) {
	if size <= shortOutput {
		return func() {}
	}
	helpers := r.D.Helpers(map[int]bool{int(b.task.Pid()): true})
	stop, stopped := make(chan struct{}), make(chan struct{})
	var most int64
	go func() {
		defer close(stopped)
		for {
			var sum procfs.Memory
			for _, pid := range helpers {
				if m, err := procfs.ReadMemory(pid); err == nil {
					sum = sum.Add(m)
				}
			}
			most = max(most, sum.Anon)
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		r.add("shim anon at most meanwhile", "KiB", report.Lower, float64(most))
	}
}

// stdioLog has the shim write one large stream into a file.
func (r *Run) stdioLog(ctx context.Context, form string) error {
	metric := "one large stream into a log, " + form
	uri := r.D.Config.Logs[form]
	if uri == "" {
		r.S.SetNotServed(r.Label, metric)
		return nil
	}
	path := filepath.Join(r.D.Dir, r.id("log"))
	u, err := url.Parse(strings.ReplaceAll(config.Expand(uri, r.Vars), "{log}", path))
	if err != nil {
		return err
	}
	size := r.P.StdioBytes
	b, err := r.start(ctx, r.id("logged"), cio.LogURI(u), "print", fmt.Sprint(size))
	if err != nil {
		return err
	}
	begin := time.Now()
	done := r.watchShims(b, size)
	err = b.waitExit(ctx, 0)
	done()
	if err != nil {
		return err
	}
	r.addMBs(metric, size, time.Since(begin))
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < size || form == "raw" && info.Size() != size {
		r.note("WRONG %s: the file has %d bytes of %d", metric, info.Size(), size)
	}
	return errors.Join(b.remove(ctx), os.Remove(path))
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
