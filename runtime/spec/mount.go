package spec

import (
	"encoding/csv"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// mountsOf puts the mounts that the options name after the default ones. One at
// the same place replaces the earlier.
func mountsOf(o Options, host Host, defaults []specs.Mount) ([]specs.Mount, error) {
	mounts := slices.Clone(defaults)
	switch o.Network {
	case NetworkNone, "":
	case NetworkHost:
		for _, file := range host.NetworkFiles {
			mounts = append(mounts, bind(file, file, true))
		}
	default:
		return nil, fmt.Errorf("network %q is neither none nor host: %w", o.Network, errdefs.ErrInvalidArgument)
	}
	if o.Isolation.IPC == SharedWithHost {
		for _, dir := range host.IPCDirs {
			mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool { return m.Destination == dir })
			mounts = append(mounts, bind(dir, dir, false))
		}
	}
	for _, m := range o.Mounts {
		at := path.Clean(m.Destination)
		mounts = slices.DeleteFunc(mounts, func(other specs.Mount) bool { return path.Clean(other.Destination) == at })
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// bind is a recursive bind mount that mounts of the host pass into, but none
// pass out of.
func bind(source, destination string, readonly bool) specs.Mount {
	access := "rw"
	if readonly {
		access = "ro"
	}
	return specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", access}}
}

// ParseVolume reads SOURCE:DESTINATION[:OPTION[,OPTION]...], both absolute paths. An
// option is ro or rw, or how mounts pass in and out: private, rprivate (the
// default), slave, rslave, shared, rshared (mount_namespaces(7)).
func ParseVolume(text string) (specs.Mount, error) {
	parts := strings.Split(text, ":")
	wrong := func(why string) (specs.Mount, error) {
		return specs.Mount{}, fmt.Errorf("volume %q: %s: %w", text, why, errdefs.ErrInvalidArgument)
	}
	if len(parts) < 2 || len(parts) > 3 {
		return wrong("want SOURCE:DESTINATION[:ro]")
	}
	if !path.IsAbs(parts[0]) {
		return wrong(fmt.Sprintf("the source %q is not an absolute path, and there are no named volumes", parts[0]))
	}
	if err := destination(parts[1]); err != nil {
		return wrong(err.Error())
	}
	readonly, passing := false, "rprivate"
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			switch option {
			case "ro":
				readonly = true
			case "rw":
				readonly = false
			case "private", "rprivate", "slave", "rslave", "shared", "rshared":
				passing = option
			case "z", "Z":
				return wrong("SELinux labels are not set, so there is no " + option)
			default:
				return wrong(fmt.Sprintf("%q is neither ro nor rw, nor one of private, slave and shared or these with r before", option))
			}
		}
	}
	m := bind(path.Clean(parts[0]), path.Clean(parts[1]), readonly)
	m.Options[1] = passing
	return m, nil
}

// propagation is how mounts have to pass to the root file system for those of the
// host to reach the container's; "" leaves it to the runtime.
func propagation(mounts []specs.Mount) string {
	found := ""
	for _, m := range mounts {
		for _, option := range m.Options {
			switch option {
			case "shared", "rshared":
				return "rshared"
			case "slave", "rslave":
				found = "rslave"
			}
		}
	}
	return found
}

// ParseTmpfs reads DESTINATION[:OPTION[,OPTION]...], with the options of
// tmpfs(5) and mount(8). Unless they say otherwise it can be written, but has no
// programs, devices and set-user-id bits.
func ParseTmpfs(text string) (specs.Mount, error) {
	at, list, _ := strings.Cut(text, ":")
	if err := destination(at); err != nil {
		return specs.Mount{}, fmt.Errorf("tmpfs %q: %v: %w", text, err, errdefs.ErrInvalidArgument)
	}
	options := []string{"nosuid", "nodev", "noexec", "rw"}
	for option := range strings.SplitSeq(list, ",") {
		key, value, _ := strings.Cut(option, "=")
		if option == "" {
			continue
		}
		if opposite, ok := opposites[option]; ok {
			options = slices.DeleteFunc(options, func(o string) bool { return o == opposite || o == option })
		}
		if key == "size" && !strings.HasSuffix(value, "%") {
			size, err := ParseSize(value)
			if err != nil {
				return specs.Mount{}, fmt.Errorf("tmpfs %q: %w", text, err)
			}
			option = fmt.Sprintf("size=%d", size)
		}
		options = append(options, option)
	}
	return specs.Mount{Destination: path.Clean(at), Type: "tmpfs", Source: "tmpfs", Options: options}, nil
}

