package services

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/version/v1"
	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
	build "github.com/berthd/berth/internal/version"
)

type versionService struct {
	versiongrpc.UnimplementedVersionServer
	build build.Info
}

// Version answers a semantic version: the level of the interface, with berth's own behind the
// plus sign, where comparisons ignore it.
func (s *versionService) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	return &version.VersionResponse{Version: build.API + "+berth." + semverBuild(s.build.Version), Revision: s.build.Revision}, nil
}

// semverBuild replaces what semver doesn't allow behind a plus sign.
func semverBuild(v string) string {
	b := []byte(v)
	for i, c := range b {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '.' || c == '-') {
			b[i] = '-'
		}
	}
	return string(b)
}
