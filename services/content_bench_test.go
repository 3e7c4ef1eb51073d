package services

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
)

// benchBlob is what the benchmarks move: as much as containerd's client sends
// and asks for at a time, many times.
const benchBlob = 64 << 20

func noise(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// BenchmarkContentWrite writes as containerd's client does: a message of 1 MiB,
// then its answer.
func BenchmarkContentWrite(b *testing.B) {
	d := start(b)
	c := contentgrpc.NewContentClient(d)
	ctx := in(b, "ns")
	chunk := noise(1 << 20)
	b.SetBytes(benchBlob)
	for b.Loop() {
		s, err := c.Write(ctx)
		if err != nil {
			b.Fatal(err)
		}
		for offset := int64(0); offset < benchBlob; offset += int64(len(chunk)) {
			if err := s.Send(&content.WriteContentRequest{Ref: "r", Action: content.WriteAction_WRITE, Offset: offset, Data: chunk}); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Recv(); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.CloseSend(); err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = s.Recv()
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		if _, err := c.Abort(ctx, &content.AbortRequest{Ref: "r"}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkContentRead reads as containerd's client does: a call for each MiB.
func BenchmarkContentRead(b *testing.B) {
	d := start(b)
	c := contentgrpc.NewContentClient(d)
	dgst := put(lease(b, d, "ns"), b, d, noise(benchBlob))
	ctx := in(b, "ns")
	buf := make([]byte, 1<<20)
	b.SetBytes(benchBlob)
	for b.Loop() {
		for offset := int64(0); offset < benchBlob; offset += int64(len(buf)) {
			s, err := c.Read(ctx, &content.ReadContentRequest{Digest: dgst.String(), Offset: offset, Size: int64(len(buf))})
			if err != nil {
				b.Fatal(err)
			}
			for n := 0; n < len(buf); {
				part, err := s.Recv()
				if err != nil {
					b.Fatal(err)
				}
				n += copy(buf[n:], part.GetData())
			}
		}
	}
	if digest.FromBytes(buf) == "" {
		b.Fatal("nothing")
	}
}
