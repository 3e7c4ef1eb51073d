package metadata

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/metadata/boltfile"
)

const (
	// compactOp names the durable steps: metadata.compact.sync (the new file),
	// .rename, .syncdir.
	compactOp = "metadata.compact"
	// defaultCompactMin is the size of a file, in bytes, from which it is worth
	// to write it anew, if less than the compactShare'th part of it is in use.
	defaultCompactMin = 16 << 20
	compactShare      = 2
	// compactPart is how many bytes of rows are copied in one transaction.
	compactPart = 4 << 20
)

// compactIfFree writes the file anew, without what is free in it, if that is
// most of it: bbolt uses free pages again, and never gives them back. It is for
// the start, when nobody else has the file. What fails leaves the file as it was.
func (db *DB) compactIfFree(use boltfile.Use) {
	temp := filepath.Join(filepath.Dir(db.options.Path), durable.TempPrefix+filepath.Base(db.options.Path))
	err := ignoreAbsent(os.Remove(temp)) // of a process that was killed at it
	if err == nil && use.Total >= db.compactMin && use.Reached*compactShare < use.Total {
		start := time.Now()
		if err = db.compact(temp); err == nil {
			db.log.Info("database compacted", slog.Int64("bytes_before", use.Total), slog.Int64("bytes", use.Reached),
				slog.Duration("duration", time.Since(start)))
			return
		}
		err = errors.Join(err, ignoreAbsent(os.Remove(temp)))
	}
	if err != nil {
		db.log.Warn("database not compacted, it stays as it is", slog.String("path", db.options.Path), slog.Any("error", err))
	}
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// compact copies the file to temp, and puts that in its place once it is found
// whole and is on disk.
func (db *DB) compact(temp string) error {
	from, err := db.boltOpen(db.options.Path, bolt.Options{ReadOnly: true, NoStatistics: true})
	if err != nil {
		return err
	}
	err = db.protect("compact", func() error {
		if err := from.View(checkVersion); err != nil {
			return err
		}
		return db.copyRows(temp, from)
	})
	if err = errors.Join(err, from.Close()); err != nil {
		return err
	}
	file, err := os.Open(temp)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil {
		err = boltfile.Verify(file, info.Size())
	}
	if err == nil {
		err = durable.SyncFile(compactOp, file)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return durable.Rename(compactOp, temp, db.options.Path)
}

// copyRows makes a file at temp with all the rows.
func (db *DB) copyRows(temp string, from *bolt.DB) error {
	to, err := db.boltOpen(temp, bolt.Options{
		NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoStatistics: true,
	})
	if err != nil {
		return err
	}
	return errors.Join(bolt.Compact(to, from, compactPart), to.Close())
}
