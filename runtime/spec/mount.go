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

// ParseVolume reads SOURCE:DESTINATION[:ro|rw], both absolute paths.
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
	readonly := false
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			readonly = true
		case "rw":
		default:
			return wrong(fmt.Sprintf("%q is neither ro nor rw", parts[2]))
		}
	}
	return bind(path.Clean(parts[0]), path.Clean(parts[1]), readonly), nil
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
