// Package counted owns readers and writers that know how many bytes went through
// them. It does not know what the bytes are, nor who wants to know.
package counted

import "io"

// Reader counts what is read. It is not safe for concurrent use.
type Reader struct {
	R    io.Reader
	N    int64         // bytes so far
	Tell func(n int64) // is called with N after each read that gave bytes; nil: nobody is told
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.R.Read(p)
	if r.N += int64(n); n > 0 && r.Tell != nil {
		r.Tell(r.N)
	}
	return n, err
}

// Writer counts what is written. It is not safe for concurrent use.
type Writer struct {
	W io.Writer
	N int64 // bytes so far
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.W.Write(p)
	w.N += int64(n)
	return n, err
}
