// Package cdi adds devices to a container's spec by the Container Device Interface:
// the vendor of a device describes in a file which device nodes, mounts, hooks and
// environment a container needs to use it. Who asks for a device trusts those
// files, as root writes them.
package cdi

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// DefaultDirs are where descriptions are looked for, the later ones first.
var DefaultDirs = []string{"/etc/cdi", "/var/run/cdi"}

// GPUs is the kind of devices that --gpus of other tools means.
const GPUs = "nvidia.com/gpu"

// IsDevice tells whether text names a device as VENDOR/CLASS=NAME.
func IsDevice(text string) bool { return parser.IsQualifiedName(text) }

// Inject adds devices to s, by the descriptions in dirs. None of them is added if
// one is NotFound, or what its description says FailedPrecondition; the error lists
// which there are, and which descriptions can't be read.
func Inject(s *specs.Spec, dirs, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read the descriptions of devices in %s: %w", strings.Join(dirs, " and "), err)
	}
	missing, err := cache.InjectDevices(s, devices...)
	if len(missing) > 0 {
		return fmt.Errorf("device %s: no description in %s has it, %s%s: %w", strings.Join(missing, ", "), strings.Join(dirs, " or "),
			there(cache.ListDevices()), broken(cache), errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w: %w", strings.Join(devices, ", "), err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// maxListed bounds how many devices an error lists.
const maxListed = 20

func there(devices []string) string {
	if len(devices) == 0 {
		return "there are none"
	}
	more := ""
	if len(devices) > maxListed {
		more = fmt.Sprintf(" and %d more", len(devices)-maxListed)
		devices = devices[:maxListed]
	}
	return "there are " + strings.Join(devices, ", ") + more
}

// broken tells of descriptions that can't be read.
func broken(cache *cdi.Cache) string {
	var all []string
	for path, errs := range cache.GetErrors() {
		for _, err := range errs {
			if !os.IsNotExist(err) {
				all = append(all, fmt.Sprintf("%s: %v", path, err))
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return "; can't be read: " + strings.Join(all, "; ")
}

// ParseGPUs turns what --gpus takes into names of devices: all, a number of them,
// or device=NAME[,NAME]..., which may be quoted.
func ParseGPUs(text string) ([]string, error) {
	wrong := func(why string) ([]string, error) {
		return nil, fmt.Errorf("gpus %q: %s: %w", text, why, errdefs.ErrInvalidArgument)
	}
	value := strings.Trim(text, `"'`)
	if value == "all" || value == "-1" {
		return []string{GPUs + "=all"}, nil
	}
	if n, err := strconv.ParseUint(value, 10, 8); err == nil {
		if n == 0 {
			return wrong("want all, a number from 1 up, or device=NAME")
		}
		names := make([]string, n)
		for i := range names {
			names[i] = GPUs + "=" + strconv.Itoa(i)
		}
		return names, nil
	}
	list, ok := strings.CutPrefix(value, "device=")
	if !ok {
		return wrong("want all, a number of them, or device=NAME[,NAME]...")
	}
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if !IsDevice(GPUs + "=" + name) {
			return wrong(fmt.Sprintf("%q is no name of a device", name))
		}
		names = append(names, GPUs+"="+name)
	}
	return names, nil
}
