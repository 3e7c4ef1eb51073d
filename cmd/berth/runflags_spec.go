package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/runtime/cdi"
	"github.com/berthd/berth/runtime/spec"
)

// specFlags are those flags of run that shape the container's spec and that few
// containers need.
type specFlags struct {
	ulimits, tmpfs, sysctls, groups, annotations []string

	pids                                   int64
	cpuset, mems, swap, reservation, shm   string
	shares                                 uint64
	blockWeight                            uint16
	pidMode, ipcMode, utsMode, cgroupMode  string
	oomScore                               string
	security, devices, cdiDirs, gpus, hook []string
	userns                                 string
	uidMap, gidMap                         []string
}

func (f *specFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of a process, as `NAME=SOFT[:HARD]`, like nofile=1024:4096")
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "file system in memory, as `DESTINATION[:OPTIONS]`")
	flags.StringArrayVar(&f.sysctls, "sysctl", nil, "parameter of the kernel, of the container's namespaces, as `KEY=VALUE`")
	flags.StringSliceVar(&f.groups, "group-add", nil, "`group` that its user is in as well, by name or number")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation of its OCI spec, as `KEY=VALUE`")
	flags.Int64Var(&f.pids, "pids-limit", 0, "`number` of processes and threads it may have")
	flags.StringVar(&f.cpuset, "cpuset-cpus", "", "`CPUs` it may use, like 0-2,7")
	flags.StringVar(&f.mems, "cpuset-mems", "", "memory `nodes` it may use, like 0,1")
	flags.Uint64Var(&f.shares, "cpu-shares", 0, "`weight` among containers for CPUs, 1024 being usual")
	flags.StringVar(&f.swap, "memory-swap", "", "limit on memory and swap together, a `size`; -1: as much swap as there is")
	flags.StringVar(&f.reservation, "memory-reservation", "", "`size` that it is brought down to when memory is short")
	flags.Uint16Var(&f.blockWeight, "blkio-weight", 0, "`weight` among containers for block devices, 10 to 1000")
	flags.StringVar(&f.shm, "shm-size", "", "`size` of /dev/shm, 64m if not given")
	flags.StringVar(&f.pidMode, "pid", "", "whose processes it sees: its own, or those of `host|container:ID`")
	flags.StringVar(&f.ipcMode, "ipc", "", "whose System V IPC and message queues it has: its own, or those of `host|container:ID`")
	flags.StringVar(&f.utsMode, "uts", "", "whose host name it has: its own, or that of `host|container:ID`")
	flags.StringVar(&f.cgroupMode, "cgroupns", "", "view of control groups: `private|host`; private where there is version 2 alone")
	flags.StringVar(&f.userns, "userns", "", "users of its own: those that /etc/subuid and /etc/subgid give to `USER`")
	flags.StringSliceVar(&f.uidMap, "uidmap", nil, "users of its own, as `CTR:HOST:SIZE`")
	flags.StringSliceVar(&f.gidMap, "gidmap", nil, "groups of its own, as `CTR:HOST:SIZE`; those of --uidmap if not given")
	flags.StringVar(&f.oomScore, "oom-score-adj", "", "`score` by which the kernel chooses whom to kill for memory, -1000 (never) to 1000")
	flags.StringArrayVar(&f.security, "security-opt", nil, "`option`: apparmor=PROFILE, seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined")
	flags.StringArrayVar(&f.devices, "device", nil, "`device`: HOST[:CONTAINER][:rwm] as paths, or VENDOR/CLASS=NAME by CDI")
	flags.StringSliceVar(&f.cdiDirs, "cdi-spec-dir", cdi.DefaultDirs, "`directory` with descriptions of CDI devices")
	flags.StringArrayVar(&f.gpus, "gpus", nil, "GPUs: `all`, a number of them, or device=NAME[,NAME]...; by CDI")
	flags.StringArrayVar(&f.hook, "hook", nil, "program that the OCI runtime is to call, as `KIND=PATH[,ARG]...`; KIND is one of createRuntime, createContainer, startContainer, poststart, poststop")
}

// apply puts the flags into the options for a spec. What needs the daemon is done by
// join.
func (f *specFlags) apply(s *spec.Options) error {
	for _, step := range []func(*spec.Options) error{f.limits, f.maps, f.isolation, f.users, f.securityOptions, f.deviceOptions, f.hooks} {
		if err := step(s); err != nil {
			return err
		}
	}
	s.Groups = f.groups
	for _, text := range f.tmpfs {
		m, err := spec.ParseTmpfs(text)
		if err != nil {
			return err
		}
		s.Mounts = append(s.Mounts, m)
	}
	return nil
}

