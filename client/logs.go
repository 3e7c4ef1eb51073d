package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/berthd/berth/api/berth/logs/v1"
)

// LogOptions say how a container's log is kept. The zero value is the default.
type LogOptions struct {
	Input    bool  // give the process an input for those who attach
	MaxSize  int64 // bytes at which a file of the log is put aside; 0: 16 MiB
	MaxFiles int   // how many files are kept; 0: four
}

// runtimeBerth is, beside DefaultRuntime, the name of the runtime whose shim is
// berth's own, which keeps logs and lets clients attach.
const runtimeBerth = "io.berth.runc.v1"

// PrepareLog makes the place for the output of a detached container and gives
// its address, for TaskOptions.LogURI. The options count when that is done for the
// first time.
func (c *Container) PrepareLog(ctx context.Context, o LogOptions) (string, error) {
	runtime := c.Record.GetRuntime().GetName()
	prepared, err := c.client.Logs().Prepare(ctx, &logs.PrepareRequest{
		ContainerId: c.ID(),
		Plain:       runtime != DefaultRuntime && runtime != runtimeBerth,
		Input:       o.Input,
		MaxSize:     o.MaxSize,
		MaxFiles:    int32(o.MaxFiles),
	})
	if err != nil {
		return "", err
	}
	return prepared.GetUri(), nil
}

// ReadLogOptions say which part of a log to read.
type ReadLogOptions struct {
	Tail   int64 // lines before the end to start at; negative: at the start
	Follow bool  // go on with what comes, until the container's output ends
	// Since and Until leave out what is older, and what is younger. Zero: nothing.
	Since, Until time.Time
	// Lost is called when something is missing before the next entry, because the
	// log keeps no more than it was told to. May be nil.
	Lost func()
}

// LogEntry is part of what one stream of a container wrote.
type LogEntry struct {
	Time   time.Time // zero: the log does not tell
	Stderr bool
	// Data are the bytes, a newline included if there was one. Without one the
	// stream's next entry goes on with the line.
	Data []byte
}

// ReadLog gives a container's log to out, in batches that are out's to keep. That the daemon goes away meanwhile ends
// nothing: when it is back the read goes on where it was, without loss or
// repetition. NotFound: the container has no log.
func (c *Client) ReadLog(ctx context.Context, container string, o ReadLogOptions, out func([]LogEntry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream if out fails
	request := &logs.ReadRequest{ContainerId: container, Tail: o.Tail, Follow: o.Follow, Entries: true}
	if !o.Since.IsZero() {
		request.Since = o.Since.UnixNano()
	}
	if !o.Until.IsZero() {
		request.Until = o.Until.UnixNano()
	}
	pause := firstPause
	for {
		before := request.Position
		err := c.readLog(ctx, request, o, out)
		var failed *outputError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &failed):
			return failed.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !errdefs.IsUnavailable(err) || request.Position == "":
			return err
		}
		if request.Position != before {
			pause = firstPause
		}
		c.away(err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// readLog reads until the end or the loss of the daemon. It notes in the request
// where to go on.
func (c *Client) readLog(ctx context.Context, request *logs.ReadRequest, o ReadLogOptions, out func([]LogEntry) error) error {
	var options []grpc.CallOption
	if request.Position != "" {
		options = append(options, grpc.WaitForReady(true))
	}
	stream, err := c.Logs().Read(ctx, request, options...)
	if err != nil {
		return err
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if part.GetLost() && o.Lost != nil {
			o.Lost()
		}
		var batch []LogEntry
		for _, e := range part.GetEntries() {
			entry := LogEntry{Stderr: e.GetStderr(), Data: e.GetData()}
			if e.GetTime() != 0 {
				entry.Time = time.Unix(0, e.GetTime())
			}
			batch = append(batch, entry)
		}
		if len(batch) > 0 {
			if err := out(batch); err != nil {
				return &outputError{err}
			}
		}
		request.Position = part.GetPosition()
	}
}

// outputError is an error of whom the log is given to, whatever its kind.
type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }
