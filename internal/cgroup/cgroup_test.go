package cgroup

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
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

// chrootMounts are those of a chroot, as mount --rbind /sys makes them.
const chrootMounts = `41 30 0:23 / /srv/chroot/sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct
42 30 0:24 /x /srv/chroot/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
43 30 0:22 / /srv/chroot/sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate
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
		{"a chroot's", "4:memory:/c\n2:cpu,cpuacct:/c\n", hybridMounts + chrootMounts, Group{Controllers: map[string]string{
			"memory": "/sys/fs/cgroup/memory/c", "cpu": "/sys/fs/cgroup/cpu,cpuacct/c", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/c",
		}}},
		{"a chroot's, listed first", "4:memory:/c\n", chrootMounts + hybridMounts, Group{Controllers: map[string]string{"memory": "/sys/fs/cgroup/memory/c"}}},
		{"unified and a chroot's", "0::/c\n", unifiedMounts + chrootMounts, Group{Unified: "/sys/fs/cgroup/c"}},
		{"ours", own, hybridMounts, Group{}},
		{"nothing mounted", "0::/x\n", "", Group{}},
		{"garbage", "x\n\n0:\n", unifiedMounts, Group{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := hierarchyLines([]byte(c.mounts))
			for _, mounts := range []string{c.mounts, lines} {
				got := find(parsePaths([]byte(c.paths)), parsePaths([]byte(own)), parseMounts([]byte(mounts)))
				if !reflect.DeepEqual(got, c.want) {
					t.Errorf("%+v, want %+v", got, c.want)
				}
			}
			if n := strings.Count(c.mounts, " - cgroup"); strings.Count(lines, "\n") != n {
				t.Errorf("%d of %d lines: %q", strings.Count(lines, "\n"), n, lines)
			}
		})
	}
}

// TestMountsFit: an environment variable has room for 128 KiB (MAX_ARG_STRLEN).
func TestMountsFit(t *testing.T) {
	defer func(was func() (string, error)) { mounts = was }(mounts)
	for _, c := range []struct {
		lines string
		fit   bool
	}{
		{unifiedMounts, true},
		{strings.Repeat(chrootMounts, 500), false},
	} {
		UseMounts(c.lines)
		want := ""
		if c.fit {
			want = c.lines
		}
		if got := Mounts(); got != want {
			t.Errorf("%d bytes of %d", len(got), len(c.lines))
		}
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
		"cpuacct.usage_percpu":       "700 300 \n",
		"cpu.stat":                   "nr_periods 1\nnr_throttled 2\nthrottled_time 3\nunknown 4\n",
		"memory.stat":                "cache 10\nrss 20\ntotal_unevictable 30\nhierarchical_memory_limit 40\nbroken\nrss_huge x\n",
		"memory.limit_in_bytes":      "100\n",
		"memory.usage_in_bytes":      "50\n",
		"memory.max_usage_in_bytes":  "60\n",
		"memory.failcnt":             "1\n",
		"memory.kmem.usage_in_bytes": "7\n",
		"memory.oom_control":         "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		// BFQ counts what it schedules, and where it does not the throttle layer.
		"blkio.bfq.io_service_bytes_recursive":      "259:1023 Read 4096\n259:1023 Write 8192\n259:1023 Total 12288\nTotal 12288\n",
		"blkio.throttle.io_service_bytes_recursive": "259:1023 Read 1\n",
		"blkio.bfq.io_serviced_recursive":           "Total 0\n",
		"blkio.throttle.io_serviced_recursive":      "259:1023 Read 2\nbroken Read 1\n259:1023 Read x\n",
		"blkio.time_recursive":                      "259:1023 77\n",
		"hugetlb.2MB.usage_in_bytes":                "2097152\n", "hugetlb.2MB.max_usage_in_bytes": "4194304\n", "hugetlb.2MB.failcnt": "5\n",
		"hugetlb.2MB.rsvd.usage_in_bytes": "9\n", "hugetlb.2MB.limit_in_bytes": "1\n",
		"rdma.current": "mlx5_0 hca_handle=2 hca_object=2000\n\n", "rdma.max": "mlx5_0 hca_handle=3 hca_object=max\n",
	})
	all := map[string]string{"pids": dir, "cpu": dir, "cpuacct": dir, "memory": dir, "blkio": dir, "hugetlb": dir, "rdma": dir}
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
			Usage:      &cgroup1.CPUUsage{Total: 1000, Kernel: 400, User: 600, PerCPU: []uint64{700, 300}},
			Throttling: &cgroup1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory: &cgroup1.MemoryStat{
			Cache: 10, RSS: 20, TotalUnevictable: 30, HierarchicalMemoryLimit: 40,
			Usage:  &cgroup1.MemoryEntry{Limit: 100, Usage: 50, Max: 60, Failcnt: 1},
			Kernel: &cgroup1.MemoryEntry{Usage: 7},
		},
		MemoryOomControl: &cgroup1.MemoryOomControl{OomKill: 2},
		Blkio: &cgroup1.BlkIOStat{
			IoServiceBytesRecursive: []*cgroup1.BlkIOEntry{
				{Op: "Read", Major: 259, Minor: 1023, Value: 4096}, {Op: "Write", Major: 259, Minor: 1023, Value: 8192},
				{Op: "Total", Major: 259, Minor: 1023, Value: 12288},
			},
			IoServicedRecursive: []*cgroup1.BlkIOEntry{{Op: "Read", Major: 259, Minor: 1023, Value: 2}},
			IoTimeRecursive:     []*cgroup1.BlkIOEntry{{Major: 259, Minor: 1023, Value: 77}},
		},
		Hugetlb: []*cgroup1.HugetlbStat{{Usage: 2 << 20, Max: 4 << 20, Failcnt: 5, Pagesize: "2MB"}},
		Rdma: &cgroup1.RdmaStat{
			Current: []*cgroup1.RdmaEntry{{Device: "mlx5_0", HcaHandles: 2, HcaObjects: 2000}},
			Limit:   []*cgroup1.RdmaEntry{{Device: "mlx5_0", HcaHandles: 3, HcaObjects: math.MaxUint32}},
		},
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
		"memory.stat":    "anon 10\nthp_collapse_alloc 11\nsock 12\nworkingset_refault_anon 13\nworkingset_refault_file 14\nworkingset_activate_file 15\n",
		"memory.current": "50\n", "memory.max": "max\n", "memory.peak": "60\n", "memory.swap.current": "0\n",
		"memory.events":   "low 1\noom 2\noom_kill 3\noom_group_kill 4\n",
		"cpu.pressure":    "some avg10=1.50 avg60=0.25 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
		"memory.pressure": "some avg10=99.00 avg60=0.00 avg300=x total=7\nother avg10=1\n\n",
		"io.pressure":     "full avg10=0.00 avg60=0.00 avg300=0.01 total=8\n",
		"io.stat":         "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16\nbroken rbytes=1\n253:0 rbytes=9\n",
		"rdma.current":    "mlx4_0 hca_handle=2 hca_object=2000\n", "rdma.max": "mlx4_0 hca_handle=max hca_object=3000\n",
		"hugetlb.1GB.current": "1073741824\n", "hugetlb.1GB.max": "max\n", "hugetlb.1GB.events": "max 3\n", "hugetlb.1GB.rsvd.current": "4\n",
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
		MemoryEvents: &cgroup2.MemoryEvents{Low: 1, Oom: 2, OomKill: 3, OomGroupKill: 4},
		CPU: &cgroup2.CPUStat{
			UsageUsec: 9, UserUsec: 5, SystemUsec: 4, NrBursts: 2,
			PSI: &cgroup2.PSIStats{Some: &cgroup2.PSIData{Avg10: 1.5, Avg60: 0.25, Total: 123}, Full: &cgroup2.PSIData{}},
		},
		Memory: &cgroup2.MemoryStat{
			Anon: 10, ThpCollapseAlloc: 11, Sock: 12, Usage: 50, UsageLimit: unlimited, MaxUsage: 60,
			WorkingsetRefault: 27, WorkingsetActivate: 15, PSI: &cgroup2.PSIStats{Some: &cgroup2.PSIData{Avg10: 99, Total: 7}},
		},
		Io: &cgroup2.IOStat{
			Usage: []*cgroup2.IOEntry{{Major: 8, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}, {Major: 253, Rbytes: 9}},
			PSI:   &cgroup2.PSIStats{Full: &cgroup2.PSIData{Avg300: 0.01, Total: 8}},
		},
		Rdma: &cgroup2.RdmaStat{
			Current: []*cgroup2.RdmaEntry{{Device: "mlx4_0", HcaHandles: 2, HcaObjects: 2000}},
			Limit:   []*cgroup2.RdmaEntry{{Device: "mlx4_0", HcaHandles: math.MaxUint32, HcaObjects: 3000}},
		},
		Hugetlb: []*cgroup2.HugeTlbStat{{Current: 1 << 30, Max: unlimited, Pagesize: "1GB", Failcnt: 3}},
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
		"workingset_refault_anon": "workingset_refault", "workingset_refault_file": "workingset_refault",
		"workingset_activate_anon": "workingset_activate", "workingset_activate_file": "workingset_activate",
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
			if s.single != nil {
				n := len(s.single) - 1
				for _, f := range s.single[:n] {
					d = d.Fields().ByNumber(f).Message()
				}
				if f := d.Fields().ByNumber(s.single[n]); f == nil || f.Kind() != protoreflect.Uint64Kind {
					t.Errorf("%s goes to %v", s.file, f)
				}
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
