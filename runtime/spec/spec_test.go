package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// testHost grants a few capabilities, one of them not in the default set, and
// lacks one that is.
func testHost() Host {
	return Host{
		Seccomp:      true,
		Capabilities: []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SETUID"},
		Hostname:     "machine",
		NetworkFiles: []string{"/etc/resolv.conf"},
		Devices:      []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
	}
}

func build(t *testing.T, o Options, config imagespec.ImageConfig, host Host) *specs.Spec {
	t.Helper()
	o.Namespace, o.ID = "ns", "c1"
	if len(o.Args) == 0 {
		o.Args = []string{"true"}
	}
	s, err := Build(o, config, nil, host)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBuildDefault(t *testing.T) {
	s := build(t, Options{}, imagespec.ImageConfig{}, testHost())
	if s.Linux.CgroupsPath != "/berth/ns/c1" {
		t.Errorf("cgroup path %q", s.Linux.CgroupsPath)
	}
	if s.Hostname != "c1" {
		t.Errorf("hostname %q", s.Hostname)
	}
	want := &specs.Process{
		Args: []string{"true"},
		Cwd:  "/",
		Env:  []string{defaultPath, "HOSTNAME=c1", "HOME=/"},
		Capabilities: &specs.LinuxCapabilities{
			Bounding:  []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID"},
			Effective: []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID"},
			Permitted: []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID"},
		},
		OOMScoreAdj: new(int),
	}
	if diff := cmp.Diff(want, s.Process); diff != "" {
		t.Errorf("process (-want +got):\n%s", diff)
	}
	if s.Process.Rlimits != nil {
		t.Error("rlimits are set: not every host lets them be")
	}
	if len(s.Linux.Resources.Devices) != 1 || s.Linux.Resources.Devices[0].Allow {
		t.Errorf("device rules %v do not deny everything first", s.Linux.Resources.Devices)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
		t.Error("no seccomp filter that denies by default")
	}
	if len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 {
		t.Error("nothing of /proc is masked")
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		if !hasNamespace(s, kind) {
			t.Errorf("no %s namespace", kind)
		}
	}
	if hasNamespace(s, specs.CgroupNamespace) {
		t.Error("a cgroup namespace on cgroup v1")
	}
}

func hasNamespace(s *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

func mountAt(s *specs.Spec, destination string) *specs.Mount {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == destination {
			return &s.Mounts[i]
		}
	}
	return nil
}

// TestOOMScore: a container never gets the score that guards the daemon, nor
// one that its user could not have set.
func TestOOMScore(t *testing.T) {
	for own, want := range map[int]int{-999: 0, 0: 0, 500: 500} {
		host := testHost()
		host.OOMScore = own
		if got := *build(t, Options{}, imagespec.ImageConfig{}, host).Process.OOMScoreAdj; got != want {
			t.Errorf("score %d of our own: %d, want %d", own, got, want)
		}
	}
}

func TestBuildCgroup2(t *testing.T) {
	host := testHost()
	host.Cgroup2 = true
	if s := build(t, Options{}, imagespec.ImageConfig{}, host); !hasNamespace(s, specs.CgroupNamespace) {
		t.Error("no cgroup namespace on cgroup v2")
	}
}

func TestBuildPrivileged(t *testing.T) {
	s := build(t, Options{Privileged: true}, imagespec.ImageConfig{}, testHost())
	if diff := cmp.Diff(testHost().Capabilities, s.Process.Capabilities.Effective); diff != "" {
		t.Errorf("capabilities (-want +got):\n%s", diff)
	}
	if s.Linux.Seccomp != nil || s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil {
		t.Error("something is hidden or filtered")
	}
	if !s.Linux.Resources.Devices[0].Allow || len(s.Linux.Devices) != 1 {
		t.Error("not every device of the host is there")
	}
	if m := mountAt(s, "/sys"); !slices.Contains(m.Options, "rw") {
		t.Errorf("/sys is mounted %v", m.Options)
	}
}

func TestBuildNetwork(t *testing.T) {
	s := build(t, Options{Network: NetworkHost}, imagespec.ImageConfig{}, testHost())
	if hasNamespace(s, specs.NetworkNamespace) {
		t.Error("a network namespace with the host's network")
	}
	if s.Hostname != "machine" {
		t.Errorf("hostname %q", s.Hostname)
	}
	if m := mountAt(s, "/etc/resolv.conf"); m == nil || !slices.Contains(m.Options, "ro") {
		t.Errorf("/etc/resolv.conf: %v", m)
	}
	if m := mountAt(s, "/etc/hosts"); m != nil {
		t.Error("/etc/hosts is mounted, which the host lacks")
	}
	if _, err := Build(Options{Args: []string{"x"}, Network: "bridge"}, imagespec.ImageConfig{}, nil, testHost()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown network: %v", err)
	}
}

func TestBuildHostnameIsBounded(t *testing.T) {
	s := build(t, Options{Hostname: strings.Repeat("h", 100)}, imagespec.ImageConfig{}, testHost())
	if len(s.Hostname) != maxHostname {
		t.Errorf("hostname of %d bytes", len(s.Hostname))
	}
}

func TestBuildFromImage(t *testing.T) {
	config := imagespec.ImageConfig{
		User:       "7:8",
		Env:        []string{"PATH=/bin", "A=image", "B=image"},
		Entrypoint: []string{"/entry"},
		Cmd:        []string{"image"},
		WorkingDir: "/work/",
	}
	o := Options{Namespace: "ns", ID: "c1", Env: []string{"A=user", "B", "C=user"}, Terminal: true}
	s, err := Build(o, config, nil, testHost())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/entry", "image"}, s.Process.Args); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	want := []string{"PATH=/bin", "HOSTNAME=c1", "HOME=/", "TERM=xterm", "A=user", "C=user"}
	if diff := cmp.Diff(want, s.Process.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	if s.Process.Cwd != "/work" {
		t.Errorf("cwd %q", s.Process.Cwd)
	}
	if s.Process.User.UID != 7 || s.Process.User.GID != 8 {
		t.Errorf("user %v", s.Process.User)
	}
	if c := s.Process.Capabilities; len(c.Effective) != 0 || len(c.Permitted) != 0 || len(c.Bounding) == 0 {
		t.Errorf("a user who is not root has capabilities %v", c)
	}
}

func TestCommand(t *testing.T) {
	image := imagespec.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	for _, test := range []struct {
		name  string
		o     Options
		image imagespec.ImageConfig
		want  []string // nil: InvalidArgument
	}{
		{"image", Options{}, image, []string{"e", "c"}},
		{"arguments replace cmd", Options{Args: []string{"a", "b"}}, image, []string{"e", "a", "b"}},
		{"entrypoint drops cmd", Options{Entrypoint: []string{"x"}}, image, []string{"x"}},
		{"entrypoint and arguments", Options{Entrypoint: []string{"x"}, Args: []string{"a"}}, image, []string{"x", "a"}},
		{"no entrypoint", Options{Entrypoint: []string{""}, Args: []string{"a"}}, image, []string{"a"}},
		{"nothing left", Options{Entrypoint: []string{""}}, image, nil},
		{"nothing at all", Options{}, imagespec.ImageConfig{}, nil},
		{"empty name", Options{Args: []string{""}}, imagespec.ImageConfig{}, nil},
		{"cmd alone", Options{}, imagespec.ImageConfig{Cmd: []string{"c"}}, []string{"c"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := command(test.o, test.image)
			if test.want == nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v, %v", got, err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	base := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID"}
	for _, test := range []struct {
		name string
		o    Options
		want []string
		kind func(error) bool // nil: no error
	}{
		{"default", Options{}, base, nil},
		{"add", Options{CapAdd: []string{"net_admin"}}, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_ADMIN", "CAP_SETUID"}, nil},
		{"drop", Options{CapDrop: []string{"CAP_KILL"}}, []string{"CAP_CHOWN", "CAP_SETUID"}, nil},
		{"drop all, add one", Options{CapDrop: []string{"all"}, CapAdd: []string{"kill"}}, []string{"CAP_KILL"}, nil},
		{"add all, drop one", Options{CapAdd: []string{"ALL"}, CapDrop: []string{"kill"}}, []string{"CAP_CHOWN", "CAP_NET_ADMIN", "CAP_SETUID"}, nil},
		{"drop all of privileged", Options{Privileged: true, CapDrop: []string{"ALL"}}, []string{}, nil},
		{"unknown", Options{CapAdd: []string{"fly"}}, nil, errdefs.IsInvalidArgument},
		{"unknown drop", Options{CapDrop: []string{"CAP_FLY"}}, nil, errdefs.IsInvalidArgument},
		{"host lacks it", Options{CapAdd: []string{"sys_resource"}}, nil, errdefs.IsFailedPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			sets, err := capabilities(test.o, testHost(), 0)
			if test.kind != nil {
				if !test.kind(err) {
					t.Errorf("got %v, %v", sets, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, sets.Effective); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	s := build(t, Options{Memory: 64 << 20, CPUs: 1.5}, imagespec.ImageConfig{}, testHost())
	if *s.Linux.Resources.Memory.Limit != 64<<20 {
		t.Errorf("memory %d", *s.Linux.Resources.Memory.Limit)
	}
	if cpu := s.Linux.Resources.CPU; *cpu.Quota != 150_000 || *cpu.Period != 100_000 {
		t.Errorf("quota %d of %d", *cpu.Quota, *cpu.Period)
	}
	for _, o := range []Options{{Memory: 100}, {Memory: -1}, {CPUs: 0.001}, {CPUs: -1}, {CPUs: 1e300}} {
		o.Args = []string{"true"}
		if _, err := Build(o, imagespec.ImageConfig{}, nil, testHost()); !errdefs.IsInvalidArgument(err) {
			t.Errorf("memory %d, CPUs %v: %v", o.Memory, o.CPUs, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "1b": 1, "64k": 64 << 10, "64M": 64 << 20, "1.5g": 3 << 29, "2GiB": 2 << 30, "2gb": 2 << 30, " 3 m ": 3 << 20, "1t": 1 << 40,
		"": -1, "m": -1, "1x": -1, "-1": -1, "1 2": -1, "1mm": -1, "nan": -1, "inf": -1, "1bb": -1, "99999999t": -1, "0x10": -1,
	} {
		got, err := ParseSize(text)
		switch {
		case want < 0 && !errdefs.IsInvalidArgument(err):
			t.Errorf("%q: %d, %v", text, got, err)
		case want >= 0 && (err != nil || got != want):
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	const profile = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["reboot"],"action":"SCMP_ACT_ERRNO"}]}`
	s := build(t, Options{Seccomp: profile, Privileged: true}, imagespec.ImageConfig{}, testHost())
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActAllow {
		t.Errorf("the profile is not used: %v", s.Linux.Seccomp)
	}
	if s := build(t, Options{Seccomp: Unconfined}, imagespec.ImageConfig{}, testHost()); s.Linux.Seccomp != nil {
		t.Error("a filter although unconfined")
	}
	o := Options{Args: []string{"true"}, Seccomp: "{"}
	if _, err := Build(o, imagespec.ImageConfig{}, nil, testHost()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken profile: %v", err)
	}
	host := testHost()
	host.Seccomp = false
	if s := build(t, Options{}, imagespec.ImageConfig{}, host); s.Linux.Seccomp != nil {
		t.Error("a filter on a kernel without filters")
	}
	o.Seccomp = profile
	if _, err := Build(o, imagespec.ImageConfig{}, nil, host); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("profile on a kernel without filters: %v", err)
	}
}

func TestSeccompFollowsCapabilities(t *testing.T) {
	allows := func(s *specs.Spec, name string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(c specs.LinuxSyscall) bool {
			return c.Action == specs.ActAllow && slices.Contains(c.Names, name)
		})
	}
	host := testHost()
	host.Capabilities = append(host.Capabilities, "CAP_SYS_BOOT")
	if allows(build(t, Options{}, imagespec.ImageConfig{}, host), "reboot") {
		t.Error("reboot is allowed by default")
	}
	if !allows(build(t, Options{CapAdd: []string{"sys_boot"}}, imagespec.ImageConfig{}, host), "reboot") {
		t.Error("reboot is not allowed with CAP_SYS_BOOT")
	}
}

func TestBuildRefusesRelativeCwd(t *testing.T) {
	o := Options{Args: []string{"true"}, Cwd: "tmp"}
	if _, err := Build(o, imagespec.ImageConfig{}, nil, testHost()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestReadHost(t *testing.T) {
	host, err := ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	if host.Hostname == "" || len(host.Capabilities) == 0 {
		t.Errorf("host %+v", host)
	}
}

func TestHostDevices(t *testing.T) {
	devices, err := HostDevices()
	if err != nil {
		t.Fatal(err)
	}
	null := slices.IndexFunc(devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/null" })
	if null < 0 || devices[null].Major != 1 || devices[null].Minor != 3 || devices[null].Type != "c" {
		t.Errorf("/dev/null is not 1:3 among %v", devices)
	}
	if slices.ContainsFunc(devices, func(d specs.LinuxDevice) bool { return strings.HasPrefix(d.Path, "/dev/pts/") }) {
		t.Error("terminals of the host are passed on")
	}
}

// TestSystemdCgroupsPath has names that can't be mistaken for another namespace's.
func TestSystemdCgroupsPath(t *testing.T) {
	for want, o := range map[string]Options{
		"/berth/a-b/c":                  {Namespace: "a-b", ID: "c"},
		"system.slice:berth-a:b-c":      {Namespace: "a", ID: "b-c", SystemdCgroup: true},
		`system.slice:berth-a\x2db:c`:   {Namespace: "a-b", ID: "c", SystemdCgroup: true},
		"system.slice:berth-moby:c_1.x": {Namespace: "moby", ID: "c_1.x", SystemdCgroup: true},
	} {
		if got := cgroupsPath(o); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
