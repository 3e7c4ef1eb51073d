package main

import (
	"os"
	"strings"
	"testing"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/internal/cgroup"
)

// metrics asks for the statistics of the task.
func (f *fixture) metrics() *anypb.Any {
	f.t.Helper()
	answer, err := f.task.Stats(f.ctx(), &task.StatsRequest{Id: f.id})
	if err != nil {
		f.t.Fatal(err)
	}
	return answer.Stats
}

// TestMetrics has a container use some of everything that counts on this machine,
// under limits, and finds it in the metrics of its version of cgroups.
func TestMetrics(t *testing.T) {
	f := newFixture(t, func(id string) any {
		// A loop under a quota, which on a busy machine it may not reach, memory, and a process killed for want of memory.
		s := spec(id, "sh", "-c", hog+"; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 600 & echo done; wait")
		s["linux"].(map[string]any)["resources"] = map[string]any{
			"memory": map[string]any{"limit": 64 << 20, "swap": 64 << 20},
			"cpu":    map[string]any{"quota": 20000, "period": 50000},
			"pids":   map[string]any{"limit": 42},
		}
		return s
	})
	c := newClientIO(t)
	f.run(&task.CreateTaskRequest{Stdout: c.stdout.path})
	c.stdout.expect("done\n")
	switch packed := f.metrics(); packed.TypeUrl {
	case cgroup.TypeV1:
		var m cgroup1.Metrics
		if err := proto.Unmarshal(packed.Value, &m); err != nil {
			t.Fatal(err)
		}
		checkV1(t, &m)
	case cgroup.TypeV2:
		var m cgroup2.Metrics
		if err := proto.Unmarshal(packed.Value, &m); err != nil {
			t.Fatal(err)
		}
		checkV2(t, &m)
	default:
		t.Errorf("metrics are a %q", packed.TypeUrl)
	}
	f.kill("", unix.SIGKILL)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}

func checkV1(t *testing.T, m *cgroup1.Metrics) {
	t.Helper()
	for what, wrong := range map[string]bool{
		"pids":         m.GetPids().GetCurrent() != 2 || m.GetPids().GetLimit() != 42,
		"cpu":          m.GetCPU().GetUsage().GetTotal() == 0 || len(m.GetCPU().GetUsage().GetPerCPU()) == 0,
		"throttling":   m.GetCPU().GetThrottling().GetPeriods() == 0,
		"memory limit": m.GetMemory().GetUsage().GetLimit() != 64<<20,
		"memory max":   m.GetMemory().GetUsage().GetMax() == 0,
		"memory stat":  m.GetMemory().GetTotalRSS() == 0 || m.GetMemory().GetHierarchicalMemoryLimit() != 64<<20,
		"oom":          m.GetMemoryOomControl().GetOomKill() != 1,
		"blkio":        m.GetBlkio() == nil,
	} {
		if wrong {
			t.Errorf("%s: %v", what, m)
		}
	}
}

func checkV2(t *testing.T, m *cgroup2.Metrics) {
	t.Helper()
	_, err := os.Stat("/proc/pressure/cpu")
	pressure := err == nil
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	huge := strings.Contains(string(controllers), "hugetlb")
	for what, wrong := range map[string]bool{
		"pids":        m.GetPids().GetCurrent() != 2 || m.GetPids().GetLimit() != 42,
		"cpu":         m.GetCPU().GetUsageUsec() == 0 || m.GetCPU().GetUserUsec()+m.GetCPU().GetSystemUsec() == 0,
		"throttling":  m.GetCPU().GetNrPeriods() == 0,
		"memory":      m.GetMemory().GetUsage() == 0 || m.GetMemory().GetUsageLimit() != 64<<20,
		"memory stat": m.GetMemory().GetAnon() == 0 || m.GetMemory().GetPgfault() == 0,
		"oom":         m.GetMemoryEvents().GetOomKill() != 1 || m.GetMemoryEvents().GetMax() == 0,
		"pressure":    pressure && (m.GetCPU().GetPSI().GetSome().GetTotal() == 0 || m.GetMemory().GetPSI() == nil || m.GetIo().GetPSI() == nil),
		"huge pages":  huge && len(m.GetHugetlb()) == 0,
	} {
		if wrong {
			t.Errorf("%s: %v", what, m)
		}
	}
}
