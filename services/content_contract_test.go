package services

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/content/v1/contentgrpc"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/services/leases/v1/leasesgrpc"
)

// The sentences of the contract on content that no vector shows, each over the
// wire.

// said is one message of Write and what it gets: a code, or where the ingest
// stands afterwards and the digest of what is there.
type said struct {
	r    *content.WriteContentRequest
	code codes.Code
	at   int64
	text string
}

func wstat(ref, expected string, total int64) *content.WriteContentRequest {
	return &content.WriteContentRequest{Action: content.WriteAction_STAT, Ref: ref, Expected: expected, Total: total}
}

func wdata(offset int64, data string) *content.WriteContentRequest {
	return &content.WriteContentRequest{Action: content.WriteAction_WRITE, Offset: offset, Data: []byte(data)}
}

func wcommit(offset int64, expected string, total int64) *content.WriteContentRequest {
	return &content.WriteContentRequest{Action: content.WriteAction_COMMIT, Offset: offset, Expected: expected, Total: total}
}

func of(text string) string { return digest.FromString(text).String() }

// converse sends messages over one stream and compares what they get.
func converse(ctx context.Context, t *testing.T, d *daemon, messages ...said) {
	t.Helper()
	s, err := contentgrpc.NewContentClient(d).Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range messages {
		if err := s.Send(m.r); err != nil {
			t.Fatal(err)
		}
		a, err := s.Recv()
		if status.Code(err) != m.code {
			t.Fatalf("message %d: %v, want %s", i, err, m.code)
		}
		if err != nil {
			return
		}
		want := digest.FromString(m.text).String()
		if digest.Digest(a.GetDigest()).Algorithm() == digest.SHA512 {
			want = digest.SHA512.FromString(m.text).String()
		}
		if a.GetOffset() != m.at || a.GetDigest() != want {
			t.Errorf("message %d: at %d with %s, want %d with that of %q", i, a.GetOffset(), a.GetDigest(), m.at, m.text)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
}

// refs lists the ingests of a namespace with what is in them.
func refs(t *testing.T, d *daemon, namespace string, filters ...string) map[string]int64 {
	t.Helper()
	list, err := contentgrpc.NewContentClient(d).ListStatuses(in(t, namespace), &content.ListStatusesRequest{Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, s := range list.GetStatuses() {
		out[s.GetRef()] = s.GetOffset()
	}
	return out
}

func TestWriteContract(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "ns")
	put(ctx, t, d, []byte("there"))
	cases := []struct {
		name     string
		messages []said
		left     map[string]int64
	}{
		{"a ref counts on the first message alone", []said{
			{r: wstat("a", "", 0)},
			{r: &content.WriteContentRequest{Action: content.WriteAction_WRITE, Ref: "b", Data: []byte("x")}, at: 1, text: "x"},
		}, map[string]int64{"a": 1}},
		{"any message may tell a digest that is there, and ends it", []said{
			{r: wstat("c", "", 0)}, {r: wdata(0, "xy"), at: 2, text: "xy"},
			{r: wstat("", of("there"), 0), code: codes.AlreadyExists},
		}, map[string]int64{}},
		{"a negative offset is out of range", []said{{r: wstat("d", "", 0)}, {r: wdata(-1, "x"), code: codes.OutOfRange}}, map[string]int64{"d": 0}},
		{"an offset beyond the end is", []said{{r: wstat("d", "", 0)}, {r: wdata(1, "x"), code: codes.OutOfRange}}, map[string]int64{"d": 0}},
		{"so is one on a commit", []said{{r: wstat("d", "", 0)}, {r: wcommit(1, "", 0), code: codes.OutOfRange}}, map[string]int64{"d": 0}},
		{"offset 0 begins anew", []said{
			{r: wstat("e", "", 0)}, {r: wdata(0, "one"), at: 3, text: "one"}, {r: wdata(0, "other"), at: 5, text: "other"},
			{r: wcommit(5, of("other"), 5), at: 5, text: "other"},
		}, map[string]int64{}},
		{"data comes with the commit, and offset 0 begins anew there too", []said{
			{r: wstat("f", "", 0)}, {r: wdata(0, "one"), at: 3, text: "one"},
			{r: &content.WriteContentRequest{Action: content.WriteAction_COMMIT, Data: []byte("two")}, at: 3, text: "two"},
		}, map[string]int64{}},
		{"the last total counts", []said{
			{r: wstat("g", "", 10)}, {r: wdata(0, "three"), at: 5, text: "three"}, {r: wcommit(5, "", 5), at: 5, text: "three"},
		}, map[string]int64{}},
		{"a wrong size is no commit", []said{
			{r: wstat("h", "", 0)}, {r: wdata(0, "four"), at: 4, text: "four"}, {r: wcommit(4, "", 5), code: codes.FailedPrecondition},
		}, map[string]int64{"h": 4}},
		{"nor is a wrong digest, after a total that is not repeated", []said{
			{r: wstat("h", "", 0), at: 4, text: "four"}, {r: wcommit(4, of("five"), 4), code: codes.FailedPrecondition},
		}, map[string]int64{"h": 4}},
		{"nor one that is none, which is no error before", []said{
			{r: wstat("h", "sha256:zz", 0), at: 4, text: "four"}, {r: wcommit(4, "", 4), code: codes.FailedPrecondition},
		}, map[string]int64{"h": 4}},
		{"the ingest is there for a right commit", []said{{r: wstat("h", "", 0), at: 4, text: "four"}, {r: wcommit(4, of("four"), 4), at: 4, text: "four"}}, map[string]int64{}},
		{"another total begins anew", []said{{r: wstat("i", "", 9)}, {r: wdata(0, "five"), at: 4, text: "five"}}, map[string]int64{"i": 4}},
		{"as is said with the next stream", []said{{r: wstat("i", "", 8)}}, map[string]int64{"i": 0}},
		{"the algorithm is that of the digest at the open", []said{
			{r: wstat("j", digest.SHA512.FromString("six").String(), 0)}, {r: wdata(0, "six"), at: 3, text: "six"},
			{r: wcommit(3, "", 0), at: 3, text: "six"},
		}, map[string]int64{}},
		{"or of the commit", []said{
			{r: wstat("k", "", 0)}, {r: wdata(0, "seven"), at: 5, text: "seven"},
			{r: wcommit(5, digest.SHA512.FromString("seven").String(), 0), at: 5, text: "seven"},
		}, map[string]int64{}},
		{"an unknown action is an error", []said{{r: wstat("l", "", 0)}, {r: &content.WriteContentRequest{Action: 7}, code: codes.InvalidArgument}}, map[string]int64{"l": 0}},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			converse(ctx, t, d, c.messages...)
			left := refs(t, d, "ns")
			if diff := cmp.Diff(c.left, left); diff != "" {
				t.Errorf("ingests left: %s", diff)
			}
			for ref := range left {
				if i+1 == len(cases) || cases[i+1].messages[0].r.GetRef() != ref {
					abort(t, d, ref)
				}
			}
		})
	}
}

func abort(t *testing.T, d *daemon, ref string) {
	t.Helper()
	if _, err := contentgrpc.NewContentClient(d).Abort(in(t, "ns"), &content.AbortRequest{Ref: ref}); err != nil {
		t.Error(err)
	}
}

// TestBrokenStream: a stream that breaks off keeps the ingest, and its ref is
// free for the next one, which goes on where the last one was.
func TestBrokenStream(t *testing.T) {
	d := start(t)
	c := contentgrpc.NewContentClient(d)
	ctx, cancel := context.WithCancel(lease(t, d, "ns"))
	s, err := c.Write(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*content.WriteContentRequest{wstat("r", "", 11), wdata(0, "hello ")} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("a stream that was broken off: %v", err)
	}
	// The server learns of it some time later. Clients wait for that, too.
	for {
		s, err = c.Write(lease(t, d, "ns"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(wstat("r", "", 11)); err != nil {
			t.Fatal(err)
		}
		a, err := s.Recv()
		if status.Code(err) == codes.Unavailable {
			continue
		}
		if err != nil || a.GetOffset() != 6 || a.GetTotal() != 11 || a.GetDigest() != of("hello ") || a.GetStartedAt() == nil || a.GetUpdatedAt() == nil {
			t.Fatalf("%v, %v", a, err)
		}
		break
	}
	for _, r := range []*content.WriteContentRequest{wdata(6, "world"), wcommit(11, of("hello world"), 11)} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForeignBlob: what another namespace has is not there, and what is not a
// digest is said to be none.
func TestForeignBlob(t *testing.T) {
	d := start(t)
	c := contentgrpc.NewContentClient(d)
	dgst := put(lease(t, d, "a"), t, d, []byte("of a")).String()
	for name, want := range map[string]struct {
		digest string
		code   codes.Code
	}{
		"another's": {dgst, codes.NotFound}, "unknown": {of("nobody's"), codes.NotFound},
		"malformed": {"sha256:zz", codes.InvalidArgument}, "empty": {"", codes.InvalidArgument}, "no algorithm": {"abc", codes.InvalidArgument},
	} {
		ctx := in(t, "b")
		_, info := c.Info(ctx, &content.InfoRequest{Digest: want.digest})
		_, update := c.Update(ctx, &content.UpdateRequest{Info: &content.Info{Digest: want.digest}})
		_, del := c.Delete(ctx, &content.DeleteContentRequest{Digest: want.digest})
		s, err := c.Read(ctx, &content.ReadContentRequest{Digest: want.digest})
		if err == nil {
			_, err = s.Recv()
		}
		for call, err := range map[string]error{"info": info, "update": update, "delete": del, "read": err} {
			if status.Code(err) != want.code {
				t.Errorf("%s of what is %s: %v, want %s", call, name, err, want.code)
			}
		}
	}
}

// TestLabelsAreANamespacesOwn, and times; the size is the blob's.
func TestLabelsAreANamespacesOwn(t *testing.T) {
	d := start(t)
	c := contentgrpc.NewContentClient(d)
	dgst := put(lease(t, d, "a"), t, d, []byte("shared")).String()
	put(lease(t, d, "b"), t, d, []byte("shared"))
	before, err := c.Info(in(t, "b"), &content.InfoRequest{Digest: dgst})
	if err != nil {
		t.Fatal(err)
	}
	given := &content.Info{Digest: dgst, Labels: map[string]string{"x": "1", "y": "2"}, Size: 99}
	after, err := c.Update(in(t, "a"), &content.UpdateRequest{Info: given, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.x"}}})
	if err != nil || after.GetInfo().GetSize() != 6 || len(after.GetInfo().GetLabels()) != 1 ||
		!after.GetInfo().GetUpdatedAt().AsTime().After(after.GetInfo().GetCreatedAt().AsTime()) {
		t.Errorf("%v, %v", after, err)
	}
	now, err := c.Info(in(t, "b"), &content.InfoRequest{Digest: dgst})
	if err != nil || len(now.GetInfo().GetLabels()) > 0 || !now.GetInfo().GetUpdatedAt().AsTime().Equal(before.GetInfo().GetUpdatedAt().AsTime()) {
		t.Errorf("%v, %v", now, err)
	}
	for filter, want := range map[string]int{"labels.x==1": 1, "labels.x==2": 0, "digest==" + dgst: 1, "digest~=/zz/": 0, "labels.x,digest~=sha256": 1, "size==6": 0} {
		s, err := c.List(in(t, "a"), &content.ListContentRequest{Filters: []string{filter}})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for r, err := s.Recv(); !errors.Is(err, io.EOF); r, err = s.Recv() {
			if err != nil {
				t.Fatal(err)
			}
			got += len(r.GetInfo())
		}
		if got != want {
			t.Errorf("%s: %d blobs, want %d", filter, got, want)
		}
	}
}

// TestIngestAndLease: the ingest is the lease's until the commit makes it the
// blob's; a lease that is not there is NotFound, before anything is written.
func TestIngestAndLease(t *testing.T) {
	d := start(t)
	l := leasesgrpc.NewLeasesClient(d)
	if _, err := l.Create(in(t, "ns"), &leases.CreateRequest{Id: "l"}); err != nil {
		t.Fatal(err)
	}
	holds := func(want ...string) {
		t.Helper()
		r, err := l.ListResources(in(t, "ns"), &leases.ListResourcesRequest{Id: "l"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range r.GetResources() {
			got = append(got, r.GetType()+" "+r.GetId())
		}
		if !slices.Equal(got, want) {
			t.Errorf("the lease holds %q, want %q", got, want)
		}
	}
	ctx := in(t, "ns", leaseHeader, "l")
	converse(ctx, t, d, said{r: wstat("r", "", 0)}, said{r: wdata(0, "x"), at: 1, text: "x"})
	holds("ingests r")
	converse(ctx, t, d, said{r: wstat("r", "", 0), at: 1, text: "x"}, said{r: wcommit(1, "", 0), at: 1, text: "x"})
	holds("content " + of("x"))
	// Known to exist only at the commit.
	put(lease(t, d, "ns"), t, d, []byte("y"))
	converse(ctx, t, d, said{r: wstat("s", "", 0)}, said{r: wdata(0, "y"), at: 1, text: "y"}, said{r: wcommit(1, "", 0), code: codes.AlreadyExists})
	want := []string{"content " + of("x"), "content " + of("y")}
	slices.Sort(want)
	holds(want...)
	converse(ctx, t, d, said{r: wstat("gone", "", 0)})
	abort(t, d, "gone") // without the lease: its entry stays, and keeps nothing
	for _, r := range []*content.WriteContentRequest{wstat("n", "", 0), wstat("n", of("x"), 0)} {
		converse(in(t, "ns", leaseHeader, "none"), t, d, said{r: r, code: codes.NotFound})
	}
	if left := refs(t, d, "ns"); len(left) > 0 {
		t.Errorf("ingests left: %v", left)
	}
	if left := refs(t, d, "ns", "ref==r"); len(left) > 0 {
		t.Errorf("ingests left: %v", left)
	}
}

// TestSharing takes a blob from another namespace, over the wire, as far as the
// policy has it; what is written onto it is copied first.
func TestSharing(t *testing.T) {
	d := start(t)
	ctx := lease(t, d, "b")
	put(lease(t, d, "a"), t, d, []byte("shared"))
	for _, c := range []struct {
		name     string
		messages []said
	}{
		{"another size is not offered it", []said{{r: wstat("o", of("shared"), 7)}}},
		{"appended to", []said{
			{r: wstat("p", of("shared"), 0), at: 6, text: "shared"}, {r: wdata(6, "!"), at: 7, text: "shared!"},
			{r: wcommit(7, of("shared!"), 7), at: 7, text: "shared!"},
		}},
		{"written anew", []said{
			{r: wstat("q", of("shared"), 6), at: 6, text: "shared"}, {r: wdata(0, "new"), at: 3, text: "new"},
			{r: wcommit(3, of("new"), 3), at: 3, text: "new"},
		}},
		{"not taken as another", []said{{r: wstat("s", of("shared"), 6), at: 6, text: "shared"}, {r: wcommit(6, of("else"), 6), code: codes.FailedPrecondition}}},
		{"taken", []said{{r: wstat("t", of("shared"), 6), at: 6, text: "shared"}, {r: wcommit(6, of("shared"), 6), at: 6, text: "shared"}}},
		{"there by now", []said{{r: wstat("u", of("shared"), 6), code: codes.AlreadyExists}}},
	} {
		t.Run(c.name, func(t *testing.T) { converse(ctx, t, d, c.messages...) })
	}
}
