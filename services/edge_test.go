package services

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcmetadata "google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/services/version/v1"
	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/obs"
	"github.com/berthd/berth/metadata"
)

// syncBuffer is a log that is written and read by several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// bare is an edge with one unary and one streaming method behind it, whose
// matter the test gives.
type bare struct {
	versiongrpc.UnimplementedVersionServer
	eventsgrpc.UnimplementedEventsServer
	call func(ctx context.Context) error
}

func (b *bare) Version(ctx context.Context, _ *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{}, b.call(ctx)
}

func (b *bare) Subscribe(_ *events.SubscribeRequest, s grpc.ServerStreamingServer[types.Envelope]) error {
	return b.call(s.Context())
}

// serveBare serves call on a unix socket and gives a connection to it.
func serveBare(t *testing.T, e *edge, call func(ctx context.Context) error) *grpc.ClientConn {
	t.Helper()
	leak.Check(t)
	g := grpc.NewServer(grpc.UnaryInterceptor(e.unary), grpc.StreamInterceptor(e.stream), grpc.UnknownServiceHandler(unknown))
	b := &bare{call: call}
	versiongrpc.RegisterVersionServer(g, b)
	eventsgrpc.RegisterEventsServer(g, b)
	e.known = methods(g)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return dial(t, l.Addr().String())
}

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func quietEdge(t *testing.T) *edge {
	return &edge{log: slog.New(slog.DiscardHandler), running: t.Context()}
}

// kinds are the error kinds of vectors/errors by their names there.
var kinds = map[string]error{
	"invalid argument": errdefs.ErrInvalidArgument, "not found": errdefs.ErrNotFound,
	"already exists": errdefs.ErrAlreadyExists, "permission denied": errdefs.ErrPermissionDenied,
	"resource exhausted": errdefs.ErrResourceExhausted, "failed precondition": errdefs.ErrFailedPrecondition,
	"conflict": errdefs.ErrConflict, "not modified": errdefs.ErrNotModified, "aborted": errdefs.ErrAborted,
	"out of range": errdefs.ErrOutOfRange, "not implemented": errdefs.ErrNotImplemented,
	"internal": errdefs.ErrInternal, "unavailable": errdefs.ErrUnavailable, "data loss": errdefs.ErrDataLoss,
	"unauthenticated": errdefs.ErrUnauthenticated, "unknown": errdefs.ErrUnknown,
	"deadline exceeded": context.DeadlineExceeded, "canceled": context.Canceled, "plain": errors.New("boom"),
}

func readVectors(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

// Every kind of error crosses the wire, from unary and streaming methods, with
// the code, text and kind that the vectors say.
func TestErrorsOverTheWire(t *testing.T) {
	var vectors struct {
		Cases []struct {
			Kind, Error, Message, Back string
			Code                       codes.Code
			BackIsSameKind             bool `json:"back_is_same_kind"`
		}
		Joined struct {
			StatusHex string `json:"status_hex"`
		}
	}
	readVectors(t, "errors.json", &vectors)
	var answer error
	conn := serveBare(t, quietEdge(t), func(context.Context) error { return answer })
	for _, c := range vectors.Cases {
		kind := kinds[c.Kind]
		if kind == nil {
			t.Fatalf("no kind %q", c.Kind)
		}
		answer = fmt.Errorf("thing %q: %w", "x", kind)
		if answer.Error() != c.Error {
			t.Fatalf("%s: the test's own error is %q", c.Kind, answer)
		}
		for name, call := range map[string]func(*grpc.ClientConn) error{"unary": callUnary, "stream": callStream} {
			err := call(conn)
			st := status.Convert(err)
			if st.Code() != c.Code || st.Message() != c.Message || len(st.Details()) > 0 {
				t.Errorf("%s, %s: got %v %q with details %v, want %v %q", c.Kind, name, st.Code(), st.Message(), st.Details(), c.Code, c.Message)
			}
			back := errgrpc.ToNative(err)
			if back.Error() != c.Back || errors.Is(back, kind) != c.BackIsSameKind {
				t.Errorf("%s, %s: comes back as %q, same kind %v", c.Kind, name, back, errors.Is(back, kind))
			}
		}
	}

	answer = errors.Join(fmt.Errorf("first: %w", errdefs.ErrNotFound), fmt.Errorf("second: %w", errdefs.ErrUnavailable))
	got, err := proto.MarshalOptions{Deterministic: true}.Marshal(status.Convert(callUnary(conn)).Proto())
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != vectors.Joined.StatusHex {
		t.Errorf("joined errors:\n got %x\nwant %s", got, vectors.Joined.StatusHex)
	}
}

func callUnary(conn *grpc.ClientConn) error {
	_, err := versiongrpc.NewVersionClient(conn).Version(context.Background(), &emptypb.Empty{})
	return err
}

func callStream(conn *grpc.ClientConn) error {
	s, err := eventsgrpc.NewEventsClient(conn).Subscribe(context.Background(), &events.SubscribeRequest{})
	if err != nil {
		return err
	}
	_, err = s.Recv()
	return err
}

func TestFullDiskIsResourceExhausted(t *testing.T) {
	bare := fmt.Errorf("write content: %w", &os.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC})
	want := "write content: write /x: no space left on device: resource exhausted"
	for name, err := range map[string]error{"bare": bare, "of that kind": fmt.Errorf("%w: %w", bare, errdefs.ErrResourceExhausted)} {
		if st := status.Convert(wire(err)); st.Code() != codes.ResourceExhausted || st.Message() != want || len(st.Details()) > 0 {
			t.Errorf("%s: got %v", name, wire(err))
		}
	}
}

