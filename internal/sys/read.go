package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a file has more bytes than it may have.
var ErrTooLarge = errors.New("file too large")

// ReadFile reads a small file, as os.ReadFile does, but with a third of its system
// calls: nothing asks whether what is read could be waited for. It is for the records
// and the files of /proc that a start reads by the thousand. ErrTooLarge: the file
// has more than limit bytes.
func ReadFile(path string, limit int) ([]byte, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0) })
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 1<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, data[len(data):cap(data)]) })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		if data = data[:len(data)+n]; len(data) > limit {
			return nil, &os.PathError{Op: "read", Path: path, Err: ErrTooLarge}
		}
		if len(data) == cap(data) {
			data = append(data, 0)[:len(data)]
		}
	}
}

// retry calls again what a signal has interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}
