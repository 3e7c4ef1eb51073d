package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/sys"
)

// Host is what a spec depends on of the machine that runs the container.
type Host struct {
	Cgroup2      bool     // the unified hierarchy is at /sys/fs/cgroup
	Seccomp      bool     // the kernel has seccomp filters
	AppArmor     bool     // the kernel uses AppArmor
	Capabilities []string // those that this process may pass on, as "CAP_KILL"
	Hostname     string
	OOMScore     int                 // oom_score_adj of this process
	NetworkFiles []string            // the host's files that belong to its network
	IPCDirs      []string            // the host's directories that belong to its IPC
	Devices      []specs.LinuxDevice // for privileged containers; ReadHost leaves it to HostDevices
}

// ReadHost tells about the machine that this process runs on.
func ReadHost() (Host, error) {
	var h Host
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return Host{}, fmt.Errorf("read the host's name: %w", err)
	}
	h.NetworkFiles, h.IPCDirs = existing(networkFiles), existing(ipcDirs)
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err == nil {
		h.Cgroup2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	// A filter at address zero is EFAULT where there are filters, and EINVAL
	// where there are none (prctl(2)).
	err = unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
	h.Seccomp = !errors.Is(err, unix.EINVAL)
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	h.AppArmor = err == nil && len(enabled) > 0 && enabled[0] == 'Y'
	if h.Capabilities, err = bounding(); err != nil {
		return Host{}, err
	}
	if h.OOMScore, err = sys.OOMScore(os.Getpid()); err != nil {
		return Host{}, fmt.Errorf("read our own oom score: %w", err)
	}
	return h, nil
}

// HostDevices lists what is in /dev, for Host.Devices.
func HostDevices() ([]specs.LinuxDevice, error) { return devices("/dev") }

// networkFiles are the files of a host that say how names are looked up.
var networkFiles = []string{"/etc/resolv.conf", "/etc/hosts"}

// ipcDirs are where a host shows its POSIX shared memory and message queues.
var ipcDirs = []string{"/dev/shm", "/dev/mqueue"}

func existing(paths []string) (there []string) {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			there = append(there, path)
		}
	}
	return there
}

// bounding lists this process's bounding set: nothing beyond it can be granted
// to a container.
func bounding() ([]string, error) {
	all, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list the kernel's capabilities: %w", err)
	}
	var names []string
	for _, c := range all {
		held, err := capability.GetBound(c)
		if err != nil {
			return nil, fmt.Errorf("read the bounding set: %w", err)
		}
		if held {
			names = append(names, capName(c.String()))
		}
	}
	return names, nil
}

// skippedDevices are directories of /dev that a container has of its own.
var skippedDevices = map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true}

// devices lists the device files under dir, but for those of terminals, which
// every container has of its own.
func devices(dir string) ([]specs.LinuxDevice, error) {
	var list []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil // went meanwhile, or is not ours to pass on
			}
			return err
		}
		if entry.IsDir() {
			if path != dir && skippedDevices[entry.Name()] {
				return fs.SkipDir
			}
			return nil
		}
		if entry.Type()&fs.ModeDevice == 0 || entry.Name() == "console" || entry.Name() == "ptmx" {
			return nil
		}
		device, err := deviceAt(path)
		if err == nil {
			list = append(list, device)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the devices in %s: %w", dir, err)
	}
	return list, nil
}

var errNoDevice = errors.New("not a device")

// deviceAt describes the device file at path, or is errNoDevice.
func deviceAt(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	kind := "c"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, errNoDevice
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return specs.LinuxDevice{
		Path:     path,
		Type:     kind,
		Major:    int64(unix.Major(uint64(st.Rdev))),
		Minor:    int64(unix.Minor(uint64(st.Rdev))),
		FileMode: &mode,
		UID:      &st.Uid,
		GID:      &st.Gid,
	}, nil
}
