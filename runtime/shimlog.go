package runtime

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what is passed on of a foreign shim's log.
const (
	shimLogLine = 4 << 10 // bytes; the rest of a line is dropped
	shimLogRate = 100     // lines a second; more are counted and dropped
)

// followLog passes what a foreign shim writes to its log on to the daemon's, for
// as long as the task is in the table.
func (t *Tasks) followLog(k *task) {
	k.mu.Lock()
	following := k.following
	k.following = true
	k.mu.Unlock()
	if following {
		return
	}
	// Opened for writing too, so that it has no end, and opens with nobody there.
	f, err := os.OpenFile(filepath.Join(k.dir, logFIFO), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.cfg.Log.Warn("log of a shim not followed", "namespace", k.ns, "id", k.id, "error", err)
		return
	}
	t.wg.Go(func() {
		defer f.Close()
		stop := make(chan struct{})
		defer close(stop)
		t.wg.Go(func() {
			select {
			case <-k.ctx.Done():
				_ = f.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
			case <-stop:
			}
		})
		t.passLog(k, f)
	})
}

// passLog reads lines until the reading ends.
func (t *Tasks) passLog(k *task, r io.Reader) {
	log := t.cfg.Log.With("namespace", k.ns, "id", k.id)
	lines := bufio.NewReaderSize(r, shimLogLine)
	var window time.Time
	passed, dropped := 0, 0
	for {
		line, partial, err := lines.ReadLine()
		for err == nil && partial {
			_, partial, err = lines.ReadLine()
		}
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
				log.Warn("log of a shim not followed any more", "error", err)
			}
			return
		}
		if now := time.Now(); now.Sub(window) > time.Second {
			if dropped > 0 {
				log.Warn("lines of a shim's log dropped", "count", dropped)
			}
			window, passed, dropped = now, 0, 0
		}
		if passed++; passed > shimLogRate {
			dropped++
			continue
		}
		log.Info("shim says", "text", string(line))
	}
}
