package spec

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Network says which network a container sees.
type Network string

const (
	// NetworkNone is a network namespace of the container's own with nothing
	// but the loopback interface. It is the zero value's meaning too.
	NetworkNone Network = "none"
	// NetworkHost is the host's network, with its /etc/resolv.conf and
	// /etc/hosts.
	NetworkHost Network = "host"
)

// Options says what a container is to be, beyond what its image says. ID and
// Namespace are required; every other zero value means the default.
type Options struct {
	Namespace string
	ID        string

	Args       []string // command and arguments; instead of the image's Cmd
	Entrypoint []string // instead of the image's Entrypoint and Cmd; a single "" means none
	Env        []string // KEY=VALUE, over the image's
	User       string   // NAME|UID[:GROUP|GID]; instead of the image's
	Cwd        string   // absolute; instead of the image's WorkingDir
	Terminal   bool

	Hostname        string  // default: the id, or with NetworkHost the host's
	Network         Network // default: NetworkNone
	ReadOnly        bool    // the root file system can't be written
	Privileged      bool    // all capabilities and devices of the host, nothing masked, no seccomp
	NoNewPrivileges bool    // set-user-id programs gain nothing
	CapAdd          []string
	CapDrop         []string
	Mounts          []specs.Mount
	Memory          int64   // bytes; 0: no limit
	CPUs            float64 // as many as may be used at once; 0: no limit
	Limits          Limits
	Isolation       Isolation
	SystemdCgroup   bool              // for a runtime that has systemd make the control group
	UserNS          *UserNS           // nil: users are those of the host
	Groups          []string          // names or ids of groups that the user is in besides its own
	Sysctls         map[string]string // of the container's namespaces
	Annotations     map[string]string
	OOMScore        *int // from -1000, never killed, to 1000; nil: the host's own
	AppArmor        string
	Devices         []Device
	Hooks           *specs.Hooks
	ShmSize         int64 // of /dev/shm, bytes; 0: 64 MiB
	// Seccomp is the JSON of a seccomp profile, in Docker's form; empty: the
	// default profile; Unconfined: none.
	Seccomp string
	// Edit changes the spec at last, before the seccomp filter is made for it; nil:
	// nothing is changed.
	Edit func(*specs.Spec) error
}

// Unconfined as Options.Seccomp means no seccomp filter.
const Unconfined = "unconfined"

// Build makes the spec of a container of which config is the image's and root
// the root file system, in which user names are looked up. The error is of kind
// InvalidArgument if an option is wrong, NotFound if root lacks the user.
func Build(o Options, config imagespec.ImageConfig, root *Root, host Host) (*specs.Spec, error) {
	if err := o.UserNS.check(o); err != nil {
		return nil, err
	}
	s := base(o, host)
	args, err := command(o, config)
	if err != nil {
		return nil, err
	}
	user, home, err := LookupUser(root, or(o.User, config.User))
	if err != nil {
		return nil, err
	}
	cwd := or(o.Cwd, config.WorkingDir, "/")
	if !path.IsAbs(cwd) {
		return nil, fmt.Errorf("working directory %q is not absolute: %w", cwd, errdefs.ErrInvalidArgument)
	}
	groups, err := lookupGroups(root, o.Groups)
	if err != nil {
		return nil, err
	}
	user.AdditionalGids = append(user.AdditionalGids, groups...)
	score, err := oomScore(o, host)
	if err != nil {
		return nil, err
	}
	s.Annotations = o.Annotations
	s.Hooks = o.Hooks
	s.Process = &specs.Process{
		OOMScoreAdj:     &score,
		Rlimits:         o.Limits.Rlimits,
		ApparmorProfile: o.AppArmor,
		Terminal:        o.Terminal,
		User:            user,
		Args:            args,
		Cwd:             path.Clean(cwd),
		NoNewPrivileges: o.NoNewPrivileges,
	}
	s.Process.Env = environment(defaultEnv(o.Terminal, s.Hostname, home), config.Env, o.Env)
	if err := limit(s, o); err != nil {
		return nil, err
	}
	if s.Mounts, err = mountsOf(o, host, s.Mounts); err != nil {
		return nil, err
	}
	s.Linux.RootfsPropagation = propagation(s.Mounts)
	if err := errors.Join(sysctls(s, o), apparmor(o, host)); err != nil {
		return nil, err
	}
	if err := addDevices(s, o.Devices); err != nil {
		return nil, err
	}
	if s.Process.Capabilities, err = capabilities(o, host, user.UID); err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := o.Edit(s); err != nil {
			return nil, err
		}
	}
	if s.Linux.Seccomp, err = seccompOf(o, host, s); err != nil {
		return nil, err
	}
	return s, nil
}

// command puts entrypoint and arguments together as Docker does: an entrypoint
// of the user's own takes the image's arguments away too.
func command(o Options, config imagespec.ImageConfig) ([]string, error) {
	entrypoint, args := config.Entrypoint, config.Cmd
	if len(o.Entrypoint) > 0 {
		entrypoint, args = o.Entrypoint, nil
		if o.Entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if len(o.Args) > 0 {
		args = o.Args
	}
	all := slices.Concat(entrypoint, args)
	if len(all) == 0 {
		return nil, fmt.Errorf("neither the image nor you name a command: %w", errdefs.ErrInvalidArgument)
	}
	if all[0] == "" {
		return nil, fmt.Errorf("the command's name is empty: %w", errdefs.ErrInvalidArgument)
	}
	return all, nil
}

// defaultPath is where commands are looked for if nobody says otherwise.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultEnv is the environment below the image's.
func defaultEnv(terminal bool, hostname, home string) []string {
	env := []string{defaultPath}
	if hostname != "" {
		env = append(env, "HOSTNAME="+hostname)
	}
	if home != "" {
		env = append(env, "HOME="+home)
	}
	if terminal {
		env = append(env, "TERM=xterm")
	}
	return env
}

// environment merges lists of KEY=VALUE. A later value replaces an earlier one
// at the earlier one's place; a KEY without "=" removes it.
func environment(lists ...[]string) []string {
	var env []string
	for _, list := range lists {
		for _, entry := range list {
			key, _, hasValue := strings.Cut(entry, "=")
			at := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
			switch {
			case !hasValue && at >= 0:
				env = slices.Delete(env, at, at+1)
			case !hasValue:
			case at >= 0:
				env[at] = entry
			default:
				env = append(env, entry)
			}
		}
	}
	return env
}

// or gives the first that is not empty.
func or(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
