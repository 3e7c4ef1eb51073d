package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
)

const hybridMounts = `25 30 0:22 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 /outer /mnt/a\040b rw - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
garbage
`

const unifiedMounts = `25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
`

func TestFind(t *testing.T) {
	const own = "4:memory:/user\n3:pids:/outer/user\n2:cpu,cpuacct:/\n0::/\n"
	for _, c := range []struct {
		name, paths, mounts string
		want                Group
	}{
		{"hybrid", "4:memory:/x/c\n3:pids:/outer/x/c\n2:cpu,cpuacct:/x/c\n0::/x/c\n", hybridMounts, Group{Controllers: map[string]string{
			"memory": "/sys/fs/cgroup/memory/x/c", "pids": "/mnt/a b/x/c", "cpu": "/sys/fs/cgroup/cpu,cpuacct/x/c", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/x/c",
		}}},
		{"outside of what is mounted", "3:pids:/outerspace\n4:memory:/c\n", hybridMounts, Group{Controllers: map[string]string{"memory": "/sys/fs/cgroup/memory/c"}}},
		{"unified", "0::/x:y/c\n", unifiedMounts, Group{Unified: "/sys/fs/cgroup/x:y/c"}},
		{"ours", own, hybridMounts, Group{}},
		{"nothing mounted", "0::/x\n", "", Group{}},
		{"garbage", "x\n\n0:\n", unifiedMounts, Group{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := find(parsePaths([]byte(c.paths)), parsePaths([]byte(own)), parseMounts([]byte(c.mounts)))
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestOfSelf(t *testing.T) {
	if g, err := Of(os.Getpid()); !errors.Is(err, ErrNone) {
		t.Errorf("%+v, %v: we share our group with ourselves", g, err)
	}
	if _, err := Of(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// tree writes files below a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestProcesses(t *testing.T) {
	dir := tree(t, map[string]string{"cgroup.procs": "7\n3\n0\n", "sub/cgroup.procs": "5\n7\n", "sub/deep/cgroup.procs": "", "sub/empty/x": ""})
	got, err := Group{Unified: dir}.Processes()
	if err != nil || !slices.Equal(got, []int{3, 5, 7}) {
		t.Errorf("%v, %v", got, err)
	}
	got, err = Group{Controllers: map[string]string{"hugetlb": dir}}.Processes()
	if err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := (Group{Unified: filepath.Join(dir, "gone")}).Processes(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := (Group{Unified: tree(t, map[string]string{"cgroup.procs": "x\n"})}).Processes(); err == nil {
		t.Errorf("%v", got)
	}
}

// TestMetricsV1 decodes with the types of the library that defined them.
func TestMetricsV1(t *testing.T) {
	dir := tree(t, map[string]string{
		"pids.current": "3\n", "pids.max": "max\n",
		"cpuacct.usage": "1000\n", "cpuacct.usage_sys": "400\n", "cpuacct.usage_user": "600\n",
		"cpu.stat":                   "nr_periods 1\nnr_throttled 2\nthrottled_time 3\nunknown 4\n",
		"memory.stat":                "cache 10\nrss 20\ntotal_unevictable 30\nhierarchical_memory_limit 40\nbroken\nrss_huge x\n",
		"memory.limit_in_bytes":      "100\n",
		"memory.usage_in_bytes":      "50\n",
		"memory.max_usage_in_bytes":  "60\n",
		"memory.failcnt":             "1\n",
		"memory.kmem.usage_in_bytes": "7\n",
		"memory.oom_control":         "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	})
	all := map[string]string{"pids": dir, "cpu": dir, "cpuacct": dir, "memory": dir}
	name, value, err := Group{Controllers: all}.Metrics()
	if err != nil || name != TypeV1 {
		t.Fatal(name, err)
	}
	got := &cgroup1.Metrics{}
	if err := proto.Unmarshal(value, got); err != nil {
		t.Fatal(err)
	}
	want := &cgroup1.Metrics{
		Pids: &cgroup1.PidsStat{Current: 3, Limit: unlimited},
		CPU: &cgroup1.CPUStat{
			Usage:      &cgroup1.CPUUsage{Total: 1000, Kernel: 400, User: 600},
			Throttling: &cgroup1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory: &cgroup1.MemoryStat{
			Cache: 10, RSS: 20, TotalUnevictable: 30, HierarchicalMemoryLimit: 40,
			Usage:  &cgroup1.MemoryEntry{Limit: 100, Usage: 50, Max: 60, Failcnt: 1},
			Kernel: &cgroup1.MemoryEntry{Usage: 7},
		},
		MemoryOomControl: &cgroup1.MemoryOomControl{OomKill: 2},
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if name != string(got.ProtoReflect().Descriptor().FullName()) {
		t.Errorf("%s is not the type's name", name)
	}
}

func TestMetricsV2(t *testing.T) {
	dir := tree(t, map[string]string{
		"pids.current": "3\n", "pids.max": "10\n",
		"cpu.stat":       "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_bursts 2\n",
		"memory.stat":    "anon 10\nthp_collapse_alloc 11\nsock 12\n",
		"memory.current": "50\n", "memory.max": "max\n", "memory.peak": "60\n", "memory.swap.current": "0\n",
		"memory.events": "low 1\noom 2\noom_kill 3\noom_group_kill 4\n",
	})
	name, value, err := Group{Unified: dir}.Metrics()
	if err != nil || name != TypeV2 {
		t.Fatal(name, err)
	}
	got := &cgroup2.Metrics{}
	if err := proto.Unmarshal(value, got); err != nil {
		t.Fatal(err)
	}
	want := &cgroup2.Metrics{
		Pids:         &cgroup2.PidsStat{Current: 3, Limit: 10},
		CPU:          &cgroup2.CPUStat{UsageUsec: 9, UserUsec: 5, SystemUsec: 4, NrBursts: 2},
		Memory:       &cgroup2.MemoryStat{Anon: 10, ThpCollapseAlloc: 11, Sock: 12, Usage: 50, UsageLimit: unlimited, MaxUsage: 60},
		MemoryEvents: &cgroup2.MemoryEvents{Low: 1, Oom: 2, OomKill: 3, OomGroupKill: 4},
	}
	if !proto.Equal(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	if name != string(got.ProtoReflect().Descriptor().FullName()) {
		t.Errorf("%s is not the type's name", name)
	}
}

// TestKeysAreTheirFields compares every key of the tables with the field of the
// same number, by name.
func TestKeysAreTheirFields(t *testing.T) {
	odd := map[string]string{ // where the kernel and the message differ
		"pgpgin": "pg_pg_in", "pgpgout": "pg_pg_out", "pgfault": "pg_fault", "pgmajfault": "pg_maj_fault",
		"hierarchical_memsw_limit": "hierarchical_swap_limit", "nr_periods": "periods", "nr_throttled": "throttled_periods",
		"total_pgpgin": "total_pg_pg_in", "total_pgpgout": "total_pg_pg_out", "total_pgfault": "total_pg_fault", "total_pgmajfault": "total_pg_maj_fault",
	}
	for _, c := range []struct {
		sources []source
		message proto.Message
	}{{sourcesV1, &cgroup1.Metrics{}}, {sourcesV2, &cgroup2.Metrics{}}} {
		for _, s := range c.sources {
			d := c.message.ProtoReflect().Descriptor()
			for _, n := range s.prefix {
				d = d.Fields().ByNumber(n).Message()
			}
			for _, k := range s.keys {
				f := d.Fields().ByNumber(k.field)
				if f == nil || string(f.Name()) != k.name && string(f.Name()) != odd[k.name] {
					t.Errorf("%s of %s goes to %v", k.name, s.file, f)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(hybridMounts), []byte("4:memory:/x\n0::/\n"))
	f.Fuzz(func(t *testing.T, mounts, paths []byte) {
		find(parsePaths(paths), nil, parseMounts(mounts))
	})
}
