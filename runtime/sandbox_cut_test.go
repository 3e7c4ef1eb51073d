package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/types"
)

// TestSandboxCutOff ends the daemon in the midst of a sandbox's create, and of its
// shutdown, with the shim alive and dead: the next daemon removes what is left, and
// the sandbox can be made anew.
func TestSandboxCutOff(t *testing.T) {
	m := impatient(t)
	shim := m.fakeForeign()
	for id, c := range map[string]struct {
		hang string
		kill bool
	}{
		"create": {"CreateSandbox", false}, "create-killed": {"CreateSandbox", true}, "made-killed": {"CreateSandbox+", true},
	} {
		d := m.start()
		spec, _ := json.Marshal(foreignScript{Version: 3, Sandbox: true, Hang: c.hang})
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			failed <- d.CreateSandbox(ctx, testNS, &sandbox.ControllerCreateRequest{SandboxId: id, Sandbox: &types.Sandbox{
				SandboxId: id, Runtime: &types.Sandbox_Runtime{Name: shim}, Spec: &anypb.Any{TypeUrl: "spec", Value: spec},
			}})
		}()
		pid := 0
		m.eventually("the shim to be asked", func() error {
			d.mu.Lock()
			b := d.boxes[nameOf(id)]
			d.mu.Unlock()
			if b == nil || b.view().stand != connected {
				return errors.New("not yet")
			}
			pid = b.view().shimPID
			return nil
		})
		d.stop()
		cancel()
		if err := <-failed; err == nil {
			t.Errorf("%s: created", id)
		}
		if c.kill {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		d = m.start()
		m.eventually(id+" removed", func() error {
			reply, err := d.SandboxStatus(t.Context(), testNS, &sandbox.ControllerStatusRequest{SandboxId: id})
			if err == nil && reply.GetSandboxId() != "" {
				err = errors.New(reply.String())
			}
			return err
		})
		d.boxGone(id)
		d.stop()
	}
}
