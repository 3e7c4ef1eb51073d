package services

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"

	api "github.com/berthd/berth/api/berth/images/v1"
	"github.com/berthd/berth/api/berth/images/v1/imagesgrpc"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/metadata"
)

type importService struct {
	imagesgrpc.UnimplementedImagesServer
	store *images.Store
}

type importStream = grpc.BidiStreamingServer[api.ImportRequest, api.ImportEvent]

// Import reads an archive from the messages after the first, which has the
// options, and streams how far it is and at last the images.
func (s *importService) Import(stream importStream) error {
	ctx := stream.Context()
	sc, err := scope(ctx)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return missing("options")
	}
	if err != nil {
		return err
	}
	o := first.GetOptions()
	if o == nil {
		return fmt.Errorf("import: first message has no options: %w", errdefs.ErrInvalidArgument)
	}
	made, err := s.load(ctx, sc, stream, images.ImportOptions{
		Name: o.GetName(), Snapshotter: o.GetSnapshotter(), Platform: o.GetPlatform(),
		AllPlatforms: o.GetAllPlatforms(), NoUnpack: o.GetNoUnpack(),
	})
	if err != nil {
		return err
	}
	for _, i := range made {
		err := stream.Send(&api.ImportEvent{Event: &api.ImportEvent_Image{Image: &api.Imported{
			Name: i.Name, Digest: i.Target.Digest.String(), MediaType: i.Target.MediaType, ChainId: i.ChainID.String(),
		}}})
		if err != nil {
			return err
		}
	}
	return nil
}

// load imports what the client sends. All progress is sent when it returns.
func (s *importService) load(ctx context.Context, sc metadata.Scope, stream importStream, o images.ImportOptions) ([]images.Imported, error) {
	events := newImportEvents(stream)
	defer events.end()
	return s.store.Import(ctx, sc, &importReader{stream: stream}, o, events.progress)
}

// importReader reads the data of the messages of a stream.
type importReader struct {
	stream importStream
	rest   []byte
}

func (r *importReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		if m.GetOptions() != nil {
			return 0, fmt.Errorf("import: options after the first message: %w", errdefs.ErrInvalidArgument)
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// importEvents streams progress without ever holding up the import.
type importEvents struct {
	*latest[digest.Digest, images.Progress]
	stream importStream
	done   chan struct{} // closed once the last message is sent
}

func newImportEvents(stream importStream) *importEvents {
	e := &importEvents{latest: newLatest[digest.Digest, images.Progress](), stream: stream, done: make(chan struct{})}
	go e.run()
	return e
}

// progress notes how far an object is.
func (e *importEvents) progress(p images.Progress) { e.put(p.Digest, p) }

// end waits until all that was noted is sent. There must be no progress after.
func (e *importEvents) end() {
	close(e.wake)
	<-e.done
}

func (e *importEvents) run() {
	defer close(e.done)
	for range e.wake {
		for _, p := range e.take() {
			m := &api.ImportEvent{Event: &api.ImportEvent_Progress{Progress: &api.Progress{
				Digest: p.Digest.String(), Status: p.Status, Offset: p.Offset, Total: p.Total,
			}}}
			if e.stream.Send(m) != nil {
				break // the client is gone; its context ends the import
			}
		}
	}
}
