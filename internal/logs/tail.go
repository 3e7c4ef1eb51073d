package logs

import (
	"bytes"
	"io"
)

// tailChunk is how much is looked at once, in bytes.
const tailChunk = 64 << 10

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
		stop, err := starts(all[i], func(at int64, head []byte) bool {
			if at == 0 && torn {
				return false // it begins in the file before
			}
			return count.line(i, at, head)
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
func (c *lineCount) line(index int, at int64, head []byte) (enough bool) {
	if c.plain {
		c.index, c.offset = index, at
		c.seen++
		return c.seen == c.want
	}
	// An entry is the end of a line unless the stream goes on with it.
	_, stderr, partial, _ := parseHead(head)
	stream := 0
	if stderr {
		stream = 1
	}
	if !partial || !c.ended[stream] {
		c.seen++
	}
	c.ended[stream] = true
	if c.seen > c.want {
		return true
	}
	c.index, c.offset = index, at
	return false
}

// starts calls do with where each line of a file starts, the last first, and with at
// least headMax bytes from there, if there are as many; until it says stop.
func starts(f segment, do func(at int64, head []byte) (stop bool)) (stopped bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	end := info.Size()
	buf := make([]byte, tailChunk+headMax)
	for pos := end; pos > 0; {
		n := min(tailChunk, pos)
		pos -= n
		read, err := f.ReadAt(buf[:min(n+headMax, end-pos)], pos)
		if err != nil && err != io.EOF {
			return false, err
		}
		all := buf[:read]
		part := all[:min(int(n), read)]
		if pos+n == end { // the newline that ends the last line starts no other
			part = bytes.TrimSuffix(part, []byte("\n"))
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part, '\n') {
			if do(pos+int64(i)+1, all[i+1:]) {
				return true, nil
			}
			part = part[:i]
		}
		if pos == 0 {
			return do(0, all), nil
		}
	}
	return false, nil
}
