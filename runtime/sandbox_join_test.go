package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/sandbox/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/runtime/record"
)

// TestParseEndpoint reads addresses of the task API as clients write them.
func TestParseEndpoint(t *testing.T) {
	for address, want := range map[string]contact{
		"ttrpc+unix:///run/s/1":     {0, "unix:///run/s/1", protocolTTRPC},
		"unix:///run/s/1":           {0, "unix:///run/s/1", ""},
		"grpc+vsock://3:1024":       {0, "vsock://3:1024", protocolGRPC},
		"ttrpc+hvsock:///run/v:102": {0, "hvsock:///run/v:102", protocolTTRPC},
	} {
		if got, err := parseEndpoint(address, 0); got != want || err != nil {
			t.Errorf("%q: %+v, %v, want %+v", address, got, err, want)
		}
	}
	for _, c := range []struct {
		address string
		version uint32
		want    string
	}{
		{"/run/s/1", 0, "no address such as"},
		{"abstract", 0, "no address such as"},
		{"ttrpc+", 0, "no address such as"},
		{"soap+unix:///s", 0, "scheme"},
		{"http://example.test/", 3, "scheme"},
		{"vsock://x:y", 3, "vsock"},
		{"unix://" + strings.Repeat("x", 500), 3, "longer than"},
		{"unix:///s", 1, "version 1 of the task API"},
		{"unix:///s", 4, "version 4 of the task API"},
		{"grpc+unix:///s", 2, "no version 2"},
		{"unix:///s\x00", 3, "no address such as"},
	} {
		got, err := parseEndpoint(c.address, c.version)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, version %d: %+v, %v, want %q", c.address, c.version, got, err, c.want)
		}
	}
	for _, same := range [][2]string{
		{"/run/s", "unix:///run/s"}, {"unix:///run//s", "unix:///run/x/../s"}, {"name", "unix://@name"}, {"vsock://3:4", "vsock://3:4"},
	} {
		if a, b := (contact{Address: same[0]}).place(), (contact{Address: same[1]}).place(); a != b {
			t.Errorf("%q is %q, %q is %q", same[0], a, same[1], b)
		}
	}
}

// FuzzParseEndpoint feeds it anything.
func FuzzParseEndpoint(f *testing.F) {
	f.Add("ttrpc+unix:///run/s/1", uint32(3))
	f.Add("grpc+vsock://3:1024", uint32(0))
	f.Fuzz(func(t *testing.T, address string, version uint32) {
		at, err := parseEndpoint(address, version)
		if (err == nil) != (at != contact{}) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", address, at, err)
		}
	})
}

