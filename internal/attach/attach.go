// Package attach owns the form of what goes over the socket between a shim and a
// client that is attached to one of its processes: frames of a kind, a length and
// data. It is berth's own; who talks to whom is the shim's and the client's
// affair.
//
//	+------+-----------------------+----------------+
//	| kind | length of data, 4     | data           |
//	| 1    | bytes, big endian     | at most 64 KiB |
//	+------+-----------------------+----------------+
//
// The shim sends Stdout and Stderr, and at last either Exit or Failure. The client
// sends Input, EndInput and Resize. Either side ends it by closing the connection.
package attach

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Kind is what a frame is about.
type Kind byte

// The kinds.
const (
	Stdout   Kind = 1 // output; with a terminal all of it
	Stderr   Kind = 2
	Exit     Kind = 3 // the process has ended; see EncodeExit
	Failure  Kind = 4 // no more comes; data says why, for people
	Input    Kind = 5
	EndInput Kind = 6 // the process's input ends; of a terminal nothing happens
	Resize   Kind = 7 // see EncodeSize
)

// MaxData bounds the data of a frame, in bytes.
const MaxData = 64 << 10

const headSize = 5

// Writer writes frames. It is safe for concurrent use.
type Writer struct {
	// mu keeps frames whole.
	mu   sync.Mutex
	to   io.Writer
	head [headSize]byte
}

// NewWriter makes a Writer.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Write writes data in as many frames of a kind as it takes; one, if there is no
// data.
func (w *Writer) Write(kind Kind, data []byte) error {
	for {
		part := data[:min(len(data), MaxData)]
		if err := w.frame(kind, part); err != nil {
			return err
		}
		if data = data[len(part):]; len(data) == 0 {
			return nil
		}
	}
}

func (w *Writer) frame(kind Kind, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head[0] = byte(kind)
	binary.BigEndian.PutUint32(w.head[1:], uint32(len(data)))
	buffers := net.Buffers{w.head[:], data}
	_, err := buffers.WriteTo(w.to)
	return err
}

// Reader reads frames.
type Reader struct {
	from io.Reader
	head [headSize]byte
	data []byte
}

// NewReader makes a Reader.
func NewReader(from io.Reader) *Reader { return &Reader{from: from} }

// Read reads a frame. Its data is valid until the next Read. At the end, between
// frames, the error is io.EOF.
func (r *Reader) Read() (Kind, []byte, error) {
	if _, err := io.ReadFull(r.from, r.head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(r.head[1:])
	if size > MaxData {
		return 0, nil, fmt.Errorf("attach: a frame of %d bytes; %d are the most", size, MaxData)
	}
	if int(size) > cap(r.data) {
		r.data = make([]byte, size)
	}
	r.data = r.data[:size]
	if _, err := io.ReadFull(r.from, r.data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(r.head[0]), r.data, nil
}

// EncodeExit makes the data of an Exit.
func EncodeExit(status uint32, at time.Time) []byte {
	data := binary.BigEndian.AppendUint32(nil, status)
	return binary.BigEndian.AppendUint64(data, uint64(at.UnixNano()))
}

// DecodeExit reads the data of an Exit.
func DecodeExit(data []byte) (status uint32, at time.Time, err error) {
	if len(data) != 12 {
		return 0, at, fmt.Errorf("attach: an exit of %d bytes", len(data))
	}
	return binary.BigEndian.Uint32(data), time.Unix(0, int64(binary.BigEndian.Uint64(data[4:]))).UTC(), nil
}

// EncodeSize makes the data of a Resize.
func EncodeSize(columns, rows uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, columns), rows)
}

// DecodeSize reads the data of a Resize.
func DecodeSize(data []byte) (columns, rows uint32, err error) {
	if len(data) != 8 {
		return 0, 0, fmt.Errorf("attach: a size of %d bytes", len(data))
	}
	return binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), nil
}
