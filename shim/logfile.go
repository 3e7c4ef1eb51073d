package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
)

// How a log is made.
const (
	logFileMode = 0o640
	logDirMode  = 0o755
)

// logLook is how often the shim looks whether its log is still the file of that
// name, and whether somebody has cut it.
const logLook = time.Second

// logFile is a log:// log: the files that both output streams of a process go
// to. The current one has the name of the log; when it is full it is renamed to
// that with ".1", what was ".1" to ".2" and so on, and a new one is made. A file
// of the name that somebody else has put there, or taken away, is seen within
// logLook, or at once by reopen.
//
// Nothing here waits for anything but the disk. What the disk does not take is
// dropped, counted, and told in two lines of the shim's log: when it begins, and
// when it is over.
type logFile struct {
	path string
	o    logOptions
	log  *slog.Logger

	// mu guards what follows. It is held over writes: both streams go to one
	// file, whose entries must stay whole.
	mu     sync.Mutex
	fd     int // -1: none is open
	size   int64
	looked time.Time
	lost   int64 // bytes of output since the disk last took something
	users  int   // streams that have not ended
}

// openLog opens a log for a number of streams, with the directories above it.
func openLog(path string, o logOptions, log *slog.Logger) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), logDirMode); err != nil {
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	l := &logFile{path: path, o: o, log: log, fd: -1, looked: time.Now()}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	return l, nil
}

// open opens the current file, or makes it. Callers hold mu.
func (l *logFile) open() error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_APPEND | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := unix.Open(l.path, flags, logFileMode)
	if err != nil {
		return &os.PathError{Op: "open", Path: l.path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd) // nothing was written
		if err == nil {
			err = errors.New("is not a regular file")
		}
		return &os.PathError{Op: "open", Path: l.path, Err: err}
	}
	l.shut()
	l.fd, l.size = fd, st.Size
	return nil
}

// shut closes the current file. Callers hold mu.
func (l *logFile) shut() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd) // what it took is in the page cache
		l.fd = -1
	}
}

// abandon closes the file of streams that never ran.
func (l *logFile) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users = 0
	l.shut()
}

// reopen lets go of the current file and opens the one of the log's name, which
// is made if it is not there.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == 0 {
		return nil // it has ended; nothing more comes
	}
	l.looked = time.Now()
	return l.open()
}

// look follows a log that somebody else has renamed, removed or cut. A log whose
// directory has gone is not made again: its container has. Callers hold mu.
func (l *logFile) look(now time.Time) {
	if now.Sub(l.looked) < logLook {
		return
	}
	l.looked = now
	if l.fd < 0 {
		_ = l.open() // the write that follows tells
		return
	}
	var named, open unix.Stat_t
	if unix.Fstat(l.fd, &open) != nil {
		return
	}
	err := unix.Stat(l.path, &named)
	switch {
	case err == nil && named.Ino == open.Ino && named.Dev == open.Dev:
		l.size = min(l.size, open.Size)
	case err == nil, err == unix.ENOENT:
		_ = l.open() // if that fails, the old file goes on being the log
	}
}

// makeRoom sees to it that n more bytes may be written, and puts the current file
// aside for that if need be. Callers hold mu.
func (l *logFile) makeRoom(n int64, now time.Time) error {
	l.look(now)
	if l.fd < 0 {
		return l.open()
	}
	if l.o.size == 0 || l.size == 0 || l.size+n <= l.o.size {
		return nil
	}
	return l.rotate()
}

// rotate renames the files and opens a new one. What is beyond the number that
// was asked for is replaced. Callers hold mu.
func (l *logFile) rotate() error {
	for i := l.o.files - 1; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = l.path + "." + strconv.Itoa(i-1)
		}
		err := durable.RenameVolatile("shim.log", from, l.path+"."+strconv.Itoa(i))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if l.o.files == 1 {
		if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return l.open()
}

// write appends entries, none of which is torn over two files. of is how many
// bytes of output they stand for.
func (l *logFile) write(entries []byte, of int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for all := len(entries); len(entries) > 0; {
		err := l.makeRoom(1, now)
		n := 0
		if err == nil {
			n = l.fits(entries)
			if n == 0 {
				err = l.rotate()
			} else {
				err = l.append(entries[:n])
			}
		}
		if err != nil {
			l.lose(int64(of)*int64(len(entries))/int64(all), err)
			return
		}
		entries = entries[n:]
	}
	l.took()
}

// fits tells how many bytes of entries go into the current file: whole entries;
// one that is longer than a file may be has one to itself. Callers hold mu.
func (l *logFile) fits(entries []byte) int {
	room := l.o.size - l.size
	if l.o.size == 0 || int64(len(entries)) <= room {
		return len(entries)
	}
	if l.o.format == logRaw {
		return int(room)
	}
	n := bytes.LastIndexByte(entries[:max(room, 0)], '\n') + 1
	if n == 0 && l.size == 0 {
		n = bytes.IndexByte(entries, '\n') + 1
	}
	return n
}

// append writes to the end of the current file. Callers hold mu.
func (l *logFile) append(entries []byte) error {
	for done := 0; done < len(entries); {
		n, err := unix.Pwrite(l.fd, entries[done:], l.size+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			if done > 0 {
				_ = unix.Ftruncate(l.fd, l.size) // half an entry is worse than none
			}
			return err
		}
		done += n
	}
	l.size += int64(len(entries))
	return nil
}

// lose counts output that the disk did not take. Callers hold mu.
func (l *logFile) lose(n int64, err error) {
	if l.lost == 0 {
		l.log.Error("output is being lost, its log can't be written", "path", l.path, "error", err)
	}
	l.lost += n
}

// took says that the disk takes output again. Callers hold mu.
func (l *logFile) took() {
	if l.lost > 0 {
		l.log.Warn("the log can be written again", "path", l.path, "lost_bytes", l.lost)
		l.lost = 0
	}
}

// use says that a stream goes to the log; release that it has ended. The last
// one closes the file.
func (l *logFile) use() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users++
}

func (l *logFile) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users > 0 {
		return
	}
	if l.lost > 0 {
		l.log.Error("output was lost, its log could not be written", "path", l.path, "lost_bytes", l.lost)
		l.lost = 0
	}
	l.shut()
}
