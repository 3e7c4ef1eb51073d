package cgroup

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// The types of encoded metrics. Their definitions are those of
// github.com/containerd/cgroups/v3 (cgroup1/stats, cgroup2/stats); the test
// decodes with these. They are encoded here by field number, since linking the
// generated types costs each shim more memory than all the rest of its stats.
const (
	TypeV1 = "io.containerd.cgroups.v1.Metrics"
	TypeV2 = "io.containerd.cgroups.v2.Metrics"
)

// source is one file, and the fields that its numbers go to.
type source struct {
	controller string // version 1 only
	file       string
	// single is the field of a file that holds one number. Else keys has the
	// field of each key, numbered within the message at prefix.
	single []protowire.Number
	prefix []protowire.Number
	keys   []key
	// parse, where it is set, reads the file into the message at prefix.
	parse func(text string, m *message)
}

// key is a line "name number" of a file. Where several names have one field, it
// gets their sum: later kernels tell apart what the message does not.
type key struct {
	name  string
	field protowire.Number
}

var sourcesV1 = []source{
	{controller: "pids", file: "pids.current", single: []protowire.Number{2, 1}},
	{controller: "pids", file: "pids.max", single: []protowire.Number{2, 2}},
	{controller: "cpuacct", file: "cpuacct.usage", single: []protowire.Number{3, 1, 1}},
	{controller: "cpuacct", file: "cpuacct.usage_sys", single: []protowire.Number{3, 1, 2}},
	{controller: "cpuacct", file: "cpuacct.usage_user", single: []protowire.Number{3, 1, 3}},
	{controller: "cpuacct", file: "cpuacct.usage_percpu", prefix: []protowire.Number{3, 1}, parse: perCPU},
	{controller: "cpu", file: "cpu.stat", prefix: []protowire.Number{3, 2}, keys: []key{
		{"nr_periods", 1}, {"nr_throttled", 2}, {"throttled_time", 3},
	}},
	{controller: "memory", file: "memory.stat", prefix: []protowire.Number{4}, keys: []key{
		{"cache", 1}, {"rss", 2}, {"rss_huge", 3}, {"mapped_file", 4}, {"dirty", 5}, {"writeback", 6}, {"pgpgin", 7}, {"pgpgout", 8},
		{"pgfault", 9}, {"pgmajfault", 10}, {"inactive_anon", 11}, {"active_anon", 12}, {"inactive_file", 13}, {"active_file", 14},
		{"unevictable", 15}, {"hierarchical_memory_limit", 16}, {"hierarchical_memsw_limit", 17}, {"total_cache", 18},
		{"total_rss", 19}, {"total_rss_huge", 20}, {"total_mapped_file", 21}, {"total_dirty", 22}, {"total_writeback", 23},
		{"total_pgpgin", 24}, {"total_pgpgout", 25}, {"total_pgfault", 26}, {"total_pgmajfault", 27}, {"total_inactive_anon", 28},
		{"total_active_anon", 29}, {"total_inactive_file", 30}, {"total_active_file", 31}, {"total_unevictable", 32},
	}},
	{controller: "memory", file: "memory.limit_in_bytes", single: []protowire.Number{4, 33, 1}},
	{controller: "memory", file: "memory.usage_in_bytes", single: []protowire.Number{4, 33, 2}},
	{controller: "memory", file: "memory.max_usage_in_bytes", single: []protowire.Number{4, 33, 3}},
	{controller: "memory", file: "memory.failcnt", single: []protowire.Number{4, 33, 4}},
	{controller: "memory", file: "memory.memsw.limit_in_bytes", single: []protowire.Number{4, 34, 1}},
	{controller: "memory", file: "memory.memsw.usage_in_bytes", single: []protowire.Number{4, 34, 2}},
	{controller: "memory", file: "memory.memsw.max_usage_in_bytes", single: []protowire.Number{4, 34, 3}},
	{controller: "memory", file: "memory.memsw.failcnt", single: []protowire.Number{4, 34, 4}},
	{controller: "memory", file: "memory.kmem.limit_in_bytes", single: []protowire.Number{4, 35, 1}},
	{controller: "memory", file: "memory.kmem.usage_in_bytes", single: []protowire.Number{4, 35, 2}},
	{controller: "memory", file: "memory.kmem.max_usage_in_bytes", single: []protowire.Number{4, 35, 3}},
	{controller: "memory", file: "memory.kmem.failcnt", single: []protowire.Number{4, 35, 4}},
	{controller: "memory", file: "memory.kmem.tcp.limit_in_bytes", single: []protowire.Number{4, 36, 1}},
	{controller: "memory", file: "memory.kmem.tcp.usage_in_bytes", single: []protowire.Number{4, 36, 2}},
	{controller: "memory", file: "memory.kmem.tcp.max_usage_in_bytes", single: []protowire.Number{4, 36, 3}},
	{controller: "memory", file: "memory.kmem.tcp.failcnt", single: []protowire.Number{4, 36, 4}},
	{controller: "memory", file: "memory.oom_control", prefix: []protowire.Number{9}, keys: []key{
		{"oom_kill_disable", 1}, {"under_oom", 2}, {"oom_kill", 3},
	}},
	{controller: "rdma", file: "rdma.current", prefix: []protowire.Number{6}, parse: rdma(1)},
	{controller: "rdma", file: "rdma.max", prefix: []protowire.Number{6}, parse: rdma(2)},
}

