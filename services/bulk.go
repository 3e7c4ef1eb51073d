package services

import (
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/services/content/v1"
)

// The bytes of content make up nearly all that passes the API. The messages that
// carry them are read from and written to the wire here: protobuf would copy
// them twice on each way, into memory that it has cleared before.

const (
	// Numbers of fields.
	writeData            = 6
	partOffset, partData = 1, 2
	listedContainer      = 1

	maxPartHeader    = 32            // bytes
	firstWriteBuffer = 1<<20 + 4<<10 // what containerd's client sends at once, and the rest of the message
	keptWriteBuffer  = 2 << 20       // a larger one is not kept for the next stream
)

// bulkCodec is protobuf's codec but for these messages.
type bulkCodec struct{ encoding.CodecV2 }

func newBulkCodec() bulkCodec { return bulkCodec{encoding.GetCodecV2(protocodec.Name)} }

// Marshal implements encoding.CodecV2.
func (c bulkCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch v := v.(type) {
	case *part:
		return v.marshal(), nil
	case storedContainer:
		return v.marshal(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c bulkCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*writeMessage); ok {
		return m.unmarshal(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// part is a content.ReadContentResponse. Its data are the wire's once it is
// sent.
type part struct {
	offset int64
	data   *[]byte // from partPool
}

func (p *part) marshal() mem.BufferSlice {
	header := make([]byte, 0, maxPartHeader)
	if p.offset != 0 {
		header = protowire.AppendTag(header, partOffset, protowire.VarintType)
		header = protowire.AppendVarint(header, uint64(p.offset))
	}
	header = protowire.AppendTag(header, partData, protowire.BytesType)
	header = protowire.AppendVarint(header, uint64(len(*p.data)))
	return mem.BufferSlice{mem.SliceBuffer(header), mem.NewBuffer(p.data, &partPool)}
}

// storedContainer is a containers.ListContainerMessage: the message that is
// stored is the one that is sent.
type storedContainer []byte

func (c storedContainer) marshal() mem.BufferSlice {
	header := protowire.AppendTag(make([]byte, 0, maxPartHeader), listedContainer, protowire.BytesType)
	return mem.BufferSlice{mem.SliceBuffer(protowire.AppendVarint(header, uint64(len(c)))), mem.SliceBuffer(c)}
}

// partPool has buffers for parts.
var partPool = bufferPool{size: readChunk}

// bufferPool is a mem.BufferPool of buffers of one size.
type bufferPool struct {
	size int
	pool sync.Pool
}

// Get implements mem.BufferPool. A length beyond the pool's size gets a buffer of
// its own.
func (p *bufferPool) Get(length int) *[]byte {
	b, ok := p.pool.Get().(*[]byte)
	if !ok || cap(*b) < length {
		fresh := make([]byte, max(p.size, length))
		b = &fresh
	}
	*b = (*b)[:length]
	return b
}

// Put implements mem.BufferPool.
func (p *bufferPool) Put(b *[]byte) { p.pool.Put(b) }

// writeMessage is a content.WriteContentRequest whose data are those of a buffer
// that the next message is read into.
type writeMessage struct {
	request content.WriteContentRequest
	buf     *[]byte
}

// writePool has buffers for messages.
var writePool = bufferPool{size: firstWriteBuffer}

// release lets go of the buffer. The message must not be used any more.
func (m *writeMessage) release() {
	m.request.Data = nil
	if m.buf != nil && cap(*m.buf) <= keptWriteBuffer {
		writePool.Put(m.buf)
	}
	m.buf = nil
}

func (m *writeMessage) unmarshal(data mem.BufferSlice) error {
	n := data.Len()
	if m.buf == nil || cap(*m.buf) < n {
		m.release()
		m.buf = writePool.Get(n)
	}
	b := (*m.buf)[:n]
	data.CopyTo(b)
	return parseWrite(b, &m.request)
}

// parseWrite reads a message whose data stay where they are.
func parseWrite(b []byte, r *content.WriteContentRequest) error {
	var rest, bulk []byte
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("write request: %w", protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(number, kind, b[n:])
		if size < 0 {
			return fmt.Errorf("write request: %w", protowire.ParseError(size))
		}
		if number == writeData && kind == protowire.BytesType {
			bulk, _ = protowire.ConsumeBytes(b[n:])
		} else {
			rest = append(rest, b[:n+size]...)
		}
		b = b[n+size:]
	}
	if err := proto.Unmarshal(rest, r); err != nil { // which resets it
		return err
	}
	r.Data = bulk
	return nil
}

// sendPart streams what a reader has, in parts whose offsets count from 0.
func sendPart(from io.ReaderAt, offset, size int64, send func(any) error) error {
	for sent := int64(0); sent < size; {
		p := &part{offset: sent, data: partPool.Get(int(min(readChunk, size-sent)))}
		n, err := from.ReadAt(*p.data, offset+sent)
		if n < len(*p.data) {
			partPool.Put(p.data)
			return fmt.Errorf("read content: %w", err)
		}
		if err := send(p); err != nil {
			return err
		}
		sent += int64(n)
	}
	return nil
}
