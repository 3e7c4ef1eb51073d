package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
)

// writeAnswer is an answer to a message of Write, as the vectors have it.
type writeAnswer struct {
	Action        string
	Digest        string
	HasTimes      bool `json:"has_times"`
	Offset, Total int64
}

// writeStep is one message of a stream of Write, and what comes of it.
type writeStep struct {
	Action, Ref, Expected, Data string
	Offset, Total               int64
	Labels                      map[string]string
	Answer                      *writeAnswer
	Error                       string
}

type contentVectors struct {
	Calls       []struct{ Case, Code string }
	IngestsLeft []string `json:"ingests_left"`
	ReadBlob    string   `json:"read_blob"`
	Read        []struct {
		Offset, Size int64
		End          string
		Parts        []struct {
			Data   string
			Offset int64
		}
	}
	Write []struct {
		Name, End string
		Steps     []writeStep
	}
}

// undigest turns "D(text)" into the digest of text.
func undigest(s string) string {
	if inner, ok := strings.CutPrefix(s, "D("); ok {
		return digest.FromString(strings.TrimSuffix(inner, ")")).String()
	}
	return s
}

func (s writeStep) request() *content.WriteContentRequest {
	return &content.WriteContentRequest{
		Action: content.WriteAction(content.WriteAction_value[s.Action]), Ref: s.Ref, Expected: undigest(s.Expected),
		Data: []byte(s.Data), Offset: s.Offset, Total: s.Total, Labels: s.Labels,
	}
}

