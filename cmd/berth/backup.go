package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/durable"
)

func (a *app) backupCommand() *cobra.Command {
	var withContent bool
	cmd := &cobra.Command{
		Use:   "backup [--content] FILE|-",
		Short: "Save the daemon's database, and with it the blobs",
		Long: "Save a consistent copy of the daemon's database, while all goes on, to a file, or to standard output with -. With\n" +
			"--content it is a tar of the database and of all blobs. What containers wrote is not in it.\n\n" +
			"`berthd restore FILE` brings it back while the daemon does not run.\n\n" +
			"JSON: an object with file, bytes.",
		Args: exactArgs(1, "file"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.backup(ctx, c, args[0], withContent) })
		},
	}
	cmd.Flags().BoolVar(&withContent, "content", false, "with the blobs, as a tar")
	return cmd
}

// backedUp is the JSON of backup.
type backedUp struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

func (a *app) backup(ctx context.Context, c *client.Client, file string, withContent bool) (err error) {
	if file == "-" {
		_, err := a.receiveBackup(ctx, c, a.out, withContent)
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".berth-backup-*")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		_ = f.Close() // its end is the reason, or of no account any more
		if removed := os.Remove(f.Name()); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
	}()
	n, err := a.receiveBackup(ctx, c, f, withContent)
	if err != nil {
		return err
	}
	// No backup until it is on disk: the old one may be all that there is.
	if err := durable.SyncFile("berth.backup", f); err != nil {
		return err
	}
	if err := durable.Rename("berth.backup", f.Name(), file); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if a.json() {
		return writeJSON(a.out, backedUp{file, n})
	}
	_, err = fmt.Fprintf(a.out, "%s: %s\n", file, humanSize(n))
	return err
}

// receiveBackup writes what the daemon sends.
func (a *app) receiveBackup(ctx context.Context, c *client.Client, w io.Writer, withContent bool) (int64, error) {
	stream, err := c.Maintenance().Backup(ctx, &maintenance.BackupRequest{Content: withContent})
	if err != nil {
		return 0, fmt.Errorf("backup: %w", err)
	}
	var n, total int64
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if n == 0 || n != total {
				return n, fmt.Errorf("backup: it was cut short after %d bytes; try again", n)
			}
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("backup: %w", err)
		}
		part, err := w.Write(chunk.GetData())
		if n, total = n+int64(part), chunk.GetTotal(); err != nil {
			return n, err
		}
	}
}
