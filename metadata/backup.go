package metadata

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/metadata/boltfile"
)

// What stands beside the database, by the end of its name.
const (
	// Generation is a copy of it as it was some minutes ago, OlderGeneration
	// the one before.
	Generation      = ".bak"
	OlderGeneration = ".bak.1"
	// BeforeRepair is a copy from before the last repair.
	BeforeRepair = ".before-repair"
)

// Names in a backup with content, which is a tar.
const (
	BackupDatabase = "meta.db"
	BackupBlobs    = "blobs/" // + ALGORITHM/HEX
)

const (
	// generationPause is how long a change is at most without a copy, and
	// firstGeneration how long after the start.
	generationPause = 10 * time.Minute
	firstGeneration = time.Minute
	// nextEnd ends the name of a copy that takes the place of Generation.
	nextEnd = ".next"
	// backupOp names the durable steps of a copy.
	backupOp = "metadata.backup"
)

// backupTo writes a copy of the database as it is now to path, whole or not at
// all. Writers go on meanwhile.
func (db *DB) backupTo(ctx context.Context, path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), durable.TempPrefix+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.Close(); !errors.Is(closed, fs.ErrClosed) {
			err = errors.Join(err, closed)
		}
		if err != nil {
			if removed := os.Remove(f.Name()); !errors.Is(removed, fs.ErrNotExist) {
				err = errors.Join(err, removed)
			}
		}
	}()
	if err := db.copyTo(ctx, f); err != nil {
		return err
	}
	if err := durable.SyncFile(backupOp, f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return durable.Rename(backupOp, f.Name(), path)
}

// copyTo writes the database as it is now to a file, and looks whether the copy
// is whole: a copy of a damaged file is worse than none.
func (db *DB) copyTo(ctx context.Context, f *os.File) error {
	var size int64
	err := db.View(func(tx *Tx) (err error) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		size, err = tx.bolt.WriteTo(f)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	if err := boltfile.Verify(f, size); err != nil {
		return fmt.Errorf("the database %s is damaged, so its copy is: %w: %w", db.options.Path, err, errdefs.ErrDataLoss)
	}
	return nil
}

// Backup writes a consistent copy of the database to w, or with content a tar of
// it and of all blobs that it names. A slow w keeps no transaction open; with
// content it keeps collections off.
func (db *DB) Backup(ctx context.Context, w io.Writer, withContent bool) (err error) {
	if withContent {
		release, err := db.HoldCollections(ctx)
		if err != nil {
			return err
		}
		defer release()
	}
	f, err := os.CreateTemp(filepath.Dir(db.options.Path), durable.TempPrefix+"backup-*")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(f.Name()); err != nil { // it lives as long as it is open
		return fmt.Errorf("backup: %w", err)
	}
	if err := db.copyTo(ctx, f); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	copied := &stoppable{ctx, io.NewSectionReader(f, 0, info.Size())}
	if !withContent {
		_, err := io.Copy(w, copied)
		return err
	}
	t := tar.NewWriter(w)
	err = addFile(t, BackupDatabase, info.Size(), db.options.Now(), copied)
	if err == nil {
		err = db.backupBlobs(ctx, t)
	}
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return t.Close()
}

// backupBlobs adds every blob that has a row. The database of the backup is a
// little older: what it lacks fsck finds and removes.
func (db *DB) backupBlobs(ctx context.Context, t *tar.Writer) error {
	named := map[digest.Digest]bool{}
	err := db.View(func(tx *Tx) error {
		for key := range tx.scan(blobTable.bucket, "") {
			_, d, _ := cut(string(key))
			named[digest.Digest(d)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	all := make([]digest.Digest, 0, len(named))
	for d := range named {
		if d.Validate() == nil {
			all = append(all, d)
		}
	}
	slices.Sort(all)
	for _, d := range all {
		if err := db.backupBlob(ctx, t, d); err != nil {
			return err
		}
	}
	return nil
}

func (db *DB) backupBlob(ctx context.Context, t *tar.Writer, d digest.Digest) (err error) {
	r, err := db.content.Open(ctx, d)
	if errors.Is(err, errdefs.ErrNotFound) {
		db.log.Warn("the backup lacks a blob whose bytes are missing", slog.String("digest", d.String()))
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	name := BackupBlobs + d.Algorithm().String() + "/" + d.Encoded()
	return addFile(t, name, r.Size(), db.options.Now(), &stoppable{ctx, io.NewSectionReader(r, 0, r.Size())})
}

func addFile(t *tar.Writer, name string, size int64, at time.Time, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: at}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(t, r)
	return err
}

// KeepGenerations keeps a copy of the database beside it while ctx lasts, made
// anew when it has changed, and the copy before that one: what a damaged file
// has lost they bring back.
func (db *DB) KeepGenerations(ctx context.Context) error {
	last, pause := -1, firstGeneration
	for {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = generationPause
		id, err := db.generation(ctx, last)
		if err != nil && ctx.Err() == nil {
			db.log.Error("the database could not be copied, trying again later", slog.Any("error", err))
			continue
		}
		last = id
	}
}

// generation makes a copy if the database has changed since the transaction
// last, and gives the number of the one that it has.
func (db *DB) generation(ctx context.Context, last int) (int, error) {
	id := last
	err := db.View(func(tx *Tx) error {
		id = tx.bolt.ID()
		return nil
	})
	if err != nil || id == last {
		return last, err
	}
	path := db.options.Path + Generation
	// The new one is on disk before an old one goes.
	if err := db.backupTo(ctx, path+nextEnd); err != nil {
		return last, errors.Join(err, ignoreAbsent(os.Remove(path+nextEnd)))
	}
	err = durable.Rename(backupOp+".age", path, db.options.Path+OlderGeneration)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return last, err
	}
	if err := durable.Rename(backupOp+".next", path+nextEnd, path); err != nil {
		return last, err
	}
	return id, nil
}

// VerifyFile tells whether the file at path is a whole database that this
// program can read. DataLoss: it is damaged.
func VerifyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := boltfile.Verify(f, info.Size()); err != nil {
		return fmt.Errorf("%s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	return nil
}
