package spec

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Limits are those resources of a container that few ask for. Zero values are no
// limits.
type Limits struct {
	PIDs              int64  // processes and threads
	CPUShares         uint64 // weight among containers, 2 to 262144; the kernel's default is 1024
	CPUSet            string // processors, like 0-2,7 (cpuset(7))
	MemoryNodes       string // NUMA nodes, in the same form
	MemorySwap        int64  // bytes of memory and swap together; -1: as much swap as there is
	MemoryReservation int64  // bytes that it is brought down to when memory is short
	BlockWeight       uint16 // weight among containers for block devices, 10 to 1000
	Rlimits           []specs.POSIXRlimit
}

// Bounds of the kernel (Documentation/admin-guide/cgroup-v1).
const (
	minShares, maxShares = 2, 262144
	minWeight, maxWeight = 10, 1000
)

func cpuOf(r *specs.LinuxResources) *specs.LinuxCPU {
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func memoryOf(r *specs.LinuxResources) *specs.LinuxMemory {
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

// set sets the limits that are there. memory is the limit on memory, 0 for none.
func (l Limits) set(r *specs.LinuxResources, memory int64) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case l.PIDs < 0:
		return wrong("a limit of %d processes", l.PIDs)
	case l.PIDs > 0:
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	if l.CPUShares != 0 {
		if l.CPUShares < minShares || l.CPUShares > maxShares {
			return wrong("%d CPU shares are not between %d and %d", l.CPUShares, minShares, maxShares)
		}
		cpuOf(r).Shares = &l.CPUShares
	}
	for _, set := range []struct{ name, value string }{{"CPUs", l.CPUSet}, {"memory nodes", l.MemoryNodes}} {
		if err := checkList(set.value); err != nil {
			return wrong("%s %q: %v", set.name, set.value, err)
		}
	}
	if l.CPUSet != "" || l.MemoryNodes != "" {
		cpuOf(r).Cpus, cpuOf(r).Mems = l.CPUSet, l.MemoryNodes
	}
	switch {
	case l.MemorySwap == 0:
	case memory == 0:
		return wrong("a limit on memory and swap needs one on memory")
	case l.MemorySwap < -1 || l.MemorySwap > 0 && l.MemorySwap < memory:
		return wrong("memory and swap together, %d bytes, are less than memory alone, %d", l.MemorySwap, memory)
	default:
		memoryOf(r).Swap = &l.MemorySwap
	}
	switch {
	case l.MemoryReservation == 0:
	case l.MemoryReservation < minMemory || memory != 0 && l.MemoryReservation > memory:
		return wrong("a memory reservation of %d bytes is not between %d and the limit", l.MemoryReservation, minMemory)
	default:
		memoryOf(r).Reservation = &l.MemoryReservation
	}
	if l.BlockWeight != 0 {
		if l.BlockWeight < minWeight || l.BlockWeight > maxWeight {
			return wrong("a block device weight of %d is not between %d and %d", l.BlockWeight, minWeight, maxWeight)
		}
		r.BlockIO = &specs.LinuxBlockIO{Weight: &l.BlockWeight}
	}
	return nil
}

// checkList says what is wrong with a list like 0-2,7.
func checkList(list string) error {
	if list == "" {
		return nil
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || to < from {
			return errors.New("want a list like 0-2,7")
		}
	}
	return nil
}

// rlimits are the names of limits (getrlimit(2)).
var rlimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// unlimited is the value of a limit that is none.
const unlimited = ^uint64(0)

// ParseRlimit reads NAME=SOFT[:HARD], like nofile=1024:4096; -1 or unlimited is no
// limit. Without HARD it is the same as SOFT.
func ParseRlimit(text string) (specs.POSIXRlimit, error) {
	wrong := func(format string, args ...any) (specs.POSIXRlimit, error) {
		return specs.POSIXRlimit{}, fmt.Errorf("limit %q: %s: %w", text, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	name, values, ok := strings.Cut(text, "=")
	if !ok {
		return wrong("want NAME=SOFT[:HARD]")
	}
	name = strings.ToLower(strings.TrimPrefix(strings.ToUpper(name), "RLIMIT_"))
	if !slices.Contains(rlimits, name) {
		return wrong("there is no %q, but %s", name, strings.Join(rlimits, ", "))
	}
	soft, hard, both := strings.Cut(values, ":")
	if !both {
		hard = soft
	}
	l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name)}
	for _, v := range []struct {
		text string
		into *uint64
	}{{soft, &l.Soft}, {hard, &l.Hard}} {
		if v.text == "-1" || v.text == "unlimited" {
			*v.into = unlimited
			continue
		}
		n, err := strconv.ParseUint(v.text, 10, 64)
		if err != nil {
			return wrong("%q is no number", v.text)
		}
		*v.into = n
	}
	if l.Soft > l.Hard {
		return wrong("the soft limit is above the hard one")
	}
	return l, nil
}
