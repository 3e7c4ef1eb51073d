package shim

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	task "github.com/berthd/berth/api/runtime/task/v3"
)

// TestMethod gives errors their code and survives a panic.
func TestMethod(t *testing.T) {
	b := newBench(t, "true")
	call := func(do func(context.Context, *task.StateRequest) (*task.StateResponse, error)) error {
		var m ttrpc.Method = method(b.Shim, "State", do)
		_, err := m(t.Context(), func(any) error { return nil })
		return err
	}
	err := call(func(context.Context, *task.StateRequest) (*task.StateResponse, error) { panic("oops") })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "State: panic: oops") {
		t.Error(err)
	}
	for _, k := range kinds {
		err := call(func(context.Context, *task.StateRequest) (*task.StateResponse, error) { return nil, k.err })
		if status.Code(err) != k.code {
			t.Errorf("%v: %s, want %s", k.err, status.Code(err), k.code)
		}
	}
}