func TestContentVectors(t *testing.T) {
	var v contentVectors
	readVectors(t, "content.json", &v)
	d := start(t)
	c := contentgrpc.NewContentClient(d)
	ctx := lease(t, d, "ns") // nothing else keeps what is written from collection

	busy, err := c.Write(ctx) // holds its ref while the others run
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Send(&content.WriteContentRequest{Ref: "busy"}); err != nil {
		t.Fatal(err)
	}
	if _, err := busy.Recv(); err != nil {
		t.Fatal(err)
	}
	for _, w := range v.Write {
		t.Run(w.Name, func(t *testing.T) { writeVector(ctx, t, d, w.Steps, w.End) })
	}
	for _, r := range v.Read {
		t.Run(fmt.Sprintf("read %d from %d", r.Size, r.Offset), func(t *testing.T) {
			s, err := c.Read(ctx, &content.ReadContentRequest{Digest: digest.FromString(v.ReadBlob).String(), Offset: r.Offset, Size: r.Size})
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range r.Parts {
				got, err := s.Recv()
				if err != nil || string(got.GetData()) != part.Data || got.GetOffset() != part.Offset {
					t.Errorf("got %v, error %v, want %v", got, err, part)
				}
			}
			_, err = s.Recv()
			if r.End == "OK" && !errors.Is(err, io.EOF) || r.End != "OK" && status.Code(err).String() != r.End {
				t.Errorf("ends with %v, want %s", err, r.End)
			}
		})
	}
	info, err := c.Info(ctx, &content.InfoRequest{Digest: digest.FromString(v.ReadBlob).String()})
	if err != nil || info.GetInfo().GetLabels()["a"] != "b" || info.GetInfo().GetSize() != int64(len(v.ReadBlob)) {
		t.Errorf("the committed blob is %v, error %v", info, err)
	}
	list, err := c.ListStatuses(ctx, &content.ListStatusesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, s := range list.GetStatuses() {
		left = append(left, s.GetRef())
	}
	sort.Strings(left)
	if diff := cmp.Diff(v.IngestsLeft, left); diff != "" {
		t.Errorf("ingests left: %s", diff)
	}
	if err := busy.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := busy.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	badContentCalls(t, d, v.Calls)
}

// writeVector sends the messages of one stream, each after the answer to the
// last.
func writeVector(ctx context.Context, t *testing.T, d *daemon, steps []writeStep, end string) {
	s, err := contentgrpc.NewContentClient(d).Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if err := s.Send(step.request()); err != nil {
			t.Fatal(err)
		}
		got, err := s.Recv()
		if step.Error != "" {
			if status.Code(err).String() != step.Error {
				t.Fatalf("step %d: got %v, error %v, want %s", i, got, err, step.Error)
			}
			return
		}
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		step.Answer.Digest = undigest(step.Answer.Digest)
		diff := cmp.Diff(*step.Answer, writeAnswer{
			Action: got.GetAction().String(), Digest: got.GetDigest(), Offset: got.GetOffset(), Total: got.GetTotal(),
			HasTimes: got.GetStartedAt() != nil && got.GetUpdatedAt() != nil,
		})
		if diff != "" {
			t.Errorf("step %d: %s", i, diff)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := s.Recv(); end == "OK" && !errors.Is(err, io.EOF) {
		t.Errorf("ends with %v", err)
	}
}

func badContentCalls(t *testing.T, d *daemon, calls []struct{ Case, Code string }) {
	c := contentgrpc.NewContentClient(d)
	ctx := in(t, "ns")
	absent := digest.FromString("nobody has this").String()
	do := map[string]func() error{
		"info: bad digest": func() error { _, err := c.Info(ctx, &content.InfoRequest{Digest: "sha256:zz"}); return err },
		"info: unknown":    func() error { _, err := c.Info(ctx, &content.InfoRequest{Digest: absent}); return err },
		"status: unknown":  func() error { _, err := c.Status(ctx, &content.StatusRequest{Ref: "nope"}); return err },
		"abort: unknown":   func() error { _, err := c.Abort(ctx, &content.AbortRequest{Ref: "nope"}); return err },
		"info: no namespace": func() error {
			_, err := c.Info(t.Context(), &content.InfoRequest{Digest: absent})
			return err
		},
		"update: bad digest": func() error {
			_, err := c.Update(ctx, &content.UpdateRequest{Info: &content.Info{Digest: "x"}})
			return err
		},
		"list: bad filter": func() error {
			s, err := c.List(ctx, &content.ListContentRequest{Filters: []string{"bad=="}})
			if err != nil {
				return err
			}
			_, err = s.Recv()
			return err
		},
	}
	for _, call := range calls {
		f := do[call.Case]
		if f == nil {
			t.Errorf("no test for %q", call.Case)
			continue
		}
		if err := f(); status.Code(err).String() != call.Code {
			t.Errorf("%s: %v, want %s", call.Case, err, call.Code)
		}
	}
}

// lease makes a lease and gives a context for calls under it.
func lease(t testing.TB, d *daemon, namespace string) context.Context {
	t.Helper()
	r, err := leasesgrpc.NewLeasesClient(d).Create(in(t, namespace), &leases.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return in(t, namespace, leaseHeader, r.GetLease().GetId())
}

// put commits a blob and gives its digest.
func put(ctx context.Context, t testing.TB, d *daemon, data []byte) digest.Digest {
	t.Helper()
	s, err := contentgrpc.NewContentClient(d).Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromBytes(data)
	for offset := 0; ; {
		n := min(readChunk, len(data)-offset)
		r := &content.WriteContentRequest{Ref: "put-" + dgst.String(), Action: content.WriteAction_WRITE, Offset: int64(offset), Data: data[offset : offset+n]}
		if offset += n; offset == len(data) {
			r.Action, r.Expected, r.Total = content.WriteAction_COMMIT, dgst.String(), int64(len(data))
		}
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		if r.Action == content.WriteAction_COMMIT {
			return dgst
		}
	}
}

func TestReadIsChunked(t *testing.T) {
	d := start(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), (2<<20+64<<10)/16)
	dgst := put(lease(t, d, "ns"), t, d, data)
	const from = 1000
	s, err := contentgrpc.NewContentClient(d).Read(in(t, "ns"), &content.ReadContentRequest{Digest: dgst.String(), Offset: from})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	var sizes []int
	for {
		part, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if part.GetOffset() != int64(len(got)) {
			t.Errorf("part at %d, want %d: offsets count from 0", part.GetOffset(), len(got))
		}
		got, sizes = append(got, part.GetData()...), append(sizes, len(part.GetData()))
	}
	if !bytes.Equal(got, data[from:]) {
		t.Error("other bytes than were written")
	}
	if last := len(sizes) - 1; last != len(data)/readChunk || slices.Max(sizes) > readChunk || slices.Min(sizes[:last]) < readChunk {
		t.Errorf("parts of %v", sizes)
	}
}

func TestContentListInBlocks(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "ns")
	var want []string
	for i := range 205 {
		want = append(want, put(ctx, t, d, fmt.Appendf(nil, "blob %d", i)).String())
	}
	slices.Sort(want)
	s, err := contentgrpc.NewContentClient(d).List(in(t, "ns"), &content.ListContentRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var sizes []int
	for {
		block, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(block.GetInfo()))
		for _, i := range block.GetInfo() {
			got = append(got, i.GetDigest())
		}
	}
	if !slices.Equal(got, want) || !slices.Equal(sizes, []int{100, 100, 5}) {
		t.Errorf("%d blobs in blocks of %v", len(got), sizes)
	}
}

func TestContentIsANamespacesOwn(t *testing.T) {
	d := start(t)
	c := contentgrpc.NewContentClient(d)
	dgst := put(lease(t, d, "a"), t, d, []byte("shared"))
	if _, err := c.Info(in(t, "b"), &content.InfoRequest{Digest: dgst.String()}); status.Code(err) != codes.NotFound {
		t.Errorf("another namespace's blob: %v", err)
	}
	// Who knows digest and size takes it without sending the bytes.
	s, err := c.Write(lease(t, d, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&content.WriteContentRequest{Ref: "r", Expected: dgst.String(), Total: 6}); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Recv(); err != nil || a.GetOffset() != 6 || a.GetDigest() != dgst.String() {
		t.Fatalf("stat: %v, error %v", a, err)
	}
	if err := s.Send(&content.WriteContentRequest{Action: content.WriteAction_COMMIT, Offset: 6, Expected: dgst.String(), Total: 6}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Info(in(t, "b"), &content.InfoRequest{Digest: dgst.String()}); err != nil {
		t.Error(err)
	}
}

// The lease in the header takes what is written, also what was there already.
func TestWriteJoinsTheLease(t *testing.T) {
	d := start(t)
	l := leasesgrpc.NewLeasesClient(d)
	for _, id := range []string{"l1", "l2"} {
		if _, err := l.Create(in(t, "ns"), &leases.CreateRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	dgst := put(in(t, "ns", leaseHeader, "l1"), t, d, []byte("leased")).String()
	s, err := contentgrpc.NewContentClient(d).Write(in(t, "ns", leaseHeader, "l2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&content.WriteContentRequest{Ref: "r", Expected: dgst}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a blob that is there: %v", err)
	}
	for _, id := range []string{"l1", "l2"} {
		r, err := l.ListResources(in(t, "ns"), &leases.ListResourcesRequest{Id: id})
		if err != nil || len(r.GetResources()) != 1 || r.GetResources()[0].GetId() != dgst || r.GetResources()[0].GetType() != "content" {
			t.Errorf("lease %s holds %v, error %v", id, r.GetResources(), err)
		}
	}
}