// TestTaskAPIAddress has containers join a sandbox under our own shim by its
// address: no shim is started for them, and they are supervised as others, over the
// end of the daemon and of the shim.
func TestTaskAPIAddress(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	ctx := t.Context()
	d.makeSandbox("p")
	reply, err := d.SandboxStatus(ctx, testNS, &sandbox.ControllerStatusRequest{SandboxId: "p"})
	if err != nil || !strings.HasPrefix(reply.GetAddress(), "ttrpc+unix:///") || reply.GetVersion() != 3 {
		t.Fatalf("%v, %v", reply, err)
	}
	address := reply.GetAddress()
	old, err := proto.Marshal(&runc.Options{TaskApiAddress: address, TaskApiVersion: 3})
	if err != nil {
		t.Fatal(err)
	}
	for id, r := range map[string]*tasks.CreateTaskRequest{
		"now":   {TaskApiAddress: address, TaskApiVersion: 3},
		"two":   {TaskApiAddress: strings.TrimPrefix(address, "ttrpc+"), TaskApiVersion: 2}, // it serves both
		"old":   {Options: &anypb.Any{TypeUrl: optionsType, Value: old}},
		"never": {TaskApiAddress: address},
	} {
		r.ContainerId, r.Rootfs = id, m.rootfs(id)
		c := m.realContainer(id, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
		if _, err := d.Create(ctx, testNS, c, r); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if got := m.podShims(id); got != fmt.Sprint(d.boxShim("p")) {
			t.Errorf("%s has the shim %s, the sandbox %d", id, got, d.boxShim("p"))
		}
	}
	if _, err := d.delete("never"); err != nil { // created, not started
		t.Error(err)
	}
	for _, id := range []string{"now", "two", "old"} {
		d.startTask(id)
	}
	if err := unix.Kill(d.initPID("now"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.end("now", 137)
	d.stop()
	d = m.start()
	d.verdict("two", "connected")
	if err := unix.Kill(d.boxShim("p"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"two", "old"} {
		d.verdict(id, "shim-lost")
		m.eventually("SIGTERM to end it", func() error {
			_ = d.kill(id, int(unix.SIGTERM)) // the first may come before the trap
			if got := d.state(id); !strings.Contains(got, "STOPPED") {
				return errors.New(got)
			}
			return nil
		})
		d.end(id, 7)
	}
	r := &tasks.CreateTaskRequest{ContainerId: "x", TaskApiAddress: address, Rootfs: m.rootfs("x")}
	if _, err := d.Create(ctx, testNS, m.realContainer("x", "true"), r); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("joined a dead one: %v", err)
	}
	if err := d.ShutdownSandbox(ctx, testNS, &sandbox.ControllerShutdownRequest{SandboxId: "p"}); err != nil {
		t.Error(err)
	}
	d.sandboxGone("p")
}

// TestTaskAPIAddressRefused names addresses that a daemon must not connect to:
// that of a stranger, of a sandbox of another namespace, of a shim that serves one
// task alone. It does not connect.
func TestTaskAPIAddressRefused(t *testing.T) {
	m := newMachine(t)
	d := m.start()
	shim := m.fakeForeign()
	address := d.makeForeignBox("p", shim, foreignScript{Version: 3})
	if err := d.create("alone", script{}); err != nil {
		t.Fatal(err)
	}
	var own record.Shim
	if err := record.Read(m.bundle("alone"), record.ShimFile, &own); err != nil {
		t.Fatal(err)
	}
	stranger, err := listen(m.dir + "/stranger")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(m.dir + "/stranger")
	defer stranger.Close()
	for _, c := range []struct {
		ns, address string
		version     uint32
		kind        func(error) bool
		want        string
	}{
		{testNS, "unix://" + m.dir + "/stranger", 3, errdefs.IsFailedPrecondition, "no sandbox of namespace"},
		{testNS, "ttrpc+unix:///run/none", 0, errdefs.IsFailedPrecondition, "no sandbox of namespace"},
		{"other", address, 3, errdefs.IsFailedPrecondition, `no sandbox of namespace "other"`},
		{testNS, "unix://" + own.Socket, 3, errdefs.IsFailedPrecondition, `that of task "alone" alone`},
		{testNS, strings.Replace(address, "ttrpc+", "grpc+", 1), 3, errdefs.IsInvalidArgument, "speaks ttrpc"},
		{testNS, address, 9, errdefs.IsInvalidArgument, "version 9"},
		{testNS, "/no/scheme", 3, errdefs.IsInvalidArgument, "no address such as"},
	} {
		_, err := d.Create(t.Context(), c.ns, foreignContainer("a", shim, foreignScript{}), &tasks.CreateTaskRequest{
			ContainerId: "a", TaskApiAddress: c.address, TaskApiVersion: c.version,
		})
		if !c.kind(err) || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s in %s: %v, want %q", c.address, c.ns, err, c.want)
		}
		m.goneForeign("a")
	}
	if err := unix.SetNonblock(int(stranger.Fd()), true); err != nil {
		t.Fatal(err)
	}
	if fd, _, err := unix.Accept(int(stranger.Fd())); err == nil {
		t.Errorf("somebody has connected: %d", fd)
	}
	if _, err := d.delete("alone"); err != nil {
		t.Error(err)
	}
	d.shutBox("p")
}
