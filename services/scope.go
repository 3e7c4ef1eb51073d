package services

import (
	"context"

	"github.com/containerd/ttrpc"
	grpcmetadata "google.golang.org/grpc/metadata"

	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/metadata"
)

// Headers of a call.
const (
	namespaceHeader      = "containerd-namespace"
	leaseHeader          = "containerd-lease"
	namespaceTTRPCHeader = "containerd-namespace-ttrpc"
)

type scopeKey struct{}

// withScope reads the headers of an incoming call. The first value of each
// counts: clients put theirs before what they pass on. A valid namespace is
// also put on calls that go out on behalf of this one.
func withScope(ctx context.Context) context.Context {
	s := metadata.Scope{
		Namespace: first(grpcmetadata.ValueFromIncomingContext(ctx, namespaceHeader)),
		Lease:     first(grpcmetadata.ValueFromIncomingContext(ctx, leaseHeader)),
	}
	if names.Namespace(s.Namespace) == nil {
		ctx = grpcmetadata.AppendToOutgoingContext(ctx, namespaceHeader, s.Namespace)
		ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{namespaceTTRPCHeader: {s.Namespace}})
	}
	return context.WithValue(ctx, scopeKey{}, s)
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// anyScope is on whose behalf a call is, which may be nobody's.
func anyScope(ctx context.Context) metadata.Scope {
	s, _ := ctx.Value(scopeKey{}).(metadata.Scope)
	return s
}

// scope is on whose behalf a call is. Without a namespace it is
// FailedPrecondition, with a malformed one InvalidArgument.
func scope(ctx context.Context) (metadata.Scope, error) {
	s := anyScope(ctx)
	return s, names.Namespace(s.Namespace)
}
