package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// allCaps in a list of capabilities stands for every one there is.
const allCaps = "ALL"

// defaultCaps are what programs in images commonly need and what does not reach
// beyond the container: the set that Docker made the custom.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE",
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FOWNER",
	"CAP_FSETID",
	"CAP_KILL",
	"CAP_MKNOD",
	"CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW",
	"CAP_SETFCAP",
	"CAP_SETGID",
	"CAP_SETPCAP",
	"CAP_SETUID",
	"CAP_SYS_CHROOT",
}

// capabilities gives the sets of a container's first process. What the host
// can't grant is left out of the default and of ALL, and an error if asked for
// by name. Only root has them from the start; for others they are the bound of
// what a set-user-id program can gain.
func capabilities(o Options, host Host, uid uint32) (*specs.LinuxCapabilities, error) {
	granted := defaultCaps
	if o.Privileged {
		granted = host.Capabilities
	}
	dropped, err := capList(o.CapDrop)
	if err != nil {
		return nil, fmt.Errorf("drop capability: %w", err)
	}
	added, err := capList(o.CapAdd)
	if err != nil {
		return nil, fmt.Errorf("add capability: %w", err)
	}
	for _, name := range added {
		if name != allCaps && !slices.Contains(host.Capabilities, name) {
			return nil, fmt.Errorf("add capability: this machine does not let berth have %s: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	if slices.Contains(added, allCaps) {
		granted = host.Capabilities
	}
	if slices.Contains(dropped, allCaps) {
		granted = nil
	}
	set := []string{}
	for _, name := range host.Capabilities {
		isIn := slices.Contains(granted, name) && !slices.Contains(dropped, name)
		if isIn || slices.Contains(added, name) {
			set = append(set, name)
		}
	}
	return capSets(set, uid), nil
}

// capSets puts a set where it belongs for a user.
func capSets(set []string, uid uint32) *specs.LinuxCapabilities {
	if uid != 0 {
		return &specs.LinuxCapabilities{Bounding: set}
	}
	return &specs.LinuxCapabilities{Bounding: set, Effective: slices.Clone(set), Permitted: slices.Clone(set)}
}

// capList brings names into the form CAP_NAME and refuses unknown ones.
func capList(names []string) ([]string, error) {
	list := make([]string, 0, len(names))
	for _, name := range names {
		full := capName(name)
		if strings.EqualFold(name, allCaps) {
			full = allCaps
		} else if !slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool { return capName(c.String()) == full }) {
			return nil, fmt.Errorf("unknown capability %q: %w", name, errdefs.ErrInvalidArgument)
		}
		list = append(list, full)
	}
	return list, nil
}

// capName brings a name like "kill" into the form CAP_KILL.
func capName(name string) string {
	upper := strings.ToUpper(name)
	if strings.HasPrefix(upper, "CAP_") {
		return upper
	}
	return "CAP_" + upper
}
