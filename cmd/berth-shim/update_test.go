package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/cgroup"
)

// update sets resources, as JSON.
func (f *fixture) update(resources string) error {
	_, err := f.task.Update(f.ctx(), &task.UpdateTaskRequest{
		Id: f.id, Resources: jsonAny("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", resources),
		Annotations: map[string]string{"org.example.note": "for other runtimes"},
	})
	return err
}

// control reads a file of a container's control group: the one of version 1, as
// CONTROLLER/FILE, or the one of version 2. "" where this machine has none.
func control(t *testing.T, g cgroup.Group, v1, v2 string) string {
	t.Helper()
	path := filepath.Join(g.Unified, v2)
	if g.Unified == "" {
		controller, _, _ := strings.Cut(v1, ".")
		if controller == "cpu" || controller == "cpuset" || controller == "memory" || controller == "pids" || controller == "blkio" {
			path = filepath.Join(g.Controllers[controller], v1)
		}
		if v1 == "" || g.Controllers[controller] == "" {
			return ""
		}
	} else if v2 == "" {
		return ""
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestUpdateResources changes each kind of limit of a running container, and reads
// it in the kernel.
func TestUpdateResources(t *testing.T) {
	f := newFixture(t, func(id string) any {
		s := spec(id, "sleep", "600")
		s["linux"].(map[string]any)["resources"] = map[string]any{"memory": map[string]any{"limit": 256 << 20}}
		return s
	})
	pid := f.run(&task.CreateTaskRequest{})
	g, err := cgroup.Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	unified := g.Unified != ""
	for _, c := range []struct {
		name, resources string
		v1, v2          string // the file
		want1, want2    string
		only2           bool
	}{
		{"memory limit", `{"memory":{"limit":134217728,"swap":134217728}}`, "memory.limit_in_bytes", "memory.max", "134217728", "134217728", false},
		{"memory reservation", `{"memory":{"reservation":67108864}}`, "memory.soft_limit_in_bytes", "memory.low", "67108864", "67108864", false},
		{"cpu quota", `{"cpu":{"quota":50000,"period":100000}}`, "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000", false},
		{"cpu shares", `{"cpu":{"shares":512}}`, "cpu.shares", "cpu.weight", "512", "20", false},
		{"cpuset", `{"cpu":{"cpus":"0","mems":"0"}}`, "cpuset.cpus", "cpuset.cpus", "0", "0", false},
		{"block device weight", `{"blockIO":{"weight":500}}`, "blkio.weight", "io.weight", "500", "default 4950", false},
		{"pids", `{"pids":{"limit":77}}`, "pids.max", "pids.max", "77", "77", false},
		{"unified", `{"unified":{"memory.high":"100000000"}}`, "", "memory.high", "", "99999744", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.only2 && !unified {
				t.Skip("cgroup version 1 has no unified resources")
			}
			if c.name == "block device weight" && control(t, g, c.v1, c.v2) == "" {
				t.Skip("this kernel weighs no block devices")
			}
			if err := f.update(c.resources); err != nil {
				t.Fatal(err)
			}
			want := c.want1
			if unified {
				want = c.want2
			}
			if got := control(t, g, c.v1, c.v2); got != want {
				t.Errorf("it is %q, want %q", got, want)
			}
		})
	}
	// What the kernel refuses comes back with the runtime's words.
	err = f.update(`{"cpu":{"cpus":"4096"}}`)
	code(t, "update with a CPU that is not there", err, codes.Unknown)
	if err == nil || !strings.Contains(err.Error(), " update: exit status 1: ") || !strings.Contains(err.Error(), "cpuset.cpus") {
		t.Errorf("error %v", err)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	if err := f.update(`{"pids":{"limit":5}}`); err == nil {
		t.Error("a stopped task was updated")
	}
	f.delete("")
	f.shutdown()
}
