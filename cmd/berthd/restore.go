package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/metadata"
)

const restoreUsage = `usage: berthd [flags] restore FILE|-

Brings back what berth backup has saved, while no daemon runs: the blobs, if they
are in it, and the database, in place of the one that is there, which is kept as
meta.db.replaced-TIME. Run berthd fsck --repair after that.
`

// replacedMark is in the name that a replaced database gets, before the time.
const replacedMark = ".replaced-"

// restore brings back a backup.
func restore(ctx context.Context, f *flags, args []string, in io.Reader, out io.Writer) (err error) {
	if len(args) != 1 || strings.HasPrefix(args[0], "-") && args[0] != "-" {
		return fmt.Errorf("%s", restoreUsage)
	}
	cfg, err := f.load()
	if err != nil {
		return err
	}
	held, err := claim(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	if args[0] != "-" {
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	blobs, err := content.Open(filepath.Join(cfg.Root, contentDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	r := &restoring{path: filepath.Join(cfg.Root, database), blobs: blobs}
	if err := r.read(ctx, bufio.NewReaderSize(in, 64<<10)); err != nil {
		return errors.Join(fmt.Errorf("restore: %w", err), r.forget())
	}
	replaced, err := r.finish()
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	fmt.Fprintf(out, "the database is restored, with %d blobs\n", r.count)
	if replaced != "" {
		fmt.Fprintf(out, "the one before is %s\n", replaced)
	}
	fmt.Fprintln(out, "run `berthd fsck --repair` now: it brings rows and disk together")
	return nil
}

// restoring is one restore. The database gets its name last.
type restoring struct {
	path  string
	blobs *content.Disk
	count int
}

func (r *restoring) temp() string {
	return filepath.Join(filepath.Dir(r.path), durable.TempPrefix+"restore-"+filepath.Base(r.path))
}

func (r *restoring) forget() error {
	if err := os.Remove(r.temp()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tarMagic is at tarMagicAt in a tar, and nowhere there in a database.
const (
	tarMagic   = "ustar"
	tarMagicAt = 257
)

// read takes in a backup of either kind.
func (r *restoring) read(ctx context.Context, in *bufio.Reader) error {
	head, err := in.Peek(tarMagicAt + len(tarMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(head) < tarMagicAt+len(tarMagic) || string(head[tarMagicAt:]) != tarMagic {
		return r.database(in)
	}
	t := tar.NewReader(in)
	found := false
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if h.Name == metadata.BackupDatabase {
			found = true
			err = r.database(t)
		} else {
			err = r.blob(ctx, h, t)
		}
		if err != nil {
			return fmt.Errorf("%.300q: %w", h.Name, err)
		}
	}
	if !found {
		return fmt.Errorf("there is no %s in it: it is no backup: %w", metadata.BackupDatabase, errdefs.ErrInvalidArgument)
	}
	return nil
}

// database writes the database beside its place, and looks whether it is whole.
func (r *restoring) database(in io.Reader) error {
	f, err := os.OpenFile(r.temp(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	if err == nil {
		err = durable.SyncFile("berthd.restore", f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return metadata.VerifyFile(r.temp())
}

// blob brings in a blob, unless it is there, whole.
func (r *restoring) blob(ctx context.Context, h *tar.Header, in io.Reader) (err error) {
	rest, ok := strings.CutPrefix(h.Name, metadata.BackupBlobs)
	algorithm, hex, whole := strings.Cut(rest, "/")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	if !ok || !whole || d.Validate() != nil || h.Typeflag != tar.TypeReg {
		return fmt.Errorf("it is nothing of a backup: %w", errdefs.ErrInvalidArgument)
	}
	w, err := r.blobs.Ingest(ctx, "restore/"+d.String(), content.Expect{Size: h.Size, Digest: d})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Truncate(0); err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := r.dropDamaged(ctx, d); err != nil {
		return err
	}
	_, err = w.Commit(ctx, h.Size, d)
	if err == nil || errdefs.IsAlreadyExists(err) {
		r.count++
		return nil
	}
	return err
}

// dropDamaged removes a blob whose bytes are not what its digest says, or can't be
// read: it would stand in the way of those of the backup.
func (r *restoring) dropDamaged(ctx context.Context, d digest.Digest) error {
	blob, err := r.blobs.Open(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	verifier := d.Verifier()
	_, err = io.Copy(verifier, io.NewSectionReader(blob, 0, blob.Size()))
	if err = errors.Join(err, blob.Close()); err == nil && verifier.Verified() {
		return nil
	}
	return r.blobs.Delete(ctx, d)
}

// finish puts the database into its place, and tells where the old one is.
func (r *restoring) finish() (string, error) {
	replaced := r.path + replacedMark + time.Now().UTC().Format("20060102T150405.000000000")
	err := durable.Rename("berthd.restore.aside", r.path, replaced)
	if errors.Is(err, fs.ErrNotExist) {
		replaced = ""
	} else if err != nil {
		return "", err
	}
	return replaced, durable.Rename("berthd.restore", r.temp(), r.path)
}
