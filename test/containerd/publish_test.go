package containerd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
)

// TestPublishBinary has a shim that is given no socket for events bring them by the
// daemon's program.
func TestPublishBinary(t *testing.T) {
	d := newDaemon(t)
	l := newLife(d)
	bundle := filepath.Join(d.dir, "bundle")
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), l.record.Spec.Value, 0o600); err != nil {
		t.Fatal(err)
	}
	start := exec.Command(filepath.Join(programs.Dir, "containerd-shim-berth-v2"), "-namespace", "berth", "-address", d.address, "-publish-binary", d.path, "-id", "t1", "start")
	start.Dir = bundle
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "TTRPC_ADDRESS=") {
			start.Env = append(start.Env, kv)
		}
	}
	address, err := start.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, address)
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(string(address), "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	shim := taskttrpc.NewTaskClient(client)
	if _, err := shim.Create(l.ctx, &task.CreateTaskRequest{Id: "t1", Bundle: bundle, Rootfs: l.rootfs}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Start(l.ctx, &task.StartRequest{Id: "t1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Kill(l.ctx, &task.KillRequest{Id: "t1", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Wait(l.ctx, &task.WaitRequest{Id: "t1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Delete(l.ctx, &task.DeleteRequest{Id: "t1"}); err != nil {
		t.Fatal(err)
	}
	l.expect("/tasks/create t1", "/tasks/start t1", "/tasks/exit t1 137", "/tasks/delete t1 137")
	_, _ = shim.Shutdown(l.ctx, &task.ShutdownRequest{Id: "t1"}) // the answer may be lost; newDaemon looks for what is left
	d.ctr("containers", "rm", "t1")
}
