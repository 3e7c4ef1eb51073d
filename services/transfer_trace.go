package services

import (
	"context"
	"fmt"

	"github.com/berthd/berth/api/types/transfer"
	bytestreams "github.com/berthd/berth/internal/streams"
	"github.com/berthd/berth/remotes"
)

// maxTraced is how many lines wait for a client; what comes beyond is not told.
const maxTraced = 256

// transferTrace streams what registries are asked to a client, and never holds up
// what asks.
type transferTrace struct {
	stream *stream
	lines  chan string
	ending chan struct{} // closed when nothing comes any more
	done   chan struct{} // closed once all is sent
}

// traced has a registry's requests told, as a client wants it: over a stream, or in
// the daemon's log. Of requests and connections the same is told.
func (c *transferCall) traced(ctx context.Context, r *transfer.RegistryResolver, access *remotes.Access) error {
	if r.GetHttpDebug() == transfer.HTTPDebug_DISABLED {
		return nil
	}
	id := r.GetLogsStream()
	if id == "" {
		access.Trace = func(line string) { c.log.Info("registry asked", "namespace", c.scope.Namespace, "request", line) }
		return nil
	}
	st, err := c.take(ctx, id)
	if err != nil {
		return err
	}
	c.trace = &transferTrace{stream: st, lines: make(chan string, maxTraced), ending: make(chan struct{}), done: make(chan struct{})}
	go c.trace.run()
	access.Trace = c.trace.tell
	return nil
}

// tell notes a line, if there is room.
func (t *transferTrace) tell(line string) {
	select {
	case t.lines <- line:
	default:
	}
}

// run sends lines until nothing comes any more, or the client takes no more.
func (t *transferTrace) run() {
	defer close(t.done)
	w := bytestreams.NewWriter(t.stream)
	for {
		select {
		case line := <-t.lines:
			if _, err := fmt.Fprintln(w, line); err != nil {
				return
			}
		case <-t.ending:
			for {
				select {
				case line := <-t.lines:
					if _, err := fmt.Fprintln(w, line); err != nil {
						return
					}
				default:
					return
				}
			}
		}
	}
}

// end waits until all lines are sent, if the client takes them.
func (t *transferTrace) end() {
	close(t.ending)
	ctx, cancel := context.WithTimeout(context.Background(), progressTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { t.stream.end(nil) })
	defer stop()
	<-t.done
}
