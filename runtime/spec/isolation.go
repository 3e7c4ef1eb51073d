package spec

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// SharedWithHost as a namespace of Isolation means that there is none of the
// container's own.
const SharedWithHost = "host"

// Isolation says which namespaces a container has of its own. Of each, "" is the
// default, SharedWithHost the host's, and an absolute path the namespace that this
// leads to, as /proc/PID/ns/pid does to that of a process.
type Isolation struct {
	PID, IPC, UTS, Cgroup string
	// SystemPaths shows those files of the kernel, and lets write those, that are
	// hidden or protected otherwise.
	SystemPaths bool
}

// ownCgroup as Isolation.Cgroup asks for a namespace where the default has none.
const ownCgroup = "private"

func namespaces(o Options, host Host) []specs.LinuxNamespace {
	// Without a namespace for it a container sees the host's path to its group; on
	// cgroup v1 the old way, showing it, is what programs expect.
	cgroup := o.Isolation.Cgroup
	if cgroup == "" && !host.Cgroup2 {
		cgroup = SharedWithHost
	}
	if cgroup == ownCgroup {
		cgroup = ""
	}
	network := ""
	if o.Network == NetworkHost {
		network = SharedWithHost
	}
	var list []specs.LinuxNamespace
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		at   string
	}{
		{specs.PIDNamespace, o.Isolation.PID}, {specs.IPCNamespace, o.Isolation.IPC}, {specs.UTSNamespace, o.Isolation.UTS},
		{specs.MountNamespace, ""}, {specs.NetworkNamespace, network}, {specs.CgroupNamespace, cgroup},
	} {
		if ns.at != SharedWithHost {
			list = append(list, specs.LinuxNamespace{Type: ns.kind, Path: ns.at})
		}
	}
	return list
}

