package services

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/content/v1"
)

// FuzzWriteMessage reads messages as protobuf does, in pieces of any size.
func FuzzWriteMessage(f *testing.F) {
	for _, r := range []*content.WriteContentRequest{
		{},
		{Action: content.WriteAction_COMMIT, Ref: "r", Total: 7, Expected: "sha256:x", Offset: -1, Data: []byte("data"), Labels: map[string]string{"a": "b"}},
		{Data: bytes.Repeat([]byte("0123456789"), 1000), Offset: 1 << 40},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(5))
		f.Add(append(b, b...), uint16(1000)) // fields that come twice
		f.Add(append(b, 0xff), uint16(1))
	}
	f.Add([]byte{0x37, 0x36, 1, 'x'}, uint16(1)) // data of another type; groups
	f.Add([]byte{0x33, 0x34}, uint16(1))
	codec := newBulkCodec()
	var m writeMessage
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		var pieces mem.BufferSlice
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(piece)+1)
			pieces, rest = append(pieces, mem.SliceBuffer(rest[:n])), rest[n:]
		}
		want := &content.WriteContentRequest{}
		wanted := proto.Unmarshal(b, want)
		got := codec.Unmarshal(pieces, &m)
		if (wanted == nil) != (got == nil) {
			t.Fatalf("%v, want %v", got, wanted)
		}
		if wanted != nil {
			return
		}
		if diff := cmp.Diff(want, &m.request, protocmp.Transform()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestPart: what is written here is what protobuf reads.
func TestPart(t *testing.T) {
	for _, want := range []*content.ReadContentResponse{
		{}, {Offset: 1 << 33}, {Data: []byte("x")}, {Offset: 256 << 10, Data: bytes.Repeat([]byte("0123456789"), 9999)},
	} {
		p := &part{offset: want.Offset, data: partPool.Get(len(want.Data))}
		copy(*p.data, want.Data)
		out, err := newBulkCodec().Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		got := &content.ReadContentResponse{}
		if err := proto.Unmarshal(out.Materialize(), got); err != nil {
			t.Fatal(err)
		}
		if got.Offset != want.Offset || !bytes.Equal(got.Data, want.Data) {
			t.Errorf("%d bytes at %d, want %d at %d", len(got.Data), got.Offset, len(want.Data), want.Offset)
		}
		out.Free()
	}
}

// TestStoredContainer: so is a container as it is stored.
func TestStoredContainer(t *testing.T) {
	for _, want := range []*containers.Container{{}, {Id: "c", Labels: map[string]string{"a": "b"}, Image: "i"}} {
		stored, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		out, err := newBulkCodec().Marshal(storedContainer(stored))
		if err != nil {
			t.Fatal(err)
		}
		got := &containers.ListContainerMessage{}
		if err := proto.Unmarshal(out.Materialize(), got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.GetContainer(), protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
}