var sourcesV2 = []source{
	{file: "pids.current", single: []protowire.Number{1, 1}},
	{file: "pids.max", single: []protowire.Number{1, 2}},
	{file: "cpu.stat", prefix: []protowire.Number{2}, keys: []key{
		{"usage_usec", 1}, {"user_usec", 2}, {"system_usec", 3}, {"nr_periods", 4}, {"nr_throttled", 5}, {"throttled_usec", 6},
		{"nr_bursts", 8}, {"burst_usec", 9},
	}},
	{file: "memory.stat", prefix: []protowire.Number{4}, keys: []key{
		{"anon", 1}, {"file", 2}, {"kernel_stack", 3}, {"slab", 4}, {"sock", 5}, {"shmem", 6}, {"file_mapped", 7}, {"file_dirty", 8},
		{"file_writeback", 9}, {"anon_thp", 10}, {"inactive_anon", 11}, {"active_anon", 12}, {"inactive_file", 13},
		{"active_file", 14}, {"unevictable", 15}, {"slab_reclaimable", 16}, {"slab_unreclaimable", 17}, {"pgfault", 18},
		{"pgmajfault", 19}, {"workingset_refault", 20}, {"workingset_refault_anon", 20}, {"workingset_refault_file", 20},
		{"workingset_activate", 21}, {"workingset_activate_anon", 21}, {"workingset_activate_file", 21}, {"workingset_nodereclaim", 22},
		{"pgrefill", 23}, {"pgscan", 24}, {"pgsteal", 25}, {"pgactivate", 26}, {"pgdeactivate", 27}, {"pglazyfree", 28},
		{"pglazyfreed", 29}, {"thp_fault_alloc", 30}, {"thp_collapse_alloc", 31},
	}},
	{file: "memory.current", single: []protowire.Number{4, 32}},
	{file: "memory.max", single: []protowire.Number{4, 33}},
	{file: "memory.swap.current", single: []protowire.Number{4, 34}},
	{file: "memory.swap.max", single: []protowire.Number{4, 35}},
	{file: "memory.peak", single: []protowire.Number{4, 36}},
	{file: "memory.swap.peak", single: []protowire.Number{4, 37}},
	{file: "memory.events", prefix: []protowire.Number{8}, keys: []key{
		{"low", 1}, {"high", 2}, {"max", 3}, {"oom", 4}, {"oom_kill", 5}, {"oom_group_kill", 6},
	}},
	{file: "cpu.pressure", prefix: []protowire.Number{2, 7}, parse: pressure},
	{file: "memory.pressure", prefix: []protowire.Number{4, 38}, parse: pressure},
	{file: "io.pressure", prefix: []protowire.Number{6, 2}, parse: pressure},
	{file: "io.stat", prefix: []protowire.Number{6}, parse: ioStat},
	{file: "rdma.current", prefix: []protowire.Number{5}, parse: rdma(1)},
	{file: "rdma.max", prefix: []protowire.Number{5}, parse: rdma(2)},
}

// Metrics reads what the group has used, as the name and the encoding of a
// metrics message. What the kernel does not tell is left out.
func (g Group) Metrics() (typeName string, value []byte, err error) {
	sources, typeName := sourcesV1, TypeV1
	if g.Unified != "" {
		sources, typeName = sourcesV2, TypeV2
	}
	root := &message{}
	for _, s := range sources {
		dir := g.Unified
		if dir == "" {
			if dir = g.Controllers[s.controller]; dir == "" {
				continue
			}
		}
		data, err := readFile(filepath.Join(dir, s.file))
		if err != nil {
			return "", nil, fmt.Errorf("metrics: %w", err)
		}
		if len(data) > 0 {
			s.read(string(data), root)
		}
	}
	more := g.families(root)
	if more != nil {
		return "", nil, fmt.Errorf("metrics: %w", more)
	}
	return typeName, root.encode(), nil
}

// read puts what a file says into the message.
func (s source) read(text string, root *message) {
	switch {
	case s.parse != nil:
		s.parse(text, root.at(s.prefix...))
		return
	case s.single != nil:
		if n, ok := number(text); ok {
			last := len(s.single) - 1
			root.at(s.single[:last]...).set(s.single[last], n)
		}
		return
	}
	m := root.at(s.prefix...)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		i := slices.IndexFunc(s.keys, func(k key) bool { return k.name == name })
		if n, ok := number(value); ok && i >= 0 {
			m.sum(s.keys[i].field, n)
		}
	}
}

// unlimited is what the wire has for "max".
const unlimited = 1<<64 - 1

func number(text string) (uint64, bool) {
	if text == "max" {
		return unlimited, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}