func TestHeadersBecomeTheScope(t *testing.T) {
	type seen struct {
		scope           metadata.Scope
		outGRPC, outTTR string
		err             codes.Code
	}
	var got seen
	conn := serveBare(t, quietEdge(t), func(ctx context.Context) error {
		s, err := scope(ctx)
		out, _ := grpcmetadata.FromOutgoingContext(ctx)
		tt, _ := ttrpc.GetMetadata(ctx)
		got = seen{s, first(out.Get(namespaceHeader)), first(tt[namespaceTTRPCHeader]), status.Code(wire(err))}
		return nil
	})
	for _, c := range []struct {
		name    string
		headers []string
		want    seen
	}{
		{"none", nil, seen{err: codes.FailedPrecondition}},
		{"empty", []string{namespaceHeader, ""}, seen{err: codes.FailedPrecondition}},
		{"one", []string{namespaceHeader, "ns"}, seen{scope: metadata.Scope{Namespace: "ns"}, outGRPC: "ns", outTTR: "ns"}},
		{"first counts", []string{namespaceHeader, "a", namespaceHeader, "b", leaseHeader, "l1", leaseHeader, "l2"},
			seen{scope: metadata.Scope{Namespace: "a", Lease: "l1"}, outGRPC: "a", outTTR: "a"}},
		{"malformed", []string{namespaceHeader, "a b"}, seen{scope: metadata.Scope{Namespace: "a b"}, err: codes.InvalidArgument}},
		{"lease alone", []string{leaseHeader, "l"}, seen{scope: metadata.Scope{Lease: "l"}, err: codes.FailedPrecondition}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := grpcmetadata.AppendToOutgoingContext(t.Context(), c.headers...)
			if _, err := versiongrpc.NewVersionClient(conn).Version(ctx, &emptypb.Empty{}); err != nil {
				t.Fatal(err)
			}
			unary := got
			s, err := eventsgrpc.NewEventsClient(conn).Subscribe(ctx, &events.SubscribeRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			for _, g := range []seen{unary, got} {
				if diff := cmp.Diff(c.want, g, cmp.AllowUnexported(seen{})); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
	if _, err := scope(context.Background()); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.HasSuffix(err.Error(), "namespace is required: failed precondition") {
		t.Errorf("no call at all: %v", err)
	}
}

func TestPanicIsOneCallsAffair(t *testing.T) {
	var out syncBuffer
	e := quietEdge(t)
	e.log, _ = obs.Logger(&out, slog.LevelInfo, "text")
	broken := true
	conn := serveBare(t, e, func(context.Context) error {
		if broken {
			var nobody *types.Envelope
			nobody.Topic = "x"
		}
		return nil
	})
	for name, call := range map[string]func(*grpc.ClientConn) error{"Version/Version": callUnary, "Events/Subscribe": callStream} {
		err := call(conn)
		if st := status.Convert(err); st.Code() != codes.Internal || !strings.Contains(st.Message(), name) || !strings.HasSuffix(st.Message(), ": internal") {
			t.Errorf("%s: got %v", name, err)
		}
		if strings.Contains(err.Error(), "goroutine") || strings.Contains(err.Error(), "nil pointer") {
			t.Errorf("the client learned too much: %v", err)
		}
		if log := out.String(); !strings.Contains(log, name) || !strings.Contains(log, "nil pointer") || !strings.Contains(log, "edge_test.go") {
			t.Errorf("%s: the log lacks method, reason or stack: %s", name, log)
		}
	}
	broken = false
	if err := callUnary(conn); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestCallsAreLoggedAndCounted(t *testing.T) {
	var out syncBuffer
	e := quietEdge(t)
	e.log, _ = obs.Logger(&out, slog.LevelDebug, "text")
	e.metrics = obs.NewMetrics(func() map[string]int { return nil })
	conn := serveBare(t, e, func(context.Context) error { return fmt.Errorf("thing: %w", errdefs.ErrNotFound) })
	ctx := grpcmetadata.AppendToOutgoingContext(t.Context(), namespaceHeader, "ns")
	_, _ = versiongrpc.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	for _, want := range []string{"level=DEBUG", "method=/containerd.services.version.v1.Version/Version", "code=NotFound", "namespace=ns", "took=", `error="thing: not found"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q: %s", want, out.String())
		}
	}
	for i := range 3 { // names that a client makes up
		_ = conn.Invoke(ctx, fmt.Sprintf("/made.up%d/Call", i), &emptypb.Empty{}, &emptypb.Empty{})
	}
	rec := httptest.NewRecorder()
	e.metrics.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	body := rec.Body.String()
	for _, want := range []string{
		`berth_calls_total{code="NotFound",method="/containerd.services.version.v1.Version/Version"} 1`,
		`berth_calls_total{code="Unimplemented",method="other"} 3`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(body, "made.up") {
		t.Error("a client can make metrics grow")
	}
}

// What is not served says so in words.
func TestUnserved(t *testing.T) {
	conn := serveBare(t, quietEdge(t), func(context.Context) error { return nil })
	method := "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	st := status.Convert(conn.Invoke(t.Context(), method, &emptypb.Empty{}, &emptypb.Empty{}))
	if st.Code() != codes.Unimplemented || !strings.HasPrefix(st.Message(), method+" is not served by this version of berth; ") || !strings.HasSuffix(st.Message(), ": not implemented") {
		t.Errorf("%v", st.Err())
	}
}

// A call without an end of its own ends when the daemon drains; others go on.
func TestDrainEndsWaits(t *testing.T) {
	running, drain := context.WithCancel(t.Context())
	e := quietEdge(t)
	e.running = running
	entered, release := make(chan struct{}, 3), make(chan struct{})
	conn := serveBare(t, e, func(ctx context.Context) error {
		entered <- struct{}{}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-release:
			return nil
		}
	})
	results := map[string]chan error{"unary": make(chan error, 1), "stream": make(chan error, 1)}
	go func() { results["unary"] <- callUnary(conn) }()
	go func() { results["stream"] <- callStream(conn) }()
	<-entered
	<-entered
	drain()
	if err := <-results["stream"]; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "berthd is stopping") {
		t.Errorf("a wait ended with %v", err)
	}
	select {
	case err := <-results["unary"]:
		t.Errorf("an ordinary call was ended: %v", err)
	default:
	}
	if err := callStream(conn); status.Code(err) != codes.Unavailable {
		t.Errorf("a wait that began after the drain: %v", err)
	}
	close(release)
	if err := <-results["unary"]; err != nil {
		t.Errorf("an ordinary call ended with %v", err)
	}
}