// ownNamespace tells whether the container has a namespace that is not the host's.
func ownNamespace(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// sysctls sets the parameters of the kernel that the options name. Those that are
// not of a namespace of the container are the host's, and refused.
func sysctls(s *specs.Spec, o Options) error {
	for key := range o.Sysctls {
		var kind specs.LinuxNamespaceType
		name := strings.ReplaceAll(key, "/", ".")
		switch {
		case strings.HasPrefix(name, "net."):
			kind = specs.NetworkNamespace
		case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.msg"), strings.HasPrefix(name, "kernel.shm"), name == "kernel.sem":
			kind = specs.IPCNamespace
		case name == "kernel.domainname":
			kind = specs.UTSNamespace
		case name == "kernel.hostname":
			return fmt.Errorf("sysctl %q: give the container a hostname instead: %w", key, errdefs.ErrInvalidArgument)
		default:
			return fmt.Errorf("sysctl %q is not one of a namespace (net.*, fs.mqueue.*, kernel.msg*, kernel.shm*, kernel.sem, kernel.domainname), so it would change the host: %w",
				key, errdefs.ErrInvalidArgument)
		}
		if !ownNamespace(s, kind) {
			return fmt.Errorf("sysctl %q: the container shares the host's %s namespace, so it would change the host: %w", key, kind, errdefs.ErrInvalidArgument)
		}
	}
	s.Linux.Sysctl = o.Sysctls
	return nil
}

// apparmor refuses a profile where there is no AppArmor.
func apparmor(o Options, host Host) error {
	if o.AppArmor == "" || o.AppArmor == Unconfined || host.AppArmor {
		return nil
	}
	return fmt.Errorf("AppArmor profile %q: this kernel does not use AppArmor: %w", o.AppArmor, errdefs.ErrFailedPrecondition)
}

// Bounds of oom_score_adj (proc_pid_oom_score_adj(5)).
const minScore, maxScore = -1000, 1000

// oomScore chooses oom_score_adj. Without a score of its own a container would have
// the daemon's, which may be guarded from the kernel's choice. Ours is one that can
// be set on this host: without CAP_SYS_RESOURCE it can't be lowered.
func oomScore(o Options, host Host) (int, error) {
	if o.OOMScore == nil {
		return max(host.OOMScore, 0), nil
	}
	score := *o.OOMScore
	switch {
	case score < minScore || score > maxScore:
		return 0, fmt.Errorf("OOM score %d is not between %d and %d: %w", score, minScore, maxScore, errdefs.ErrInvalidArgument)
	case score < host.OOMScore && !slices.Contains(host.Capabilities, "CAP_SYS_RESOURCE"):
		return 0, fmt.Errorf("OOM score %d is below this machine's %d, which only CAP_SYS_RESOURCE allows, and berth does not have that: %w",
			score, host.OOMScore, errdefs.ErrFailedPrecondition)
	}
	return score, nil
}

// lookupGroups gives the ids of groups, by the container's /etc/group.
func lookupGroups(root *Root, names []string) ([]uint32, error) {
	if len(names) == 0 {
		return nil, nil
	}
	group, err := accounts(root, "/etc/group")
	if err != nil {
		return nil, err
	}
	// All at once, as the file is read once; one at a time to say which is wrong.
	all, err := user.ParseGroup(group)
	if err != nil {
		return nil, fmt.Errorf("read /etc/group in the container: %w", err)
	}
	var ids []uint32
	for _, name := range names {
		at := slices.IndexFunc(all, func(g user.Group) bool { return g.Name == name })
		if at >= 0 {
			ids = append(ids, uint32(all[at].Gid))
			continue
		}
		id, err := parseID(name)
		if err != nil {
			return nil, fmt.Errorf("group %q is neither a number nor in the container's /etc/group: %w", name, errdefs.ErrNotFound)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// Device is a device of the host that a container may use.
type Device struct {
	Host      string // path of the device, or of a directory with some
	Container string // where the container sees it; "": at the same path
	Access    string // of r, w and m, to make it anew; "": all
}

// ParseDevice reads HOST[:CONTAINER][:ACCESS].
func ParseDevice(text string) (Device, error) {
	wrong := func(why string) (Device, error) {
		return Device{}, fmt.Errorf("device %q: %s: %w", text, why, errdefs.ErrInvalidArgument)
	}
	parts := strings.Split(text, ":")
	d := Device{Host: parts[0]}
	for _, part := range parts[1:] {
		switch {
		case d.Access != "" || d.Container != "" && path.IsAbs(part):
			return wrong("want HOST[:CONTAINER][:rwm]")
		case path.IsAbs(part):
			d.Container = path.Clean(part)
		case part != "" && strings.Trim(part, "rwm") == "" && len(part) <= 3:
			d.Access = part
		default:
			return wrong(fmt.Sprintf("%q is neither an absolute path nor of r, w and m", part))
		}
	}
	if !path.IsAbs(d.Host) {
		return wrong("its path is not absolute")
	}
	d.Host = path.Clean(d.Host)
	return d, nil
}

// addDevices lets the container have devices.
func addDevices(s *specs.Spec, list []Device) error {
	for _, d := range list {
		real, err := filepath.EvalSymlinks(d.Host)
		if err != nil {
			return fmt.Errorf("device %s: %w: %w", d.Host, err, errdefs.ErrNotFound)
		}
		at := or(d.Container, d.Host)
		found, err := deviceAt(real)
		one := []specs.LinuxDevice{found}
		if errors.Is(err, errNoDevice) {
			if one, err = devices(real); err == nil && len(one) == 0 {
				err = fmt.Errorf("neither a device nor a directory with some: %w", errdefs.ErrInvalidArgument)
			}
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Host, err)
		}
		for _, device := range one {
			device.Path = at + strings.TrimPrefix(device.Path, real)
			s.Linux.Devices = append(slices.DeleteFunc(s.Linux.Devices, func(other specs.LinuxDevice) bool { return other.Path == device.Path }), device)
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: device.Type, Major: &device.Major, Minor: &device.Minor, Access: or(d.Access, "rwm"),
			})
		}
	}
	return nil
}
