package api_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
)

const streaming = "containerd.services.streaming.v1.Streaming"

// tapped is a connection that notes what goes over it.
type tapped struct {
	net.Conn
	// mu guards what follows, which is from one point of time to the next.
	mu             sync.Mutex
	sent, received bytes.Buffer
}

func (c *tapped) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.Write(p[:n])
	return n, err
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received.Write(p[:n])
	return n, err
}

// take gives what went over the connection since the last time, as hex.
func (c *tapped) take() (sent, received string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.sent.Reset()
	defer c.received.Reset()
	return hex.EncodeToString(c.sent.Bytes()), hex.EncodeToString(c.received.Bytes())
}

// TestFrames: calls with the generated code are on the wire, byte for byte,
// what other clients, shims and daemons send.
func TestFrames(t *testing.T) {
	data, err := os.ReadFile("testdata/ttrpc-frames.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Calls []struct {
			Name, Error string
			Sent        string `json:"sent_hex"`
			Received    string `json:"received_hex"`
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	conn := &tapped{Conn: serveFrames(t)}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx := ttrpc.WithMetadata(t.Context(), ttrpc.MD{"containerd-namespace-ttrpc": {"default"}})
	tasks, events := taskttrpc.NewTaskClient(client), forwardttrpc.NewEventsClient(client)
	calls := []func() error{
		func() error { _, err := tasks.Connect(ctx, &task.ConnectRequest{Id: "c1"}); return err },
		func() error { _, err := tasks.State(ctx, &task.StateRequest{Id: "c1"}); return err },
		func() error { _, err := tasks.Start(ctx, &task.StartRequest{Id: "c1"}); return err },
		func() error { _, err := events.Forward(ctx, &forward.ForwardRequest{}); return err },
		func() error { return echo(t.Context(), client) },
	}
	if len(vectors.Calls) != len(calls) {
		t.Fatalf("%d calls in the table, %d here", len(vectors.Calls), len(calls))
	}
	for i, want := range vectors.Calls {
		text := ""
		if err := calls[i](); err != nil {
			st := status.Convert(err)
			text = st.Code().String() + ": " + st.Message()
		}
		if text != want.Error {
			t.Errorf("%s: error %q, want %q", want.Name, text, want.Error)
		}
		if sent, received := conn.take(); sent != want.Sent || received != want.Received {
			t.Errorf("%s:\nsent     %s\nwant     %s\nreceived %s\nwant     %s", want.Name, sent, want.Sent, received, want.Received)
		}
	}
}

// echo sends a message on a stream, and gets it and the end back.
func echo(ctx context.Context, client *ttrpc.Client) error {
	stream, err := client.NewStream(ctx, &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, streaming, "Stream", nil)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&anypb.Any{TypeUrl: "t", Value: []byte("v")}); err != nil {
		return err
	}
	if err := stream.RecvMsg(&anypb.Any{}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&anypb.Any{}); err == nil {
		return status.Error(codes.Internal, "the stream goes on")
	}
	return nil
}

type sink struct{}

func (sink) Forward(context.Context, *forward.ForwardRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// serveFrames serves what the table's server did, and gives a connection to it.
func serveFrames(t *testing.T) net.Conn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.RegisterService("containerd.task.v3.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Connect": func(context.Context, func(any) error) (any, error) {
			return &task.ConnectResponse{ShimPid: 5, TaskPid: 7}, nil
		},
		"State": func(context.Context, func(any) error) (any, error) {
			return nil, status.Error(codes.NotFound, "container not created: not found")
		},
	}})
	forwardttrpc.RegisterEventsService(server, sink{})
	server.RegisterService(streaming, &ttrpc.ServiceDesc{Streams: map[string]ttrpc.Stream{
		"Stream": {StreamingClient: true, StreamingServer: true, Handler: func(_ context.Context, s ttrpc.StreamServer) (any, error) {
			var m anypb.Any
			for {
				if err := s.RecvMsg(&m); err != nil {
					return nil, nil
				}
				if err := s.SendMsg(&m); err != nil {
					return nil, err
				}
			}
		}},
	}})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), l) // until it is closed
	}()
	t.Cleanup(func() { server.Close(); <-served })
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
