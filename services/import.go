package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

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

// importEvents streams progress without ever holding up the import: what a slow
// client has not taken yet is replaced by what comes later of the same object.
type importEvents struct {
	stream importStream
	wake   chan struct{} // has room for one: there is something to send
	done   chan struct{} // closed once the last message is sent

	// mu guards latest and order, which have the same objects.
	mu     sync.Mutex
	latest map[digest.Digest]images.Progress
	order  []digest.Digest
}

func newImportEvents(stream importStream) *importEvents {
	e := &importEvents{
		stream: stream, wake: make(chan struct{}, 1), done: make(chan struct{}),
		latest: map[digest.Digest]images.Progress{},
	}
	go e.run()
	return e
}

// progress notes how far an object is.
func (e *importEvents) progress(p images.Progress) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.latest[p.Digest]; !ok {
		e.order = append(e.order, p.Digest)
	}
	e.latest[p.Digest] = p
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

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

func (e *importEvents) take() []images.Progress {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]images.Progress, 0, len(e.order))
	for _, d := range e.order {
		out = append(out, e.latest[d])
	}
	clear(e.latest)
	e.order = e.order[:0]
	return out
}
