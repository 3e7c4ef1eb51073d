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
	out, errs := &logWriter{to: a.out, stamps: timestamps}, &logWriter{to: a.err, stamps: timestamps}
	err = c.ReadLog(ctx, container.ID(), o, func(e client.LogEntry) error {
		if e.Stderr {
			return errs.write(e)
		}
		return out.write(e)
	})
	if errdefs.IsNotFound(err) {
		return hint(err, "only what runs with -d has a log; the output of `berth run` without it goes where it was run")
	}
	return err
}

// logTime is how times stand before lines: as long as each other.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// logWriter prints one stream of a log.
type logWriter struct {
	to     io.Writer
	stamps bool
	within bool // a line has begun
}

func (w *logWriter) write(e client.LogEntry) error {
	if w.stamps && !w.within && !e.Time.IsZero() {
		if _, err := io.WriteString(w.to, e.Time.UTC().Format(logTime)+" "); err != nil {
			return err
		}
	}
	w.within = !bytes.HasSuffix(e.Data, []byte("\n"))
	_, err := w.to.Write(e.Data)
	return err
}
