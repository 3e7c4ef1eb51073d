package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	snapshotsapi "github.com/berthd/berth/api/services/snapshots/v1"
	"github.com/berthd/berth/api/services/snapshots/v1/snapshotsgrpc"
	transferapi "github.com/berthd/berth/api/services/transfer/v1"
	"github.com/berthd/berth/api/services/transfer/v1/transfergrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/transfer"
	bytestreams "github.com/berthd/berth/internal/streams"
	"github.com/berthd/berth/metadata"
)

// moving is a transfer, with the streams that the test has opened for it.
type moving struct {
	t        *testing.T
	d        *daemon
	ctx      context.Context
	progress []*transfer.Progress
}

func newMoving(t *testing.T, d *daemon) *moving {
	ctx, cancel := context.WithCancel(in(t, "ns"))
	t.Cleanup(cancel)
	return &moving{t: t, d: d, ctx: ctx}
}

// do transfers, and returns when the progress has ended too.
func (m *moving) do(from, to proto.Message) error {
	m.t.Helper()
	m.progress = nil
	progress := mustStream(m.ctx, m.t, m.d, "progress")
	ended := make(chan error, 1)
	go func() {
		for {
			a, err := progress.Recv()
			if err != nil {
				ended <- err
				return
			}
			p := &transfer.Progress{}
			if err := proto.Unmarshal(a.GetValue(), p); err != nil {
				ended <- err
				return
			}
			m.progress = append(m.progress, p)
		}
	}()
	_, err := transfergrpc.NewTransferClient(m.d).Transfer(m.ctx, &transferapi.TransferRequest{
		Source: packed(m.t, from), Destination: packed(m.t, to), Options: &transferapi.TransferOptions{ProgressStream: "progress"},
	})
	if last := <-ended; !errors.Is(last, io.EOF) {
		m.t.Errorf("the progress ended with %v", last)
	}
	return err
}

// send opens a stream that gives data, and tells whether all of it was taken.
func (m *moving) send(id string, data []byte) (taken func() error) {
	s := mustStream(m.ctx, m.t, m.d, id)
	sent := make(chan error, 1)
	go func() {
		w := bytestreams.NewWriter(s)
		_, err := io.Copy(w, bytes.NewReader(data))
		if err == nil {
			err = s.CloseSend()
		}
		sent <- err
	}()
	return func() error { return <-sent }
}

// receive opens a stream, and gives what came over it once it has ended.
func (m *moving) receive(id string) func() ([]byte, error) {
	s := mustStream(m.ctx, m.t, m.d, id)
	type got struct {
		data []byte
		err  error
	}
	all := make(chan got, 1)
	go func() {
		data, err := io.ReadAll(bytestreams.NewReader(s))
		all <- got{data, err}
	}()
	return func() ([]byte, error) {
		g := <-all
		return g.data, g.err
	}
}

func (m *moving) events() string {
	var all []string
	for _, p := range m.progress {
		if p.GetName() == "" || p.GetEvent() == "saved" {
			all = append(all, strings.TrimSpace(p.GetEvent()+" "+p.GetName()))
		}
	}
	return strings.Join(all, ", ")
}

