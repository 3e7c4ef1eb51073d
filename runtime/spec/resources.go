package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// cpuPeriod is the time, in microseconds, over which CPU quota is counted: the
// kernel's own default.
const cpuPeriod = 100_000

// Bounds below which the kernel or the runtime itself can't live.
const (
	minMemory = 4 << 20 // bytes
	minQuota  = 1000    // microseconds (cpu.cfs_quota_us)
)

// limit sets the resources that the options name.
func limit(s *specs.Spec, o Options) error {
	if o.Memory != 0 {
		if o.Memory < minMemory {
			return fmt.Errorf("memory limit of %d bytes is less than the %d that a container needs: %w", o.Memory, minMemory, errdefs.ErrInvalidArgument)
		}
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &o.Memory}
	}
	if err := o.Limits.set(s.Linux.Resources, o.Memory); err != nil {
		return err
	}
	if o.CPUs == 0 {
		return nil
	}
	quota := math.Round(o.CPUs * cpuPeriod)
	if !(quota >= minQuota && quota < 1<<40) {
		return fmt.Errorf("%v CPUs is not a number from 0.01 up: %w", o.CPUs, errdefs.ErrInvalidArgument)
	}
	period, whole := uint64(cpuPeriod), int64(quota)
	cpu := cpuOf(s.Linux.Resources)
	cpu.Quota, cpu.Period = &whole, &period
	return nil
}

// sizeUnits are the suffixes of ParseSize, in powers of 1024.
const sizeUnits = "bkmgt"

// ParseSize reads a number of bytes like "512", "64m", "1.5g" or "2GiB".
func ParseSize(text string) (int64, error) {
	wrong := func() (int64, error) {
		return 0, fmt.Errorf("%q is not a size like 64m or 1.5g: %w", text, errdefs.ErrInvalidArgument)
	}
	lower := strings.ToLower(strings.TrimSpace(text))
	number := strings.TrimRight(lower, "abcdefghijklmnopqrstuvwxyz")
	unit := strings.TrimSpace(lower[len(number):])
	power := 0
	if unit != "" {
		power = strings.IndexByte(sizeUnits, unit[0])
		rest := unit[1:]
		if power < 0 || rest != "" && rest != "b" && rest != "ib" || power == 0 && rest != "" {
			return wrong()
		}
	}
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || value < 0 || math.IsInf(value, 0) || math.IsNaN(value) {
		return wrong()
	}
	value *= math.Pow(1024, float64(power))
	if value >= math.MaxInt64 {
		return wrong()
	}
	return int64(value), nil
}
