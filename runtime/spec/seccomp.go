package spec

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccompOf gives the filter of a container whose capabilities are known: the
// default profile allows what each of them is for.
func seccompOf(o Options, host Host, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch {
	case o.Seccomp == Unconfined || o.Privileged && o.Seccomp == "":
		return nil, nil
	case o.Seccomp != "" && !host.Seccomp:
		return nil, fmt.Errorf("seccomp profile: this kernel has no seccomp filters: %w", errdefs.ErrFailedPrecondition)
	case !host.Seccomp:
		return nil, nil
	case o.Seccomp == "":
		filter, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("default seccomp profile: %w", err)
		}
		return filter, nil
	}
	filter, err := seccomp.LoadProfile(o.Seccomp, s)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return filter, nil
}
