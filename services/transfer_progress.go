package services

import (
	"context"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/protobuf"
)

const (
	// progressPause is the time between two looks at what there is to tell.
	progressPause = 100 * time.Millisecond
	// progressTime is how long a client may take for the last of it.
	progressTime = 5 * time.Second
)

// transferProgress streams how far a transfer is, and never holds it up.
type transferProgress struct {
	stream *stream
	events *latest[string, *transfer.Progress] // by name
	ending chan struct{}                       // closed when nothing comes any more
	done   chan struct{}                       // closed once all is sent
	last   time.Duration                       // that the client may take for the rest, in the end

	mu      sync.Mutex          // guards what follows
	root    string              // what objects belong to that have no parent
	names   map[string]string   // of objects by digest
	parents map[string][]string // of objects by name
}

func newTransferProgress(st *stream) *transferProgress {
	p := &transferProgress{
		stream: st, events: newLatest[string, *transfer.Progress](), ending: make(chan struct{}), done: make(chan struct{}), last: progressTime,
		names: map[string]string{}, parents: map[string][]string{},
	}
	go p.run()
	return p
}

// phase tells what is done now, in words. It may be called on nil, as all here.
func (p *transferProgress) phase(event string) { p.tell(&transfer.Progress{Event: event}) }

// begin says what image the objects from here on belong to.
func (p *transferProgress) begin(name string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.root = name
}

// image tells of an image by its name.
func (p *transferProgress) image(event, name string, target ocispec.Descriptor) {
	p.tell(&transfer.Progress{Event: event, Name: name, Desc: descOf(target)})
}

func descOf(d ocispec.Descriptor) *types.Descriptor {
	return &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size, Annotations: d.Annotations}
}

// objectEvents are what clients call what happens to an object.
var objectEvents = map[string]string{
	images.Loading: "downloading", images.Loaded: "complete", images.Downloaded: "complete", images.Uploaded: "complete",
	images.Unpacking: "extracting", images.Unpacked: "extracted",
}

// kindNames are how the names of objects begin.
var kindNames = map[images.Kind]string{
	images.Index: "index", images.Manifest: "manifest", images.Config: "config", images.Layer: "layer",
}

// object tells how far an object is.
func (p *transferProgress) object(o images.Progress) {
	if p == nil {
		return
	}
	event := objectEvents[o.Status]
	if event == "" {
		event = o.Status
	}
	name, parents := p.place(o)
	m := &transfer.Progress{Event: event, Name: name, Parents: parents, Progress: o.Offset, Total: o.Total}
	if o.MediaType != "" {
		m.Desc = &types.Descriptor{MediaType: o.MediaType, Digest: o.Digest.String(), Size: o.Total}
	}
	p.tell(m)
}

// place gives the name of an object and what it belongs to, the same ones as
// before.
func (p *transferProgress) place(o images.Progress) (name string, parents []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := o.Digest.String()
	if name = p.names[id]; name == "" {
		kind := kindNames[images.KindOf(o.MediaType)]
		if kind == "" {
			kind = "blob"
		}
		name = kind + "-" + id
		if o.MediaType != "" {
			p.names[id] = name
		}
	}
	if parent := p.names[o.Parent.String()]; parent != "" && p.parents[name] == nil {
		p.parents[name] = []string{parent}
	}
	if parents = p.parents[name]; parents == nil && p.root != "" {
		parents = []string{p.root}
	}
	return name, parents
}

// tell notes a message, in place of an earlier one of the same object.
func (p *transferProgress) tell(m *transfer.Progress) {
	if p == nil {
		return
	}
	m.Event = strings.ToValidUTF8(m.Event, "?")
	p.events.put(m.Name, m)
}

// run sends until nothing comes any more, or the client takes no more.
func (p *transferProgress) run() {
	defer close(p.done)
	for last := false; !last; {
		select {
		case <-p.events.wake:
		case <-p.ending:
			last = true
		}
		for _, m := range p.events.take() {
			packed, err := protobuf.MarshalAny(m)
			if err == nil {
				err = p.stream.Send(packed)
			}
			if err != nil {
				<-p.ending // the client is gone, which is no reason to stop
				return
			}
		}
		timer := time.NewTimer(progressPause)
		select {
		case <-timer.C:
		case <-p.ending:
			timer.Stop()
		}
	}
}

// end waits until all that was noted is sent, if the client takes it. There must
// be nothing noted after.
func (p *transferProgress) end() {
	close(p.ending)
	ctx, cancel := context.WithTimeout(context.Background(), p.last)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { p.stream.end(nil) })
	defer stop()
	<-p.done
}
