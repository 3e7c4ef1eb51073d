package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/internal/labels"
)

// built builds a spec of options on a host that has all there is.
func built(o Options) (*specs.Spec, error) {
	o.Namespace, o.ID, o.Args = "ns", "c", []string{"true"}
	host := Host{Cgroup2: true, Hostname: "host", OOMScore: 100, Capabilities: []string{"CAP_CHOWN"}, IPCDirs: []string{"/dev/shm"}}
	return Build(o, imagespec.ImageConfig{}, nil, host)
}

func TestParseRlimit(t *testing.T) {
	for text, want := range map[string]string{
		"nofile=1024:4096":     "RLIMIT_NOFILE 1024 4096",
		"RLIMIT_CORE=0":        "RLIMIT_CORE 0 0",
		"memlock=-1":           "RLIMIT_MEMLOCK 18446744073709551615 18446744073709551615",
		"stack=8192:unlimited": "RLIMIT_STACK 8192 18446744073709551615",
		"nofile=2:1":           "soft limit is above",
		"nofile":               "want NAME=SOFT",
		"nofile=":              `"" is no number`,
		"nofile=1:x":           `"x" is no number`,
		"files=1":              `no "files"`,
		"nofile=1:2:3":         `"2:3" is no number`,
		"nofile=unlimited:3":   "soft limit is above",
	} {
		l, err := ParseRlimit(text)
		got := fmt.Sprint(l.Type, " ", l.Soft, " ", l.Hard)
		if err != nil {
			got = err.Error()
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v has another kind", text, err)
			}
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestFurtherLimits(t *testing.T) {
	const mb = 1 << 20
	for name, c := range map[string]struct {
		limits Limits
		memory int64
		want   string
	}{
		"none":                {Limits{}, 0, `{"devices":[{"allow":false,"access":"rwm"}]}`},
		"pids":                {Limits{PIDs: 5}, 0, `"pids":{"limit":5}`},
		"negative pids":       {Limits{PIDs: -5}, 0, "a limit of -5 processes"},
		"shares":              {Limits{CPUShares: 2}, 0, `"cpu":{"shares":2}`},
		"too many shares":     {Limits{CPUShares: 262145}, 0, "262145 CPU shares"},
		"sets":                {Limits{CPUSet: "0-2,7", MemoryNodes: "0"}, 0, `"cpu":{"cpus":"0-2,7","mems":"0"}`},
		"bad set":             {Limits{CPUSet: "0-"}, 0, "want a list like"},
		"backward set":        {Limits{CPUSet: "3-1"}, 0, "want a list like"},
		"bad nodes":           {Limits{MemoryNodes: ","}, 0, "want a list like"},
		"swap":                {Limits{MemorySwap: 9 * mb}, 8 * mb, `"limit":8388608,"swap":9437184`},
		"all swap":            {Limits{MemorySwap: -1}, 8 * mb, `"swap":-1`},
		"swap alone":          {Limits{MemorySwap: 9 * mb}, 0, "needs one on memory"},
		"less than memory":    {Limits{MemorySwap: 7 * mb}, 8 * mb, "less than memory alone"},
		"reservation":         {Limits{MemoryReservation: 6 * mb}, 0, `"memory":{"reservation":6291456}`},
		"reservation too big": {Limits{MemoryReservation: 9 * mb}, 8 * mb, "memory reservation of"},
		"weight":              {Limits{BlockWeight: 10}, 0, `"blockIO":{"weight":10}`},
		"small weight":        {Limits{BlockWeight: 9}, 0, "weight of 9"},
	} {
		s, err := built(Options{Limits: c.limits, Memory: c.memory})
		var got string
		if err != nil {
			got = err.Error()
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v has another kind", name, err)
			}
		} else if data, err := json.Marshal(s.Linux.Resources); err != nil {
			t.Fatal(err)
		} else {
			got = string(data)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestSysctls(t *testing.T) {
	for key, c := range map[string]struct {
		o    Options
		want string
	}{
		"net.ipv4.ip_forward":             {Options{}, ""},
		"net/ipv4/conf/eth0.1/forwarding": {Options{}, ""},
		"kernel.shmmax":                   {Options{}, ""},
		"kernel.msgmni":                   {Options{Isolation: Isolation{IPC: SharedWithHost}}, "shares the host's ipc namespace"},
		"net.core.somaxconn":              {Options{Network: NetworkHost}, "shares the host's network namespace"},
		"kernel.domainname":               {Options{Isolation: Isolation{UTS: SharedWithHost}}, "shares the host's uts namespace"},
		"kernel.hostname":                 {Options{}, "hostname instead"},
		"vm.swappiness":                   {Options{}, "not one of a namespace"},
		"":                                {Options{}, "not one of a namespace"},
	} {
		c.o.Sysctls = map[string]string{key: "1"}
		s, err := built(c.o)
		switch {
		case c.want == "" && (err != nil || s.Linux.Sysctl[key] != "1"):
			t.Errorf("%q: %v", key, err)
		case c.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: %v, want %s", key, err, c.want)
		}
	}
}

func TestIsolation(t *testing.T) {
	kinds := func(o Options) string {
		s, err := built(o)
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, n := range s.Linux.Namespaces {
			all = append(all, string(n.Type)+n.Path)
		}
		return strings.Join(all, " ") + " " + s.Hostname
	}
	for want, o := range map[string]Options{
		"pid ipc uts mount network cgroup c": {},
		"mount network ":                     {Isolation: Isolation{PID: "host", IPC: "host", UTS: "host", Cgroup: "host"}},
		"pid/proc/1/ns/pid ipc uts/proc/1/ns/uts mount network cgroup ": {Isolation: Isolation{PID: "/proc/1/ns/pid", UTS: "/proc/1/ns/uts", Cgroup: "private"}},
	} {
		if got := kinds(o); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	old, err := Build(Options{ID: "c", Args: []string{"true"}}, imagespec.ImageConfig{}, nil, Host{})
	if err != nil || ownNamespace(old, specs.CgroupNamespace) {
		t.Errorf("on version 1 of control groups: %+v, %v", old.Linux.Namespaces, err)
	}
	s, err := built(Options{Isolation: Isolation{IPC: SharedWithHost, SystemPaths: true}, ShmSize: 1 << 20})
	if err != nil || s.Linux.MaskedPaths != nil || s.Linux.ReadonlyPaths != nil {
		t.Errorf("system paths %v, %v, %v", s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, err)
	}
	for _, m := range s.Mounts {
		if m.Destination == "/dev/shm" && (m.Type != "bind" || m.Source != "/dev/shm") {
			t.Errorf("shared memory %+v", m)
		}
	}
}

func TestAskedOOMScore(t *testing.T) {
	for score, want := range map[int]string{100: "", 1000: "", 99: "only CAP_SYS_RESOURCE allows", -1001: "not between", 1001: "not between"} {
		s, err := built(Options{OOMScore: &score})
		if want == "" && (err != nil || *s.Process.OOMScoreAdj != score) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d: %v, want %q", score, err, want)
		}
	}
}

func TestParseTmpfs(t *testing.T) {
	for text, want := range map[string]string{
		"/a":                        "/a nosuid,nodev,noexec,rw",
		"/a/":                       "/a nosuid,nodev,noexec,rw",
		"/a:ro,exec,size=1m,mode=7": "/a nosuid,nodev,ro,exec,size=1048576,mode=7",
		"/a:size=50%":               "/a nosuid,nodev,noexec,rw,size=50%",
		"a":                         "not an absolute path",
		"/":                         "root directory",
		"/a:size=x":                 "not a size",
	} {
		m, err := ParseTmpfs(text)
		got := m.Destination + " " + strings.Join(m.Options, ",")
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestParseVolumePropagation(t *testing.T) {
	for text, want := range map[string]string{
		"/a:/b":           "rbind,rprivate,rw ",
		"/a:/b:ro,rslave": "rbind,rslave,ro rslave",
		"/a:/b:shared":    "rbind,shared,rw rshared",
		"/a:/b:Z":         "SELinux",
		"/a:/b:ro,nocopy": `"nocopy" is neither`,
	} {
		m, err := ParseVolume(text)
		got := strings.Join(m.Options, ",") + " " + propagation([]specs.Mount{m})
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestDevices(t *testing.T) {
	for text, want := range map[string]string{
		"/dev/null":           "/dev/null c 1:3 rwm",
		"/dev/null:/dev/x":    "/dev/x c 1:3 rwm",
		"/dev/null:r":         "/dev/null c 1:3 r",
		"/dev/null:/dev/x:rw": "/dev/x c 1:3 rw",
		"dev/null":            "not absolute",
		"/dev/null:rwx":       "of r, w and m",
		"/dev/null:rw:/dev/x": "want HOST",
		"/dev/null:/a:/b":     "want HOST",
		"/dev/null::":         "of r, w and m",
		"/dev/nowhere":        "device /dev/nowhere",
		"/etc/hostname":       "device /etc/hostname",
	} {
		d, err := ParseDevice(text)
		var s *specs.Spec
		if err == nil {
			s, err = built(Options{Devices: []Device{d}})
		}
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			at, rule := s.Linux.Devices[0], s.Linux.Resources.Devices[1]
			got = fmt.Sprintf("%s %s %d:%d %s", at.Path, at.Type, *rule.Major, *rule.Minor, rule.Access)
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	// A directory stands for the devices in it, and a link for where it leads.
	link := t.TempDir() + "/link"
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	s, err := built(Options{Devices: []Device{{Host: "/dev", Container: "/dev/host"}, {Host: link}}})
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]int64{}
	for _, d := range s.Linux.Devices {
		paths[d.Path] = d.Minor
	}
	if paths["/dev/host/null"] != 3 || paths[link] != 5 {
		t.Errorf("devices %v", paths)
	}
}

func TestGroupsAndEdit(t *testing.T) {
	if _, err := built(Options{Groups: []string{"12", "wheel"}}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `"wheel"`) {
		t.Errorf("a group that is not there: %v", err)
	}
	s, err := built(Options{Groups: []string{"12"}, Edit: func(s *specs.Spec) error { s.Domainname = "edited"; return nil }})
	if err != nil || len(s.Process.User.AdditionalGids) != 1 || s.Process.User.AdditionalGids[0] != 12 || s.Domainname != "edited" {
		t.Errorf("%+v, %v", s.Process.User, err)
	}
	if _, err := built(Options{AppArmor: "mine"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("AppArmor where there is none: %v", err)
	}
}

func TestUserNS(t *testing.T) {
	mapping := func(text string) []specs.LinuxIDMapping {
		list, err := ParseMapping(text)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	whole := &UserNS{UIDs: mapping("0:100000:65536"), GIDs: mapping("0:200000:65536,65536:7:1")}
	s, err := built(Options{UserNS: whole, Network: NetworkHost})
	if err != nil || !ownNamespace(s, specs.UserNamespace) || len(s.Linux.UIDMappings) != 1 || len(s.Linux.GIDMappings) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	for _, m := range s.Mounts {
		if m.Destination == "/sys" && m.Type != "bind" {
			t.Errorf("the sysfs of a network that is not its own: %+v", m)
		}
	}
	if l := whole.Labels(); l[labels.SnapshotUIDs] != "0:100000:65536" || l[labels.SnapshotGIDs] != "0:200000:65536,65536:7:1" {
		t.Errorf("labels %v", l)
	}
	for want, o := range map[string]Options{
		"does not map 0":   {UserNS: &UserNS{UIDs: mapping("1:1:1"), GIDs: mapping("0:1:1")}},
		"groups":           {UserNS: &UserNS{UIDs: mapping("0:1:1")}},
		"ranges overlap":   {UserNS: &UserNS{UIDs: mapping("0:1:10,5:50:10"), GIDs: mapping("0:1:1")}},
		"the host's users": {UserNS: whole, Privileged: true},
		"host's processes": {UserNS: whole, Isolation: Isolation{PID: SharedWithHost}},
	} {
		if _, err := built(o); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, text := range []string{"", "0:1", "0:1:0", "a:1:1", "0:1:4294967296", "4294967295:0:1", "0:-1:1", "0:1:1,"} {
		if _, err := ParseMapping(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