func (f *specFlags) limits(s *spec.Options) error {
	l := spec.Limits{PIDs: f.pids, CPUShares: f.shares, CPUSet: f.cpuset, MemoryNodes: f.mems, BlockWeight: f.blockWeight}
	for _, size := range []struct {
		name, text string
		into       *int64
	}{{"memory-swap", f.swap, &l.MemorySwap}, {"memory-reservation", f.reservation, &l.MemoryReservation}, {"shm-size", f.shm, &s.ShmSize}} {
		if size.text == "" {
			continue
		}
		if size.name == "memory-swap" && size.text == "-1" {
			*size.into = -1
			continue
		}
		n, err := spec.ParseSize(size.text)
		if err == nil && n == 0 {
			err = errors.New("0 bytes are none at all; leave it out for the default")
		}
		if err != nil {
			return fmt.Errorf("--%s: %w", size.name, err)
		}
		*size.into = n
	}
	for _, text := range f.ulimits {
		l1, err := spec.ParseRlimit(text)
		if err != nil {
			return err
		}
		l.Rlimits = append(slices.DeleteFunc(l.Rlimits, func(other specs.POSIXRlimit) bool { return other.Type == l1.Type }), l1)
	}
	s.Limits = l
	if f.oomScore != "" {
		score, err := strconv.Atoi(f.oomScore)
		if err != nil {
			return fmt.Errorf("--oom-score-adj: %q is no number", f.oomScore)
		}
		s.OOMScore = &score
	}
	return nil
}

func (f *specFlags) maps(s *spec.Options) (err error) {
	if s.Sysctls, err = pairs("sysctl", f.sysctls); err != nil {
		return err
	}
	s.Annotations, err = pairs("annotation", f.annotations)
	return err
}

// pairs reads KEY=VALUE.
func pairs(what string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	all := make(map[string]string, len(list))
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q: want KEY=VALUE", what, text)
		}
		all[key] = value
	}
	return all, nil
}

// ofContainer in a flag for a namespace names a container after it.
const ofContainer = "container:"

func (f *specFlags) isolation(s *spec.Options) error {
	for _, ns := range []struct{ name, value string }{{"pid", f.pidMode}, {"ipc", f.ipcMode}, {"uts", f.utsMode}} {
		id, ok := strings.CutPrefix(ns.value, ofContainer)
		if ns.value != "" && ns.value != spec.SharedWithHost && ns.value != "private" && (!ok || id == "") {
			return fmt.Errorf("--%s %s: want host or container:ID", ns.name, ns.value)
		}
	}
	private := func(value string) string {
		if value == "private" {
			return ""
		}
		return value
	}
	s.Isolation.PID, s.Isolation.IPC, s.Isolation.UTS = private(f.pidMode), private(f.ipcMode), private(f.utsMode)
	switch f.cgroupMode {
	case "", "private", spec.SharedWithHost:
		s.Isolation.Cgroup = f.cgroupMode
	default:
		return fmt.Errorf("--cgroupns %s: want private or host", f.cgroupMode)
	}
	if s.Isolation.UTS != "" && s.Hostname != "" {
		return fmt.Errorf("--uts %s with --hostname: the name is the other's", s.Isolation.UTS)
	}
	return nil
}

// users reads the flags for a user namespace.
func (f *specFlags) users(s *spec.Options) error {
	uids, gids := strings.Join(f.uidMap, ","), strings.Join(f.gidMap, ",")
	switch {
	case f.userns == spec.SharedWithHost || f.userns == "" && uids == "" && gids == "":
		return nil
	case f.userns != "" && (uids != "" || gids != ""):
		return errors.New("--userns with --uidmap or --gidmap: one of them says it all")
	case f.userns != "":
		var err error
		if uids, err = subIDs("/etc/subuid", f.userns); err != nil {
			return err
		}
		if gids, err = subIDs("/etc/subgid", f.userns); err != nil {
			return err
		}
	case uids == "":
		return errors.New("--gidmap without --uidmap: groups of its own need users of its own")
	case gids == "":
		gids = uids
	}
	u := &spec.UserNS{}
	var err error
	if u.UIDs, err = spec.ParseMapping(uids); err != nil {
		return fmt.Errorf("--uidmap: %w", err)
	}
	if u.GIDs, err = spec.ParseMapping(gids); err != nil {
		return fmt.Errorf("--gidmap: %w", err)
	}
	s.UserNS = u
	return nil
}

