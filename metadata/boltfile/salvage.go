package boltfile

import (
	"fmt"
	"io"
)

// Salvage reads what can be read of a bbolt file that may be damaged: all rows
// of the buckets at its top on pages that can be reached and make sense. It
// tells for each bucket that lost rows what was wrong; that of the empty name
// stands for the list of buckets itself. An error means that nothing could be
// read. Key and value are valid during the call of visit.
func Salvage(r io.ReaderAt, size int64, visit func(bucket string, key, value []byte)) (map[string]error, error) {
	m, err := readMeta(r, size)
	if err != nil {
		return nil, err
	}
	f := &file{r: r, size: uint64(size), meta: m}
	f.pages = min(f.pages, f.size/f.pageSize) // the file may be cut
	if f.pages < 2 {
		return nil, fmt.Errorf("the file has %d bytes", size)
	}
	f.used = make([]bool, f.pages)
	f.used[0], f.used[1] = true, true
	s := &salvage{file: f, lost: map[string]error{}}
	s.tree("", f.root, 0, func(flags uint32, name, value []byte) {
		if flags != flagBucket {
			s.miss("", fmt.Errorf("%q has flags %#x in place of a bucket's", name, flags))
			return
		}
		s.bucket(string(name), value, visit)
	})
	return s.lost, nil
}

// salvage is one run of Salvage.
type salvage struct {
	*file
	lost map[string]error
}

// miss notes that a bucket has lost something; what was noted first stays.
func (s *salvage) miss(bucket string, err error) {
	if s.lost[bucket] == nil {
		s.lost[bucket] = err
	}
}

// bucket visits the rows of a bucket whose header is value.
func (s *salvage) bucket(name string, value []byte, visit func(bucket string, key, value []byte)) {
	rows := func(flags uint32, key, value []byte) {
		switch flags {
		case 0:
			visit(name, key, value)
		case flagBucket: // within a bucket: not read
		default:
			s.miss(name, fmt.Errorf("a row has flags %#x", flags))
		}
	}
	if len(value) < bucketSize {
		s.miss(name, fmt.Errorf("a bucket of %d bytes", len(value)))
		return
	}
	if root := order.Uint64(value); root != 0 {
		s.tree(name, root, 1, rows)
		return
	}
	inline := page{data: value[bucketSize:]}
	if len(inline.data) < headerSize {
		s.miss(name, fmt.Errorf("a bucket of %d bytes", len(value)))
		return
	}
	inline.count = uint64(order.Uint16(inline.data[10:]))
	s.leaf(name, inline, rows)
}

// tree visits the elements of all leaves below a page.
func (s *salvage) tree(bucket string, id uint64, depth int, visit func(flags uint32, key, value []byte)) {
	if depth > maxDepth {
		s.miss(bucket, fmt.Errorf("page %d is nested more than %d deep", id, maxDepth))
		return
	}
	p, err := s.read(id)
	if err != nil {
		s.miss(bucket, err)
		return
	}
	switch p.flags {
	case flagLeaf:
		s.leaf(bucket, p, visit)
	case flagBranch:
		for i := range p.count {
			element, err := p.part("an element", headerSize+i*elementSize, elementSize)
			if err != nil {
				s.miss(bucket, err)
				return
			}
			s.tree(bucket, order.Uint64(element[8:]), depth+1, visit)
		}
	default:
		s.miss(bucket, fmt.Errorf("page %d has flags %#x in place of a branch's or a leaf's", id, p.flags))
	}
}

// leaf visits the elements of a page that lie within it.
func (s *salvage) leaf(bucket string, p page, visit func(flags uint32, key, value []byte)) {
	for i := range p.count {
		at := headerSize + i*elementSize
		element, err := p.part("an element", at, elementSize)
		if err != nil {
			s.miss(bucket, err)
			return
		}
		start, keySize := at+uint64(order.Uint32(element[4:])), uint64(order.Uint32(element[8:]))
		key, err := p.part("a key", start, keySize)
		if err == nil && len(key) == 0 {
			err = fmt.Errorf("page %d: element %d has no key", p.id, i)
		}
		if err != nil {
			s.miss(bucket, err)
			continue
		}
		value, err := p.part("a value", start+keySize, uint64(order.Uint32(element[12:])))
		if err != nil {
			s.miss(bucket, err)
			continue
		}
		visit(order.Uint32(element), key, value)
	}
}
