package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

const (
	magic      = 0xED0CDAED
	version    = 2
	noFreelist = ^uint64(0)

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	flagBucket   = 0x01 // of a leaf element

	headerSize  = 16
	elementSize = 16
	bucketSize  = 16
	metaSize    = 64 // with its checksum
	summedSize  = 56

	minPageSize, maxPageSize = 1 << 10, 16 << 20
	// maxDepth bounds how deep pages and buckets are nested; a tree of that
	// depth would hold more than any disk.
	maxDepth = 64
)

var order = binary.NativeEndian

// meta is what counts of a meta page.
type meta struct {
	pageSize, root, freelist, pages, txid uint64
}

// file is one run of Verify.
type file struct {
	r    io.ReaderAt
	size uint64
	meta
	used []bool // pages that something refers to
}

// Use tells how much of a file is in use, in bytes.
type Use struct {
	Reached int64 // by the last commit
	Total   int64 // to the last page that was ever reached, those that are free now included
}

// Verify reads a bbolt file of that many bytes and gives the first damage that
// it finds. An error of reading is given as such.
func Verify(r io.ReaderAt, size int64) error {
	_, err := Inspect(r, size)
	return err
}

// Inspect is Verify, and tells how much of the file is in use.
func Inspect(r io.ReaderAt, size int64) (Use, error) {
	m, err := readMeta(r, size)
	if err != nil {
		return Use{}, err
	}
	f := &file{r: r, size: uint64(size), meta: m}
	if f.pages < 2 || f.pages > f.size/f.pageSize {
		return Use{}, fmt.Errorf("%d pages of %d bytes are in use, the file has %d bytes", f.pages, f.pageSize, f.size)
	}
	f.used = make([]bool, f.pages)
	f.used[0], f.used[1] = true, true
	if err := f.tree(f.root, nil, nil, 0); err != nil {
		return Use{}, err
	}
	use := Use{Total: int64(f.pages * f.pageSize)}
	for _, used := range f.used {
		if used {
			use.Reached += int64(f.pageSize)
		}
	}
	return use, f.free()
}

// readMeta finds the meta page that counts. The place of the second depends on
// the page size, which the first may not tell any more.
func readMeta(r io.ReaderAt, size int64) (meta, error) {
	first, err := metaAt(r, 0)
	if err == nil {
		second, err := metaAt(r, int64(first.pageSize))
		if err == nil && second.txid > first.txid {
			return second, nil
		}
		return first, nil
	}
	for at := int64(minPageSize); at <= maxPageSize && at < size; at *= 2 {
		if second, err := metaAt(r, at); err == nil && int64(second.pageSize) == at {
			return second, nil
		}
	}
	return meta{}, fmt.Errorf("neither meta page is valid: %w", err)
}

func metaAt(r io.ReaderAt, at int64) (meta, error) {
	var page [headerSize + metaSize]byte
	if _, err := r.ReadAt(page[:], at); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return meta{}, err
	}
	b := page[headerSize:]
	sum := fnv.New64a()
	sum.Write(b[:summedSize])
	switch {
	case order.Uint32(b) != magic:
		return meta{}, errors.New("it is no bbolt file")
	case order.Uint32(b[4:]) != version:
		return meta{}, fmt.Errorf("its format has version %d, not %d", order.Uint32(b[4:]), version)
	case order.Uint64(b[summedSize:]) != sum.Sum64():
		return meta{}, errors.New("the checksum does not match")
	}
	m := meta{
		pageSize: uint64(order.Uint32(b[8:])), root: order.Uint64(b[16:]), freelist: order.Uint64(b[32:]),
		pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:]),
	}
	if m.pageSize < minPageSize || m.pageSize > maxPageSize || m.pageSize&(m.pageSize-1) != 0 {
		return meta{}, fmt.Errorf("a page size of %d bytes", m.pageSize)
	}
	return m, nil
}

// page is a page with those that belong to it.
type page struct {
	id    uint64
	flags uint16
	count uint64
	data  []byte
}

// read reads a page that nothing has referred to yet.
func (f *file) read(id uint64) (page, error) {
	var header [headerSize]byte
	if id < 2 || id >= f.pages {
		return page{}, fmt.Errorf("page %d is referred to, there are %d", id, f.pages)
	}
	if _, err := f.r.ReadAt(header[:], int64(id*f.pageSize)); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	p := page{id: id, flags: order.Uint16(header[8:]), count: uint64(order.Uint16(header[10:]))}
	if own := order.Uint64(header[:]); own != id {
		return page{}, fmt.Errorf("page %d says that it is page %d", id, own)
	}
	extent := 1 + uint64(order.Uint32(header[12:]))
	if extent > f.pages-id {
		return page{}, fmt.Errorf("page %d extends over %d pages, beyond the last of %d", id, extent, f.pages)
	}
	for i := id; i < id+extent; i++ {
		if f.used[i] {
			return page{}, fmt.Errorf("page %d is referred to twice", i)
		}
		f.used[i] = true
	}
	p.data = make([]byte, extent*f.pageSize)
	if _, err := f.r.ReadAt(p.data, int64(id*f.pageSize)); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	return p, nil
}

