package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// version is that of the OCI runtime spec whose features are used. A runtime of
// a later 1.x takes it too.
const version = "1.0.2"

// maxHostname is the kernel's bound on a host name (sethostname(2)).
const maxHostname = 64

// base is the spec before anything is known of the process.
func base(o Options, host Host) *specs.Spec {
	s := &specs.Spec{
		Version:  version,
		Root:     &specs.Root{Path: "rootfs", Readonly: o.ReadOnly},
		Hostname: hostname(o, host),
		Mounts:   defaultMounts(o, host),
		Linux: &specs.Linux{
			CgroupsPath: cgroupsPath(o),
			Namespaces:  namespaces(o, host),
			Resources: &specs.LinuxResources{
				// The runtime itself allows null, zero, full, random, urandom,
				// tty and the terminal's devices (the spec's section "Default
				// Devices").
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
			MaskedPaths:   slices.Clone(maskedPaths),
			ReadonlyPaths: slices.Clone(readonlyPaths),
		},
	}
	o.UserNS.apply(s)
	if o.Privileged {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		s.Linux.Devices = host.Devices
	}
	if o.Privileged || o.Isolation.SystemPaths {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	return s
}

// cgroupsPath says where the container's control group is to be made; with systemd
// that is a slice, and what the name of the scope in it is made of. A namespace may
// have dashes, which in such a name separate: they are written as systemd-escape does.
func cgroupsPath(o Options) string {
	if !o.SystemdCgroup {
		return path.Join("/berth", o.Namespace, o.ID)
	}
	return "system.slice:berth-" + strings.ReplaceAll(o.Namespace, "-", `\x2d`) + ":" + o.ID
}

func hostname(o Options, host Host) string {
	name := o.Hostname
	switch {
	case o.Isolation.UTS != "":
		return "" // it would be set for all that share it
	case name != "":
	case o.Network == NetworkHost:
		name = host.Hostname
	default:
		name = o.ID
	}
	return name[:min(len(name), maxHostname)]
}

// maskedPaths are files of the kernel that tell of the host or reach its
// firmware; the container sees them empty.
var maskedPaths = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/sys/devices/virtual/powercap",
	"/sys/firmware",
}

// readonlyPaths are files of the kernel through which the host could be
// changed.
var readonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

// defaultMounts are the kernel's file systems that every Linux program may
// expect (the spec's section "Default Filesystems"), and the control groups.
func defaultMounts(o Options, host Host) []specs.Mount {
	access := "ro"
	if o.Privileged {
		access = "rw"
	}
	sysfs := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	cgroup := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}}
	if o.UserNS != nil && o.Network == NetworkHost {
		// A user namespace may mount the sysfs of a network of its own alone.
		sysfs = bind("/sys", "/sys", true)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shmSize(o)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sysfs,
		cgroup,
	}
}

func shmSize(o Options) string {
	if o.ShmSize == 0 {
		return "size=65536k"
	}
	return fmt.Sprintf("size=%d", o.ShmSize)
}
