package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/runtime/bootstrap/v1"
	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/runtime/task/v3/taskttrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/containerd/ttrpc"
)

// starter starts shims in bundles of a test, as a daemon does.
type starter struct {
	t   *testing.T
	dir string
}

func newStarter(t *testing.T) *starter {
	dir, err := os.MkdirTemp("/tmp", "bs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &starter{t, dir}
}

// bundle makes a bundle with a config.
func (s *starter) bundle(id, config string) string {
	bundle := filepath.Join(s.dir, id)
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return bundle
}

// start runs the start command.
func (s *starter) start(id string, input []byte) (string, error) {
	cmd := exec.Command(binary, "-namespace", "n", "-address", filepath.Join(s.dir, "d.sock"), "-publish-binary", "/none", "-id", id, "start")
	cmd.Dir = filepath.Join(s.dir, id)
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+filepath.Join(s.dir, "d.sock.ttrpc"), "MAX_SHIM_VERSION=2")
	cmd.Stdin = strings.NewReader(string(input))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// leave tells the shim at an address to leave, and waits until it has.
func (s *starter) leave(address string) {
	s.t.Helper()
	path := strings.TrimPrefix(address, "unix://")
	conn, err := net.Dial("unix", path)
	if err != nil {
		s.t.Error(err)
		return
	}
	closed := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(closed) }))
	defer client.Close()
	if err := leave(s.t.Context(), taskttrpc.NewTaskClient(client), ""); err != nil {
		s.t.Error(err)
	}
	<-closed
	if _, err := os.Lstat(path); err == nil {
		s.t.Errorf("socket %s is still there", path)
	}
}

func params(t *testing.T, p *bootstrap.BootstrapParams) []byte {
	data, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestStartAnswers starts shims for daemons of each age.
func TestStartAnswers(t *testing.T) {
	s := newStarter(t)
	options, err := proto.Marshal(&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: nil})
	if err != nil {
		t.Fatal(err)
	}
	for id, input := range map[string][]byte{"nothing": nil, "options": options} {
		s.bundle(id, "{}")
		out, err := s.start(id, input)
		if err != nil || !strings.HasPrefix(out, "unix:///run/containerd/s/") || strings.ContainsAny(out, " \n") {
			t.Fatalf("%s: %q, %v", id, out, err)
		}
		if data, err := os.ReadFile(filepath.Join(s.dir, id, "address")); err != nil || string(data) != out {
			t.Errorf("%s: address file %q, %v", id, data, err)
		}
		s.leave(out)
	}
	bundle := s.bundle("new", "{}")
	sockets := filepath.Join(s.dir, "sockets")
	out, err := s.start("new", params(t, &bootstrap.BootstrapParams{InstanceId: "new", Namespace: "n", SocketDir: &sockets}))
	if err != nil {
		t.Fatalf("%q, %v", out, err)
	}
	var answer bootstrap.BootstrapResult
	if err := proto.Unmarshal([]byte(out), &answer); err != nil || answer.Version != 3 || answer.Protocol != "ttrpc" || !strings.HasPrefix(answer.Address, "unix://"+sockets+"/") {
		t.Errorf("%v, %v", &answer, err)
	}
	if info, err := os.Stat(sockets); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(strings.TrimPrefix(answer.Address, "unix://")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	_ = bundle
	s.leave(answer.Address)
}

// TestStartGroup has many starts of one group at once make one shim.
func TestStartGroup(t *testing.T) {
	s := newStarter(t)
	ids := []string{"a", "b", "c", "d"}
	outs := make([]string, len(ids))
	var all sync.WaitGroup
	for n, id := range ids {
		s.bundle(id, `{"annotations":{"io.kubernetes.cri.sandbox-id":"p"}}`)
		all.Go(func() {
			var err error
			if outs[n], err = s.start(id, nil); err != nil {
				t.Errorf("%s: %q, %v", id, outs[n], err)
			}
		})
	}
	s.bundle("x", `{"annotations":{"io.containerd.runc.v2.group":"q","io.kubernetes.cri.sandbox-id":"p"}}`)
	other, err := s.start("x", nil)
	if err != nil {
		t.Fatalf("%q, %v", other, err)
	}
	all.Wait()
	for _, out := range outs {
		if out != outs[0] {
			t.Errorf("addresses %q", outs)
		}
	}
	if other == outs[0] {
		t.Error("another group has the same shim")
	}
	// Side by side: each stays for the containers that were announced, and leaves
	// of itself, which a later call would meet.
	all.Go(func() { s.leave(outs[0]) })
	all.Go(func() { s.leave(other) })
	all.Wait()
}

// TestStartFails has everything that start reads be wrong, and leaves nothing.
func TestStartFails(t *testing.T) {
	s := newStarter(t)
	long := "/" + strings.Repeat("x", 100)
	relative := "sockets"
	for id, c := range map[string]struct {
		config string
		input  []byte
		want   string
	}{
		"config":   {"{", nil, "config.json"},
		"long":     {"{}", params(t, &bootstrap.BootstrapParams{InstanceId: "long", SocketDir: &long}), "too long"},
		"relative": {"{}", params(t, &bootstrap.BootstrapParams{InstanceId: "relative", SocketDir: &relative}), "not an absolute path"},
	} {
		s.bundle(id, c.config)
		if out, err := s.start(id, c.input); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %q, %v, want %q", id, out, err, c.want)
		}
	}
}

// TestInfo asks for what the shim and its OCI runtime can do.
func TestInfo(t *testing.T) {
	ask := func(input []byte) (string, error) {
		cmd := exec.Command(binary, "-info")
		cmd.Stdin = strings.NewReader(string(input))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	packed := func(m proto.Message) []byte {
		value, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		data, err := proto.Marshal(&anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	want := map[string]string{"nothing": "ociVersionMin", "options": "ociVersionMin"}
	if binary := os.Getenv("BERTH_OCI_BINARY"); binary != "" && exec.Command(binary, "features").Run() != nil {
		want["nothing"] = "" // it can't tell, as a crun before 1.8.2
	}
	for name, input := range map[string][]byte{"nothing": nil, "options": packed(&runc.Options{BinaryName: "runc"})} {
		out, err := ask(input)
		var answer types.RuntimeInfo
		if err == nil {
			err = proto.Unmarshal([]byte(out), &answer)
		}
		if err != nil || answer.Name != "io.containerd.berth.v2" || answer.GetVersion().GetVersion() == "" || !strings.Contains(string(answer.GetFeatures().GetValue()), want[name]) {
			t.Errorf("%s: %v, %v", name, &answer, err)
		}
	}
	for want, input := range map[string][]byte{
		"no google.protobuf.Any": []byte("\xff\xff"),
		"not a containerd.runc":  packed(&task.ShutdownRequest{}),
		"no-such-runtime":        packed(&runc.Options{BinaryName: "no-such-runtime"}),
	} {
		if out, err := ask(input); err == nil || !strings.Contains(out, want) {
			t.Errorf("want %q: %q, %v", want, out, err)
		}
	}
}