// subIDs maps from 0 on what a file gives to a user (subuid(5)).
func subIDs(file, name string) (string, error) {
	given, err := user.ParseSubIDFileFilter(file, func(id user.SubID) bool { return id.Name == name })
	if err != nil {
		return "", fmt.Errorf("--userns %s: %w", name, err)
	}
	var parts []string
	next := int64(0)
	for _, r := range given {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", next, r.SubID, r.Count))
		next += r.Count
	}
	if len(parts) == 0 {
		return "", hint(fmt.Errorf("--userns %s: %s gives no ids to it", name, file), "add a line like %s:100000:65536, or use --uidmap", name)
	}
	return strings.Join(parts, ","), nil
}

// join finds the namespaces of the containers that others are to share.
func join(ctx context.Context, c *client.Client, o *spec.Options) error {
	for _, ns := range []struct {
		file string
		at   *string
	}{{"pid", &o.Isolation.PID}, {"ipc", &o.Isolation.IPC}, {"uts", &o.Isolation.UTS}} {
		id, ok := strings.CutPrefix(*ns.at, ofContainer)
		if !ok {
			continue
		}
		p, err := c.Process(id, "").State(ctx)
		if err != nil {
			return fmt.Errorf("--%s %s: %w", ns.file, *ns.at, err)
		}
		path := filepath.Join("/proc", strconv.Itoa(int(p.GetPid())), "ns", ns.file)
		if _, err := os.Stat(path); err != nil || p.GetPid() == 0 {
			return hint(fmt.Errorf("--%s %s: it does not run", ns.file, *ns.at), "start it with `berth start %s`", id)
		}
		*ns.at = path
	}
	return nil
}

func (f *specFlags) securityOptions(s *spec.Options) error {
	for _, text := range f.security {
		key, value, has := strings.Cut(text, "=")
		if !has {
			key, value, has = strings.Cut(text, ":") // the old way
		}
		var err error
		switch {
		case key == "no-new-privileges" && (!has || value == "true"):
			s.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
			s.NoNewPrivileges = false
		case key == "apparmor" && value != "":
			s.AppArmor = value
		case key == "seccomp" && value != "":
			s.Seccomp, err = readProfile(value)
		case key == "systempaths" && value == spec.Unconfined:
			s.Isolation.SystemPaths = true
		case key == "label":
			err = errors.New("SELinux labels are not set")
		default:
			err = errors.New("want apparmor=PROFILE, seccomp=FILE|unconfined, no-new-privileges or systempaths=unconfined")
		}
		if err != nil {
			return fmt.Errorf("--security-opt %s: %w", text, err)
		}
	}
	return nil
}

func (f *specFlags) deviceOptions(s *spec.Options) error {
	var named []string
	for _, text := range f.devices {
		if cdi.IsDevice(text) {
			named = append(named, text)
			continue
		}
		d, err := spec.ParseDevice(text)
		if err != nil {
			return err
		}
		s.Devices = append(s.Devices, d)
	}
	for _, text := range f.gpus {
		gpus, err := cdi.ParseGPUs(text)
		if err != nil {
			return err
		}
		named = append(named, gpus...)
	}
	if len(named) > 0 {
		dirs := f.cdiDirs
		s.Edit = func(made *specs.Spec) error { return cdi.Inject(made, dirs, named) }
	}
	return nil
}

// hookTime bounds a hook that is given by a flag, in seconds.
const hookTime = 60

func (f *specFlags) hooks(s *spec.Options) error {
	if len(f.hook) == 0 {
		return nil
	}
	h := &specs.Hooks{}
	kinds := map[string]*[]specs.Hook{
		"createRuntime": &h.CreateRuntime, "createContainer": &h.CreateContainer, "startContainer": &h.StartContainer,
		"poststart": &h.Poststart, "poststop": &h.Poststop,
	}
	for _, text := range f.hook {
		kind, command, _ := strings.Cut(text, "=")
		args := strings.Split(command, ",")
		into := kinds[kind]
		switch {
		case into == nil:
			return fmt.Errorf("--hook %s: there is no kind %q, but createRuntime, createContainer, startContainer, poststart and poststop", text, kind)
		case !filepath.IsAbs(args[0]):
			return fmt.Errorf("--hook %s: the path %q is not absolute", text, args[0])
		case kind != "startContainer": // which is in the container
			if err := unix.Access(args[0], unix.X_OK); err != nil {
				return fmt.Errorf("--hook %s: %s: %w", text, args[0], err)
			}
		}
		limit := hookTime
		*into = append(*into, specs.Hook{Path: args[0], Args: args, Timeout: &limit})
	}
	s.Hooks = h
	return nil
}
