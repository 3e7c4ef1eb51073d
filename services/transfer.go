package services

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/transfer/v1"
	"github.com/berthd/berth/api/services/transfer/v1/transfergrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/images"
	"github.com/berthd/berth/metadata"
	"github.com/berthd/berth/protobuf"
	"github.com/berthd/berth/remotes"
)

// transferService moves images between registries, the store and streams.
type transferService struct {
	transfergrpc.UnimplementedTransferServer
	db      *metadata.DB
	images  *images.Store
	streams *streams
	remotes *remotes.Client // nil: no registry can be reached
	log     *slog.Logger
}

// transferPair is a source and a destination that go together.
type transferPair struct {
	from, to protoreflect.FullName
	do       func(c *transferCall, ctx context.Context, from, to proto.Message) error
}

func pairOf[S, D proto.Message](do func(*transferCall, context.Context, S, D) error) transferPair {
	var from S
	var to D
	return transferPair{
		from: from.ProtoReflect().Descriptor().FullName(), to: to.ProtoReflect().Descriptor().FullName(),
		do: func(c *transferCall, ctx context.Context, from, to proto.Message) error {
			return do(c, ctx, from.(S), to.(D))
		},
	}
}

// transferPairs are all there are.
var transferPairs = []transferPair{
	pairOf((*transferCall).pull),
	pairOf((*transferCall).push),
	pairOf((*transferCall).tag),
	pairOf((*transferCall).importStream),
	pairOf((*transferCall).exportStream),
	pairOf((*transferCall).echo),
}

// transferCall is one call of Transfer.
type transferCall struct {
	*transferService
	scope    metadata.Scope
	progress *transferProgress // nil: nobody wants to know
	trace    *transferTrace    // nil: nobody wants to know
	taken    []*stream
	undo     []func() bool // stop what ends the streams with the context
}

// Transfer moves from source to destination. All streams that the request names
// are the call's from here on, and are closed when it answers.
func (s *transferService) Transfer(ctx context.Context, r *api.TransferRequest) (_ *emptypb.Empty, err error) {
	sc, err := scope(ctx)
	if err != nil {
		return nil, err
	}
	c := &transferCall{transferService: s, scope: sc}
	defer c.end()
	if id := r.GetOptions().GetProgressStream(); id != "" {
		st, err := c.take(ctx, id)
		if err != nil {
			return nil, err
		}
		c.progress = newTransferProgress(st)
	}
	do, err := transferOf(r)
	if err != nil {
		return nil, err
	}
	from, err := protobuf.UnmarshalAny(r.GetSource())
	if err != nil {
		return nil, err
	}
	to, err := protobuf.UnmarshalAny(r.GetDestination())
	if err != nil {
		return nil, err
	}
	if err := do(c, ctx, from, to); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// transferOf finds out what is to be done: Unimplemented for two that don't go
// together.
func transferOf(r *api.TransferRequest) (func(*transferCall, context.Context, proto.Message, proto.Message) error, error) {
	if r.GetSource() == nil {
		return nil, missing("source")
	}
	if r.GetDestination() == nil {
		return nil, missing("destination")
	}
	from, to := protobuf.TypeName(r.GetSource().GetTypeUrl()), protobuf.TypeName(r.GetDestination().GetTypeUrl())
	var known []string
	for _, p := range transferPairs {
		if p.from == from && p.to == to {
			return p.do, nil
		}
		known = append(known, fmt.Sprintf("%s to %s", p.from.Name(), p.to.Name()))
	}
	return nil, fmt.Errorf("transfer from %.100q to %.100q: these can be: %s: %w", from, to, strings.Join(known, ", "), errdefs.ErrNotImplemented)
}

// take gives the call a stream, which ends with it or its context.
func (c *transferCall) take(ctx context.Context, id string) (*stream, error) {
	st, err := c.streams.take(c.scope.Namespace, id)
	if err != nil {
		return nil, err
	}
	c.taken = append(c.taken, st)
	c.undo = append(c.undo, context.AfterFunc(ctx, func() { st.end(context.Cause(ctx)) }))
	return st, nil
}

// end sends what progress there is left, and closes the streams.
func (c *transferCall) end() {
	if c.progress != nil {
		c.progress.end()
	}
	if c.trace != nil {
		c.trace.end()
	}
	for _, stop := range c.undo {
		stop()
	}
	for _, st := range c.taken {
		st.end(nil)
	}
}

// platformsOf writes platforms as package images reads them.
func platformsOf(list []*types.Platform) []string {
	var out []string
	for _, p := range list {
		out = append(out, platformOf(p))
	}
	return out
}

// platformOf is OS/ARCHITECTURE[/VARIANT], empty for no platform.
func platformOf(p *types.Platform) string {
	if p == nil || p.GetOs() == "" && p.GetArchitecture() == "" {
		return ""
	}
	text := p.GetOs() + "/" + p.GetArchitecture()
	if p.GetVariant() != "" {
		text += "/" + p.GetVariant()
	}
	return text
}