func (m *moving) images() (all []string) {
	list, err := imagesgrpc.NewImagesClient(m.d).List(m.ctx, &images.ListImagesRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, i := range list.GetImages() {
		all = append(all, i.GetName())
	}
	return all
}

// importTo is where ctr and nerdctl have an archive imported to.
func importTo() *transfer.ImageStore {
	return &transfer.ImageStore{
		ExtraReferences: []*transfer.ImageReference{{Name: "import-2026-11-21", IsPrefix: true, AllowOverwrite: true}},
		Unpacks:         []*transfer.UnpackConfiguration{{Snapshotter: ""}},
		Platforms:       []*types.Platform{{}},
	}
}

func TestTransferArchives(t *testing.T) {
	d := start(t)
	m := newMoving(t, d)
	m.send("in", archive(t, "docker.io/library/many:1", 5))
	if err := m.do(&transfer.ImageImportStream{Stream: "in"}, importTo()); err != nil {
		t.Fatal(err)
	}
	if got := m.events(); got != "Importing, saved docker.io/library/many:1, Completed import" {
		t.Errorf("events: %s", got)
	}
	layers := 0
	for _, p := range m.progress {
		if p.GetEvent() == "extracted" && strings.HasPrefix(p.GetName(), "layer-sha256:") {
			layers++
		}
	}
	if layers != 5 {
		t.Errorf("%d layers were extracted: %v", layers, m.progress)
	}
	list, err := snapshotsgrpc.NewSnapshotsClient(d).List(m.ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: "native"})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := list.Recv(); err != nil || len(r.GetInfo()) != 5 {
		t.Errorf("snapshots %v, %v", r, err)
	}

	// Another name, then both as an archive, which gives the same images elsewhere.
	if err := m.do(&transfer.ImageStore{Name: "docker.io/library/many:1"}, &transfer.ImageStore{Name: "other:2", Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	i, err := imagesgrpc.NewImagesClient(d).Get(m.ctx, &images.GetImageRequest{Name: "other:2"})
	if err != nil || i.GetImage().GetLabels()["a"] != "b" {
		t.Errorf("tagged: %v, %v", i, err)
	}
	rest := m.receive("out")
	err = m.do(&transfer.ImageStore{ExtraReferences: []*transfer.ImageReference{{Name: "docker.io/library/many:1"}, {Name: "other:2"}}}, &transfer.ImageExportStream{Stream: "out"})
	out, ended := rest()
	if err != nil || ended != nil {
		t.Fatal(err, ended)
	}
	if got := m.events(); got != "Exporting, Completed export" {
		t.Errorf("events: %s", got)
	}
	again := newMoving(t, d)
	taken := again.send("again", append(out, make([]byte, 1<<20)...))
	to := importTo()
	to.Unpacks, to.Name = nil, "whole:1"
	if err := again.do(&transfer.ImageImportStream{Stream: "again"}, to); err != nil {
		t.Fatal(err)
	}
	if err := taken(); err != nil {
		t.Errorf("what follows the archive was not taken: %v", err)
	}
	if got := again.images(); !slices.Equal(got, []string{"docker.io/library/many:1", "docker.io/library/other:2", "other:2", "whole:1"}) {
		t.Errorf("images %v", got)
	}
}

// The bytes of a stream go to another as they are.
func TestTransferEcho(t *testing.T) {
	d := start(t)
	for _, size := range []int{0, 1, 70_000, 1 << 20} {
		m := newMoving(t, d)
		in, out := fmt.Sprint("in ", size), fmt.Sprint("out ", size) // the last one's are given back a moment after its end
		data := bytes.Repeat([]byte("echo"), size/4)
		m.send(in, data)
		rest := m.receive(out)
		err := m.do(&transfer.ImageImportStream{Stream: in}, &transfer.ImageExportStream{Stream: out})
		got, ended := rest()
		if err != nil || ended != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes: %d came back, %v, %v", len(data), len(got), err, ended)
		}
	}
}

// What does not go together, or is not there.
func TestBadTransfers(t *testing.T) {
	d := start(t)
	m := newMoving(t, d)
	store, registry := &transfer.ImageStore{Name: "a:1"}, &transfer.OCIRegistry{Reference: "127.0.0.1:1/a:1"}
	out := &transfer.ImageExportStream{Stream: "none"}
	mustStream(m.ctx, t, d, "1")
	mustStream(m.ctx, t, d, "2")
	for name, c := range map[string]struct {
		from, to proto.Message
		want     codes.Code
	}{
		"registry to registry":  {registry, registry, codes.Unimplemented},
		"stream to registry":    {&transfer.ImageImportStream{}, registry, codes.Unimplemented},
		"unknown":               {&emptypb.Empty{}, store, codes.Unimplemented},
		"no registries":         {registry, store, codes.Unimplemented},
		"no such image":         {store, &transfer.ImageStore{Name: "b:1"}, codes.NotFound},
		"no such import stream": {&transfer.ImageImportStream{Stream: "none"}, store, codes.NotFound},
		"no such export stream": {store, out, codes.NotFound},
		"import of what":        {&transfer.ImageImportStream{Stream: "1", MediaType: "text/plain"}, store, codes.Unimplemented},
		"nameless reference":    {&transfer.ImageImportStream{Stream: "2"}, &transfer.ImageStore{ExtraReferences: []*transfer.ImageReference{{}}}, codes.InvalidArgument},
	} {
		if err := m.do(c.from, c.to); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	client := transfergrpc.NewTransferClient(d)
	for name, c := range map[string]struct {
		r    *transferapi.TransferRequest
		want codes.Code
	}{
		"nothing":        {&transferapi.TransferRequest{}, codes.InvalidArgument},
		"no destination": {&transferapi.TransferRequest{Source: packed(t, store)}, codes.InvalidArgument},
		"no such progress": {&transferapi.TransferRequest{
			Source: packed(t, store), Destination: packed(t, store), Options: &transferapi.TransferOptions{ProgressStream: "none"},
		}, codes.NotFound},
	} {
		if err := lastErr(client.Transfer(m.ctx, c.r)); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if err := lastErr(client.Transfer(t.Context(), &transferapi.TransferRequest{Source: packed(t, store), Destination: packed(t, store)})); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without a namespace: %v", err)
	}
	if got := m.images(); len(got) > 0 {
		t.Errorf("images %v", got)
	}
}

// A damaged archive, and a client that leaves in the middle: nothing stays, and the
// stream tells that it is not whole.
func TestTransferThatFails(t *testing.T) {
	d := start(t)
	m := newMoving(t, d)
	data := archive(t, "docker.io/library/many:1", 5)
	m.send("cut", data[:len(data)/2])
	if err := m.do(&transfer.ImageImportStream{Stream: "cut"}, importTo()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("half an archive: %v", err)
	}
	rest := m.receive("out")
	if err := m.do(&transfer.ImageStore{Name: "docker.io/library/many:1"}, &transfer.ImageExportStream{Stream: "out"}); status.Code(err) != codes.NotFound {
		t.Errorf("export of nothing: %v", err)
	}
	if _, err := rest(); status.Code(err) != codes.NotFound {
		t.Errorf("its stream ended with %v", err)
	}

	gone := newMoving(t, d)
	ctx, cancel := context.WithCancel(gone.ctx)
	s := mustStream(ctx, t, d, "never")
	if err := s.Send(packed(t, &emptypb.Empty{})); err != nil { // so that the import is waiting for more
		t.Fatal(err)
	}
	cancel()
	if err := gone.do(&transfer.ImageImportStream{Stream: "never"}, importTo()); err == nil {
		t.Error("an import without a client came to an end")
	}
	if got := m.images(); len(got) > 0 {
		t.Errorf("images %v", got)
	}
}

// A client that takes no progress holds nothing up.
func TestProgressThatNobodyTakes(t *testing.T) {
	d := start(t)
	m := newMoving(t, d)
	mustStream(m.ctx, t, d, "deaf")
	m.send("in", archive(t, "docker.io/library/many:1", 40))
	_, err := transfergrpc.NewTransferClient(d).Transfer(m.ctx, &transferapi.TransferRequest{
		Source: packed(t, &transfer.ImageImportStream{Stream: "in"}), Destination: packed(t, importTo()),
		Options: &transferapi.TransferOptions{ProgressStream: "deaf"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An import that is under way when the daemon is told to stop comes to its end.
func TestTransferDuringDrain(t *testing.T) {
	d := start(t)
	m := newMoving(t, d)
	data := archive(t, "docker.io/library/many:1", 5)
	in := mustStream(m.ctx, t, d, "in")
	w := bytestreams.NewWriter(in)
	idle := mustStream(m.ctx, t, d, "idle")
	answered := make(chan error, 1)
	go func() {
		answered <- lastErr(transfergrpc.NewTransferClient(d).Transfer(m.ctx, &transferapi.TransferRequest{
			Source: packed(t, &transfer.ImageImportStream{Stream: "in"}), Destination: packed(t, importTo()),
		}))
	}()
	if _, err := w.Write(data[:len(data)/2]); err != nil { // which waits for the import to ask for it
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }()
	if _, err := idle.Recv(); status.Code(err) != codes.Unavailable { // so it is draining now
		t.Errorf("a stream that nobody has taken ended with %v", err)
	}
	if _, err := w.Write(data[len(data)/2:]); err != nil {
		t.Fatal(err)
	}
	if err := in.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := d.db.Images(metadata.Scope{Namespace: "ns"}).Get(t.Context(), "docker.io/library/many:1"); err != nil {
		t.Error(err)
	}
}
