package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/streaming/v1"
	"github.com/berthd/berth/api/services/streaming/v1/streaminggrpc"
	transferapi "github.com/berthd/berth/api/services/transfer/v1"
	"github.com/berthd/berth/api/services/transfer/v1/transfergrpc"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/streams"
	"github.com/berthd/berth/protobuf"
)

// mover is a daemon that only transfers, as a test says.
type mover struct {
	streaminggrpc.UnimplementedStreamingServer
	transfergrpc.UnimplementedTransferServer
	do func(m *mover, r *transferapi.TransferRequest) error

	mu   sync.Mutex
	open map[string]*openStream
}

type openStream struct {
	grpc.BidiStreamingServer[anypb.Any, anypb.Any]
	ended chan struct{}
}

func (m *mover) Stream(s grpc.BidiStreamingServer[anypb.Any, anypb.Any]) error {
	a, err := s.Recv()
	if err != nil {
		return err
	}
	var init streaming.StreamInit
	if err := proto.Unmarshal(a.GetValue(), &init); err != nil {
		return err
	}
	o := &openStream{s, make(chan struct{})}
	m.mu.Lock()
	m.open[init.GetId()] = o
	m.mu.Unlock()
	ready, _ := protobuf.MarshalAny(&emptypb.Empty{})
	if err := s.Send(ready); err != nil {
		return err
	}
	select {
	case <-o.ended:
	case <-s.Context().Done():
	}
	return nil
}

func (m *mover) stream(id string) *openStream {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open[id]
}

func (m *mover) Transfer(_ context.Context, r *transferapi.TransferRequest) (*emptypb.Empty, error) {
	err := m.do(m, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, o := range m.open {
		close(o.ended)
		delete(m.open, id)
	}
	return &emptypb.Empty{}, err
}

// newMover serves until the test ends.
func newMover(t *testing.T, do func(m *mover, r *transferapi.TransferRequest) error) *client.Client {
	t.Helper()
	leak.CheckProcess(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	m := &mover{do: do, open: map[string]*openStream{}}
	server := grpc.NewServer()
	streaminggrpc.RegisterStreamingServer(server, m)
	transfergrpc.RegisterTransferServer(server, m)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	c, err := client.Dial(t.Context(), path, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a question on the stream of a registry, and gives the answer.
func (m *mover) ask(r *transferapi.TransferRequest) (*transfer.AuthResponse, error) {
	var to transfer.OCIRegistry
	if err := proto.Unmarshal(r.GetDestination().GetValue(), &to); err != nil {
		return nil, err
	}
	question, _ := protobuf.MarshalAny(&transfer.AuthRequest{Host: "h", Reference: to.GetReference(), Wwwauthenticate: []string{"Basic"}})
	s := m.stream(to.GetResolver().GetAuthStream())
	if err := s.Send(question); err != nil {
		return nil, err
	}
	a, err := s.Recv()
	if err != nil {
		return nil, err
	}
	answer := &transfer.AuthResponse{}
	return answer, proto.Unmarshal(a.GetValue(), answer)
}

var errKeyring = errors.New("the keyring is locked")

// TestTransferCredentials: each kind of credential arrives as what it is, and why there
// is none is why the push failed.
func TestTransferCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		credential client.Credential
		err        error
		want       *transfer.AuthResponse
	}{
		"password": {client.Credential{Username: "u", Password: "p"}, nil, &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "u", Secret: "p"}},
		"token":    {client.Credential{IdentityToken: "i"}, nil, &transfer.AuthResponse{AuthType: transfer.AuthType_REFRESH, Secret: "i"}},
		"header":   {client.Credential{Header: "Bearer b"}, nil, &transfer.AuthResponse{AuthType: transfer.AuthType_HEADER, Secret: "Bearer b"}},
		"nobody":   {client.Credential{}, nil, &transfer.AuthResponse{}},
		"error":    {client.Credential{}, errKeyring, nil},
	} {
		var got *transfer.AuthResponse
		cl := newMover(t, func(m *mover, r *transferapi.TransferRequest) (err error) {
			got, err = m.ask(r)
			return err
		})
		err := cl.Push(t.Context(), &images.Image{Name: "example.org/a:1"}, "", client.PushOptions{Registry: client.Registry{
			Credentials: func(_ context.Context, q client.CredentialRequest) (client.Credential, error) {
				if q.Host != "h" || q.Reference != "example.org/a:1" || len(q.Challenges) != 1 {
					t.Errorf("%s: asked %+v", name, q)
				}
				return c.credential, c.err
			},
		}})
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%s: answered %v, %v", name, got, err)
		}
	}
}

// TestTransferProgress: all that was sent before the answer is told before the return.
func TestTransferProgress(t *testing.T) {
	cl := newMover(t, func(m *mover, r *transferapi.TransferRequest) error {
		for i := range 500 {
			p, _ := protobuf.MarshalAny(&transfer.Progress{Event: fmt.Sprint(i)})
			if err := m.stream(r.GetOptions().GetProgressStream()).Send(p); err != nil {
				return err
			}
		}
		return nil
	})
	told := 0
	err := cl.Push(t.Context(), &images.Image{Name: "example.org/a:1"}, "", client.PushOptions{Progress: func(p *transfer.Progress) {
		if p.GetEvent() != fmt.Sprint(told) {
			t.Errorf("event %q came as number %d", p.GetEvent(), told)
		}
		told++
	}})
	if err != nil || told != 500 {
		t.Errorf("%d events, %v", told, err)
	}
}

// refusing is a writer that has no room.
type refusing struct{ room int }

var errNoRoom = errors.New("no room")

func (r *refusing) Write(p []byte) (int, error) {
	if r.room -= len(p); r.room < 0 {
		return 0, errNoRoom
	}
	return len(p), nil
}

// TestExport: the bytes arrive, and a writer that takes no more ends the call.
func TestExport(t *testing.T) {
	const size = 1 << 20
	for room, want := range map[int]error{size: nil, size / 2: errNoRoom} {
		cl := newMover(t, func(m *mover, r *transferapi.TransferRequest) error {
			var to transfer.ImageExportStream
			if err := proto.Unmarshal(r.GetDestination().GetValue(), &to); err != nil {
				return err
			}
			_, err := streams.NewWriter(m.stream(to.GetStream())).Write(make([]byte, size))
			return err
		})
		w := &refusing{room: room}
		if err := cl.Export(t.Context(), []string{"a"}, w, client.ExportOptions{}); !errors.Is(err, want) || want == nil && w.room != 0 {
			t.Errorf("room for %d: %v, %d left", room, err, w.room)
		}
	}
	if err := newMover(t, nil).Export(t.Context(), []string{"a"}, io.Discard, client.ExportOptions{Platforms: []string{"a/b/c/d"}}); err == nil {
		t.Error("a platform that is none")
	}
}
