package spec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/internal/labels"
)

// UserNS is a user namespace of a container's own: its users are others on the
// host, root too (user_namespaces(7)). Both lists have to map 0.
type UserNS struct{ UIDs, GIDs []specs.LinuxIDMapping }

// Labels are those of the container's snapshot.
func (u *UserNS) Labels() map[string]string {
	return map[string]string{labels.SnapshotUIDs: mappingText(u.UIDs), labels.SnapshotGIDs: mappingText(u.GIDs)}
}

func mappingText(list []specs.LinuxIDMapping) string {
	parts := make([]string, len(list))
	for i, m := range list {
		parts[i] = fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Size)
	}
	return strings.Join(parts, ",")
}

// ParseMapping reads CTR:HOST:SIZE[,...].
func ParseMapping(text string) ([]specs.LinuxIDMapping, error) {
	var list []specs.LinuxIDMapping
	for part := range strings.SplitSeq(text, ",") {
		fields := strings.Split(part, ":")
		var n [3]uint64
		ok := len(fields) == len(n)
		for i := 0; ok && i < len(n); i++ {
			v, err := strconv.ParseUint(fields[i], 10, 32)
			n[i], ok = v, err == nil
		}
		if !ok || n[2] == 0 || n[0]+n[2] > 1<<32-1 || n[1]+n[2] > 1<<32-1 {
			return nil, fmt.Errorf("mapping %q: want CTR:HOST:SIZE: %w", part, errdefs.ErrInvalidArgument)
		}
		list = append(list, specs.LinuxIDMapping{ContainerID: uint32(n[0]), HostID: uint32(n[1]), Size: uint32(n[2])})
	}
	return list, nil
}

// CheckUsers says what is wrong with the container's own users, if it is to have
// some: InvalidArgument. Build does the same.
func (o Options) CheckUsers() error { return o.UserNS.check(o) }

// check says what is wrong with a user namespace beside the other options.
func (u *UserNS) check(o Options) error {
	if u == nil {
		return nil
	}
	for _, side := range []struct {
		name string
		list []specs.LinuxIDMapping
	}{{"users", u.UIDs}, {"groups", u.GIDs}} {
		root := false
		for i, m := range side.list {
			root = root || m.ContainerID == 0
			for _, other := range side.list[:i] {
				if overlap(m.ContainerID, other.ContainerID, m.Size, other.Size) || overlap(m.HostID, other.HostID, m.Size, other.Size) {
					return fmt.Errorf("mapping of %s %s: its ranges overlap: %w", side.name, mappingText(side.list), errdefs.ErrInvalidArgument)
				}
			}
		}
		if !root {
			return fmt.Errorf("mapping of %s %q does not map 0: %w", side.name, mappingText(side.list), errdefs.ErrInvalidArgument)
		}
	}
	switch {
	case o.Privileged:
		return fmt.Errorf("a privileged container has the host's users: leave out the one or the other: %w", errdefs.ErrInvalidArgument)
	case o.Isolation.PID == SharedWithHost || o.Isolation.IPC == SharedWithHost || o.Isolation.UTS == SharedWithHost:
		return fmt.Errorf("a container with users of its own can't have the host's processes, IPC or name: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func overlap(a, b, sizeA, sizeB uint32) bool {
	return uint64(a) < uint64(b)+uint64(sizeB) && uint64(b) < uint64(a)+uint64(sizeA)
}

// apply gives a spec the namespace.
func (u *UserNS) apply(s *specs.Spec) {
	if u == nil {
		return
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = u.UIDs, u.GIDs
}
