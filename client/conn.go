package client

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// Headers by which the daemon knows the namespace and the lease of a call.
const (
	namespaceHeader = "containerd-namespace"
	leaseHeader     = "containerd-lease"
)

// scoped is a connection whose calls are within a namespace, under a lease, and
// fail with errors of the errdefs kinds.
type scoped struct {
	conn             *grpc.ClientConn
	namespace, lease string
}

func (s scoped) headers(ctx context.Context) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, namespaceHeader, s.namespace)
	if s.lease != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, leaseHeader, s.lease)
	}
	return ctx
}

// Invoke makes a call with one request and one answer.
func (s scoped) Invoke(ctx context.Context, method string, request, answer any, opts ...grpc.CallOption) error {
	return native(s.conn.Invoke(s.headers(ctx), method, request, answer, opts...))
}

// NewStream opens a call with a stream.
func (s scoped) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := s.conn.NewStream(s.headers(ctx), desc, method, opts...)
	if err != nil {
		return nil, native(err)
	}
	return nativeStream{stream}, nil
}

// nativeStream maps the errors of a stream.
type nativeStream struct{ grpc.ClientStream }

func (s nativeStream) SendMsg(m any) error { return native(s.ClientStream.SendMsg(m)) }
func (s nativeStream) RecvMsg(m any) error { return native(s.ClientStream.RecvMsg(m)) }
func (s nativeStream) CloseSend() error    { return native(s.ClientStream.CloseSend()) }

// native turns an error of gRPC into one of the errdefs kinds. The end of a
// stream stays io.EOF.
func native(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return errgrpc.ToNative(err)
}