// tree visits a page and all below it. Its keys are to be from least on, and
// before limit if that is not nil.
func (f *file) tree(id uint64, least, limit []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is nested more than %d deep", id, maxDepth)
	}
	p, err := f.read(id)
	if err != nil {
		return err
	}
	switch p.flags {
	case flagLeaf:
		return f.leaf(p, least, limit, depth)
	case flagBranch:
		return f.branch(p, least, limit, depth)
	}
	return fmt.Errorf("page %d has flags %#x in place of a branch's or a leaf's", id, p.flags)
}

// part cuts a piece out of a page.
func (p page) part(what string, from, size uint64) ([]byte, error) {
	if end := from + size; end < from || end > uint64(len(p.data)) {
		return nil, fmt.Errorf("page %d: %s lies outside of it", p.id, what)
	}
	return p.data[from : from+size], nil
}

// inOrder checks the key of element i against what is before and behind. The
// first of a page is the one that the page above has for it: bbolt looks it up
// there when it writes the page anew.
func (p page) inOrder(i uint64, key, before, limit []byte) error {
	compared := bytes.Compare(before, key)
	if i == 0 && before != nil && compared != 0 || i > 0 && compared >= 0 || limit != nil && bytes.Compare(key, limit) >= 0 {
		return fmt.Errorf("page %d: key %d is out of order", p.id, i)
	}
	return nil
}

func (f *file) branch(p page, least, limit []byte, depth int) error {
	if p.count == 0 {
		return fmt.Errorf("page %d is a branch without a page below", p.id)
	}
	keys, below := make([][]byte, p.count), make([]uint64, p.count)
	before := least
	for i := range p.count {
		at := headerSize + i*elementSize
		element, err := p.part("an element", at, elementSize)
		if err != nil {
			return err
		}
		key, err := p.part("a key", at+uint64(order.Uint32(element)), uint64(order.Uint32(element[4:])))
		if err != nil {
			return err
		}
		if err := p.inOrder(i, key, before, limit); err != nil {
			return err
		}
		keys[i], below[i], before = key, order.Uint64(element[8:]), key
	}
	for i := range p.count {
		end := limit
		if i+1 < p.count {
			end = keys[i+1]
		}
		if err := f.tree(below[i], keys[i], end, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *file) leaf(p page, least, limit []byte, depth int) error {
	before := least
	for i := range p.count {
		at := headerSize + i*elementSize
		element, err := p.part("an element", at, elementSize)
		if err != nil {
			return err
		}
		flags, keySize := order.Uint32(element), uint64(order.Uint32(element[8:]))
		start := at + uint64(order.Uint32(element[4:]))
		key, err := p.part("a key", start, keySize)
		if err != nil {
			return err
		}
		value, err := p.part("a value", start+keySize, uint64(order.Uint32(element[12:])))
		if err != nil {
			return err
		}
		if len(key) == 0 || flags&^flagBucket != 0 {
			return fmt.Errorf("page %d: element %d has a key of %d bytes and flags %#x", p.id, i, len(key), flags)
		}
		if err := p.inOrder(i, key, before, limit); err != nil {
			return err
		}
		before = key
		if flags == flagBucket {
			if err := f.bucket(p, value, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// bucket visits a bucket whose header, and page if it is small, is a value in
// page p.
func (f *file) bucket(p page, value []byte, depth int) error {
	if len(value) < bucketSize {
		return fmt.Errorf("page %d: a bucket of %d bytes", p.id, len(value))
	}
	if root := order.Uint64(value); root != 0 {
		return f.tree(root, nil, nil, depth)
	}
	inline := page{id: p.id, data: value[bucketSize:]}
	if len(inline.data) < headerSize || order.Uint64(inline.data) != 0 || order.Uint16(inline.data[8:]) != flagLeaf || depth > maxDepth {
		return fmt.Errorf("page %d: a bucket within it is no leaf", p.id)
	}
	inline.count = uint64(order.Uint16(inline.data[10:]))
	return f.leaf(inline, nil, nil, depth)
}

// free looks at the list of free pages, if there is one: none of them may be in
// use.
func (f *file) free() error {
	if f.freelist == noFreelist {
		return nil
	}
	p, err := f.read(f.freelist)
	if err != nil {
		return err
	}
	if p.flags != flagFreelist {
		return fmt.Errorf("page %d has flags %#x in place of the freelist's", p.id, p.flags)
	}
	at, count := uint64(headerSize), p.count
	if count == 0xFFFF {
		first, err := p.part("the count of the freelist", at, 8)
		if err != nil {
			return err
		}
		at, count = at+8, order.Uint64(first)
	}
	if count > f.pages {
		return fmt.Errorf("page %d: %d pages are free, there are %d", p.id, count, f.pages)
	}
	ids, err := p.part("the freelist", at, 8*count)
	if err != nil {
		return err
	}
	for ; len(ids) > 0; ids = ids[8:] {
		id := order.Uint64(ids)
		if id >= f.pages || f.used[id] {
			return fmt.Errorf("page %d is free, but is in use or is none", id)
		}
		f.used[id] = true
	}
	return nil
}
