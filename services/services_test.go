package services

import (
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/api/services/version/v1/versiongrpc"
)

func TestHealthAndVersion(t *testing.T) {
	d := start(t)
	h := grpc_health_v1.NewHealthClient(d)
	got, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || got.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, error %v", got, err)
	}
	if _, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "containerd.services.tasks.v1.Tasks"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of another service: %v", err)
	}
	v, err := versiongrpc.NewVersionClient(d).Version(t.Context(), &emptypb.Empty{})
	if err != nil || v.GetVersion() != "2.3.4+berth.v0.1.0" || v.GetRevision() != "abc" {
		t.Errorf("version: %v, error %v", v, err)
	}
	if info, err := os.Stat(d.socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, error %v", info.Mode(), err)
	}
}