// opposites are mount options that take each other's place.
var opposites = map[string]string{
	"rw": "ro", "ro": "rw", "suid": "nosuid", "nosuid": "suid", "dev": "nodev", "nodev": "dev", "exec": "noexec", "noexec": "exec",
}

// destination says what is wrong with a place in the container.
func destination(dst string) error {
	switch {
	case !path.IsAbs(dst):
		return fmt.Errorf("the destination %q is not an absolute path", dst)
	case path.Clean(dst) == "/":
		return fmt.Errorf("the destination is the root directory")
	}
	return nil
}

// ParseMount reads a comma-separated list of KEY=VALUE: type (bind or tmpfs),
// src (or source), dst (or target, destination), ro (or readonly), size and
// mode of a tmpfs, and options, which may repeat and pass as they are.
func ParseMount(text string) (specs.Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %q: %v: %w", text, err, errdefs.ErrInvalidArgument)
	}
	m := mountText{kind: "bind"}
	for _, field := range fields {
		if err := m.set(field); err != nil {
			return specs.Mount{}, fmt.Errorf("mount %q: %v: %w", text, err, errdefs.ErrInvalidArgument)
		}
	}
	mount, err := m.mount()
	if err != nil {
		return specs.Mount{}, fmt.Errorf("mount %q: %v: %w", text, err, errdefs.ErrInvalidArgument)
	}
	return mount, nil
}

// mountText is a --mount as far as it is read.
type mountText struct {
	kind, source, destination, size, mode string
	readonly                              bool
	options                               []string
}

func (m *mountText) set(field string) error {
	key, value, hasValue := strings.Cut(field, "=")
	if !hasValue && key != "ro" && key != "readonly" {
		return fmt.Errorf("%q has no value", key)
	}
	switch key {
	case "type":
		m.kind = value
	case "src", "source":
		m.source = value
	case "dst", "target", "destination":
		m.destination = value
	case "ro", "readonly":
		switch value {
		case "", "true", "1":
			m.readonly = true
		case "false", "0":
			m.readonly = false
		default:
			return fmt.Errorf("%s=%s is neither true nor false", key, value)
		}
	case "size", "tmpfs-size":
		m.size = value
	case "mode", "tmpfs-mode":
		m.mode = value
	case "options":
		m.options = append(m.options, value)
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}

func (m *mountText) mount() (specs.Mount, error) {
	if err := destination(m.destination); err != nil {
		return specs.Mount{}, err
	}
	at := path.Clean(m.destination)
	switch m.kind {
	case "bind":
		if !path.IsAbs(m.source) {
			return specs.Mount{}, fmt.Errorf("the source %q is not an absolute path", m.source)
		}
		if m.size != "" || m.mode != "" {
			return specs.Mount{}, fmt.Errorf("size and mode are of a tmpfs")
		}
		b := bind(path.Clean(m.source), at, m.readonly)
		b.Options = append(b.Options, m.options...)
		return b, nil
	case "tmpfs":
		return m.tmpfs(at)
	}
	return specs.Mount{}, fmt.Errorf("type %q is neither bind nor tmpfs", m.kind)
}

func (m *mountText) tmpfs(at string) (specs.Mount, error) {
	if m.source != "" {
		return specs.Mount{}, fmt.Errorf("a tmpfs has no source")
	}
	access := "rw"
	if m.readonly {
		access = "ro"
	}
	options := []string{"nosuid", "nodev", access}
	if m.size != "" {
		size, err := ParseSize(m.size)
		if err != nil {
			return specs.Mount{}, err
		}
		options = append(options, fmt.Sprintf("size=%d", size))
	}
	if m.mode != "" {
		options = append(options, "mode="+m.mode)
	}
	return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: append(options, m.options...)}, nil
}
