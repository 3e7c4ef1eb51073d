package logs

import (
	"bytes"
	"io"
)

// tail finds where the last lines of a log begin: in which of its files and where
// in that. A last line without its newline counts as one.
func tail(all []segment, lines int64, plain bool) (index int, offset int64, err error) {
	index = len(all) - 1
	if lines == 0 {
		info, err := all[index].Stat()
		if err != nil {
			return 0, 0, err
		}
		return index, info.Size(), nil
	}
	count := &lineCount{want: lines, plain: plain}
	for i := len(all) - 1; i >= 0; i-- {
		torn := false
		if plain && i > 0 {
			if torn, err = isTorn(all[i-1]); err != nil {
				return 0, 0, err
			}
		}
		stop, err := starts(all[i], func(at int64) (bool, error) {
			if at == 0 && torn {
				return false, nil // it begins in the file before
			}
			return count.line(all[i], i, at)
		})
		if err != nil {
			return 0, 0, err
		}
		if stop {
			return count.index, count.offset, nil
		}
	}
	return 0, 0, nil
}

// isTorn tells whether a file ends within a line.
func isTorn(f segment) (bool, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], info.Size()-1)
	return last[0] != '\n', err
}

// lineCount counts lines from the end.
type lineCount struct {
	want  int64
	plain bool
	seen  int64
	ended [2]bool // a later entry of stdout, stderr was seen

	index  int // where what was counted begins
	offset int64
}

// line takes the line that starts at a place into account, and tells whether there
// are enough.
func (c *lineCount) line(f segment, index int, at int64) (enough bool, err error) {
	if c.plain {
		c.index, c.offset = index, at
		c.seen++
		return c.seen == c.want, nil
	}
	head := make([]byte, headMax)
	n, err := f.ReadAt(head, at)
	if err != nil && err != io.EOF {
		return false, err
	}
	// An entry is the end of a line unless the stream goes on with it.
	_, stderr, partial, _ := parseHead(head[:n])
	stream := 0
	if stderr {
		stream = 1
	}
	if !partial || !c.ended[stream] {
		c.seen++
	}
	c.ended[stream] = true
	if c.seen > c.want {
		return true, nil
	}
	c.index, c.offset = index, at
	return false, nil
}

// starts calls do with where each line of a file starts, the last first, until it
// says stop.
func starts(f segment, do func(at int64) (stop bool, err error)) (stopped bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	end := info.Size()
	buf := make([]byte, 64<<10)
	for pos := end; pos > 0; {
		n := min(int64(len(buf)), pos)
		pos -= n
		if _, err := f.ReadAt(buf[:n], pos); err != nil {
			return false, err
		}
		part := buf[:n]
		if pos+n == end { // the newline that ends the last line starts no other
			part = bytes.TrimSuffix(part, []byte("\n"))
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part, '\n') {
			if stop, err := do(pos + int64(i) + 1); stop || err != nil {
				return stop, err
			}
			part = part[:i]
		}
	}
	if end == 0 {
		return false, nil
	}
	return do(0)
}
