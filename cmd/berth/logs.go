package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

// logsFlags are the flags of logs.
type logsFlags struct {
	follow, timestamps bool
	tail, since, until string
}

func (a *app) logsCommand() *cobra.Command {
	var f logsFlags
	cmd := &cobra.Command{
		Use:   "logs [-f] [-t] [--tail LINES] [--since TIME] [--until TIME] CONTAINER",
		Short: "Print the output of a container that was run with -d",
		Long: "Print the output of a container that was run with -d: what it wrote to standard output and to standard error,\n" +
			"to the same of berth.\n\n" +
			"Only the last files of a log are kept (run --log-max-size, --log-max-files). With -f the daemon may go away and\n" +
			"come back meanwhile. A time is given like 2006-01-02T15:04:05Z, as seconds since 1970, or as a duration like 10m,\n" +
			"which is that long ago.",
		Args:              exactArgs(1, "one container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, refs []string) error {
			o, err := f.options(a.now())
			if err != nil {
				return usage(err)
			}
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.logs(ctx, c, refs[0], o, f.timestamps) })
		},
	}
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "go on with what comes, until the container ends")
	cmd.Flags().BoolVarP(&f.timestamps, "timestamps", "t", false, "begin each line with the time at which it was written")
	cmd.Flags().StringVar(&f.tail, "tail", "all", "start at this many `lines` before the end")
	cmd.Flags().StringVar(&f.since, "since", "", "leave out what was written before a `time`")
	cmd.Flags().StringVar(&f.until, "until", "", "leave out what was written after a `time`")
	return cmd
}

// options turns the flags into what the client takes.
func (f *logsFlags) options(now time.Time) (o client.ReadLogOptions, err error) {
	o.Follow = f.follow
	if o.Tail, err = parseTail(f.tail); err != nil {
		return o, err
	}
	if o.Since, err = parseWhen("since", f.since, now); err != nil {
		return o, err
	}
	o.Until, err = parseWhen("until", f.until, now)
	return o, err
}

// parseTail reads a number of lines; negative means all.
func parseTail(text string) (int64, error) {
	if text == "all" {
		return -1, nil
	}
	lines, err := strconv.ParseInt(text, 10, 64)
	if err != nil || lines < 0 {
		return 0, fmt.Errorf("--tail %q is neither a number of lines nor all", text)
	}
	return lines, nil
}

func (a *app) logs(ctx context.Context, c *client.Client, ref string, o client.ReadLogOptions, timestamps bool) error {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return err
	}
	o.Lost = func() {
		fmt.Fprintln(a.err, "berth: something is missing here: the log has been rotated away before it was read")
	}
	w := &logWriter{stamps: timestamps, to: [2]io.Writer{a.out, a.err}}
	err = c.ReadLog(ctx, container.ID(), o, w.write)
	if errdefs.IsNotFound(err) {
		return hint(err, "only what runs with -d has a log; the output of `berth run` without it goes where it was run")
	}
	return err
}

// logTime is how times stand before lines: as long as each other.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// logWriter prints a log. Consecutive entries of one stream are written at once.
type logWriter struct {
	to     [2]io.Writer // standard output and standard error
	stamps bool
	within [2]bool // a line has begun there
	buffer []byte
}

func (w *logWriter) write(batch []client.LogEntry) error {
	for i, e := range batch {
		stream := 0
		if e.Stderr {
			stream = 1
		}
		if w.stamps && !w.within[stream] && !e.Time.IsZero() {
			w.buffer = append(e.Time.UTC().AppendFormat(w.buffer, logTime), ' ')
		}
		w.within[stream] = !bytes.HasSuffix(e.Data, []byte("\n"))
		w.buffer = append(w.buffer, e.Data...)
		if i+1 < len(batch) && batch[i+1].Stderr == e.Stderr {
			continue
		}
		_, err := w.to[stream].Write(w.buffer)
		w.buffer = w.buffer[:0]
		if err != nil {
			return err
		}
	}
	return nil
}
