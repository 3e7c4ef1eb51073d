package services

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	api "github.com/berthd/berth/api/services/introspection/v1"
	"github.com/berthd/berth/api/services/introspection/v1/introspectiongrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/protobuf"
)

type introspectionService struct {
	introspectiongrpc.UnimplementedIntrospectionServer
	uuid    string
	pidns   uint64 // inode of the pid namespace
	plugins []*api.Plugin
	runtime func(ctx context.Context, r *types.RuntimeRequest) (*types.RuntimeInfo, error)
}

func (s *introspectionService) Server(context.Context, *emptypb.Empty) (*api.ServerResponse, error) {
	return &api.ServerResponse{Uuid: s.uuid, Pid: uint64(os.Getpid()), Pidns: s.pidns}, nil
}

func (s *introspectionService) Plugins(_ context.Context, r *api.PluginsRequest) (*api.PluginsResponse, error) {
	match, err := filter.ParseAll(r.GetFilters()...)
	if err != nil {
		return nil, err
	}
	var out []*api.Plugin
	for _, p := range s.plugins {
		if match.Match(pluginFields(p)) {
			out = append(out, p)
		}
	}
	return &api.PluginsResponse{Plugins: out}, nil
}

func pluginFields(p *api.Plugin) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "type":
			return p.GetType(), p.GetType() != ""
		case "id":
			return p.GetId(), p.GetId() != ""
		}
		return "", false
	})
}

// PluginInfo tells more of one plugin. Only the runtime has more to say: what
// the OCI runtime that the options name can do.
func (s *introspectionService) PluginInfo(ctx context.Context, r *api.PluginInfoRequest) (*api.PluginInfoResponse, error) {
	name := r.GetType() + "/" + r.GetId()
	var plugin *api.Plugin
	for _, p := range s.plugins {
		if p.GetType() == r.GetType() && p.GetId() == r.GetId() {
			plugin = p
		}
	}
	if plugin == nil {
		return nil, fmt.Errorf("plugin %q: %w", name, errdefs.ErrNotFound)
	}
	if r.GetOptions() == nil {
		return &api.PluginInfoResponse{Plugin: plugin}, nil
	}
	if plugin.GetInitErr() != nil {
		return nil, fmt.Errorf("plugin %q is not in use: %s: %w", name, plugin.GetInitErr().GetMessage(), errdefs.ErrFailedPrecondition)
	}
	if name != runtimePlugin {
		return nil, notServed(fmt.Sprintf("more about plugin %q", name), "ask without options")
	}
	extra, err := s.runtimeInfo(ctx, r.GetOptions())
	if err != nil {
		return nil, err
	}
	return &api.PluginInfoResponse{Plugin: plugin, Extra: extra}, nil
}

func (s *introspectionService) runtimeInfo(ctx context.Context, options *anypb.Any) (*anypb.Any, error) {
	m, err := protobuf.UnmarshalAny(options)
	r, ok := m.(*types.RuntimeRequest)
	if err != nil || !ok {
		return nil, fmt.Errorf("options of type %q, want %s: %w", options.GetTypeUrl(),
			proto.MessageName((*types.RuntimeRequest)(nil)), errdefs.ErrInvalidArgument)
	}
	info, err := s.runtime(ctx, r)
	if err != nil {
		return nil, err
	}
	return protobuf.MarshalAny(info)
}

// initErr is how a plugin tells that, and why, it is not in use.
func initErr(p *api.Plugin, err error) *api.Plugin {
	if err != nil {
		p.InitErr = status.Convert(wire(err)).Proto()
	}
	return p
}
