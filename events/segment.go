package events

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const suffix = ".events"

// segment is one file of the journal.
type segment struct {
	first uint64 // number of its first record, or of the one to come
	size  int64  // bytes that readers may see; guarded by Journal.mu while it is the last one
	file  *os.File
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, suffix))
}

// createSegment makes an empty segment for records from first on.
func createSegment(dir string, first uint64) (*segment, error) {
	f, err := os.OpenFile(segmentPath(dir, first), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt([]byte(magic), 0); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &segment{first: first, size: int64(len(magic)), file: f}, nil
}

// openSegment opens a segment without looking into it.
func openSegment(dir string, first uint64) (*segment, error) {
	f, err := os.OpenFile(segmentPath(dir, first), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &segment{first: first, size: info.Size(), file: f}, nil
}

// remove closes the file, which ends the readers that stand in it, and deletes
// it.
func (s *segment) remove() error {
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

// scan walks over all records and shows their bodies. It gives the number after the last good one and
// the byte where that ends; what is wrong behind it, if anything, is the error,
// unless reading itself fails, which is fatal.
func (s *segment) scan(each func(body []byte)) (next uint64, end int64, wrong, fatal error) {
	r := bufio.NewReaderSize(io.NewSectionReader(s.file, 0, s.size), 64<<10)
	head := make([]byte, len(magic))
	switch _, err := io.ReadFull(r, head); {
	case isEnd(err):
		return s.first, 0, errShort, nil
	case err != nil:
		return 0, 0, nil, err
	case string(head) != magic:
		return s.first, 0, errDamaged, nil
	}
	next, end = s.first, int64(len(magic))
	var record []byte
	for end < s.size {
		var err error
		if record, err = readRecord(r, record); errors.Is(err, errShort) || errors.Is(err, errDamaged) {
			return next, end, err, nil
		} else if err != nil {
			return 0, 0, nil, err
		}
		number, body, _, err := unseal(record)
		if err != nil || number != next {
			return next, end, errDamaged, nil
		}
		each(body)
		next++
		end += int64(len(record))
	}
	return next, end, nil, nil
}

// readRecord reads the bytes of one record into buf or a larger one.
func readRecord(r io.Reader, buf []byte) ([]byte, error) {
	buf = slices.Grow(buf[:0], headerLen)[:headerLen]
	if _, err := io.ReadFull(r, buf); isEnd(err) {
		return nil, errShort
	} else if err != nil {
		return nil, err
	}
	length, err := measure(buf)
	if err != nil {
		return nil, err
	}
	buf = slices.Grow(buf, length-headerLen)[:length]
	if _, err := io.ReadFull(r, buf[headerLen:]); isEnd(err) {
		return nil, errShort
	} else if err != nil {
		return nil, err
	}
	return buf, nil
}

func isEnd(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

// listSegments gives the first numbers of the segments in dir, rising. Other
// files are none of the journal's.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, entry := range entries {
		digits, ok := strings.CutSuffix(entry.Name(), suffix)
		if !ok || len(digits) != 20 {
			continue
		}
		if first, err := strconv.ParseUint(digits, 10, 64); err == nil {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	return firsts, nil
}
