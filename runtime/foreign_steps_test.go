package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// impatient makes a machine that does not wait long for shims.
func impatient(t *testing.T) *machine {
	m := newMachine(t)
	m.deadlines.ShimStart, m.deadlines.ShimDelete = 2*time.Second, 2*time.Second
	m.deadlines.Create, m.deadlines.Start, m.deadlines.Delete = 2*time.Second, 2*time.Second, 2*time.Second
	m.deadlines.Connect, m.deadlines.Shutdown = time.Second, time.Second
	return m
}

// aliveForeign tells whether any process of the fake shim of a task runs.
func (m *machine) aliveForeign(id string) error {
	for _, pid := range m.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(line), "\x00-id\x00"+id+"\x00") && !sys.Zombie(pid) {
			return fmt.Errorf("process %d runs: %q", pid, line)
		}
	}
	return nil
}

// TestForeignAnswers has shims that answer to their start in each form and speak
// each version of the task API, one that says more than it serves among them.
func TestForeignAnswers(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	for name, c := range map[string]struct {
		script foreignScript
		speaks int
	}{
		"address":        {foreignScript{Answer: "address"}, 2},
		"json-2":         {foreignScript{Answer: "json", Version: 2}, 2},
		"json-3":         {foreignScript{Answer: "json", Version: 3}, 3},
		"proto-2":        {foreignScript{Answer: "proto", Version: 2}, 2},
		"proto-3":        {foreignScript{Answer: "proto", Version: 3}, 3},
		"says-3":         {foreignScript{Version: 3, Serves: 2}, 2},
		"creates-with-2": {foreignScript{Version: 3, Unserved: "Create"}, 2},
	} {
		c.script.Args = []string{"sh", "-c", "exit 4"}
		if err := d.createFake(name, shim, c.script); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		at, err := readContact(m.bundle(name))
		if err != nil || at.Version != c.speaks {
			t.Errorf("%s: speaks %+v, %v, want version %d", name, at, err, c.speaks)
		}
		d.startTask(name)
		d.end(name, 4)
		m.goneForeign(name)
	}
}

// TestForeignCreateBreaks has shims that hang or die at each step of a create. Each
// fails alone, says at what, and leaves nothing; so does one whose "delete" is no
// good either.
func TestForeignCreateBreaks(t *testing.T) {
	m := impatient(t)
	shim := m.fakeForeign()
	d := m.start()
	if err := d.createFake("bystander", shim, foreignScript{}); err != nil {
		t.Fatal(err)
	}
	d.startTask("bystander")
	for name, c := range map[string]struct {
		script foreignScript
		want   string
	}{
		"hang-start":     {foreignScript{Hang: "start"}, "start did not end within 2s"},
		"hang-started":   {foreignScript{Hang: "start+"}, "start did not end within 2s"},
		"die-start":      {foreignScript{Die: "start"}, "start: exit status 5"},
		"die-started":    {foreignScript{Die: "start+"}, "start: exit status 5"},
		"die-serve":      {foreignScript{Die: "serve"}, "the shim"},
		"hang-connect":   {foreignScript{Hang: "Connect"}, "did not tell its pid within 1s"},
		"hang-connected": {foreignScript{Hang: "Connect+"}, "did not tell its pid within 1s"},
		"die-connect":    {foreignScript{Die: "Connect"}, "the shim has gone before it could tell its pid"},
		"die-connected":  {foreignScript{Die: "Connect+"}, "the shim has gone before it could tell its pid"},
		"hang-create":    {foreignScript{Hang: "Create"}, "did not create the container within 2s"},
		"hang-created":   {foreignScript{Hang: "Create+"}, "did not create the container within 2s"},
		"die-create":     {foreignScript{Die: "Create"}, "the shim has gone before it could create the container"},
		"die-created":    {foreignScript{Die: "Create+"}, "the shim has gone before it could create the container"},
		"refuses":        {foreignScript{Mode: "fail"}, "no such thing"},
		"stays":          {foreignScript{Mode: "fail", Hang: "Shutdown"}, "no such thing"},
		"garbage":        {foreignScript{Die: "Create", Garbage: true}, "the shim has gone before it could create the container"},
		"hang-delete":    {foreignScript{Die: "Create", Hang: "delete"}, "the shim has gone before it could create the container"},
		"silent":         {foreignScript{Hang: "Create+", Pids: "none"}, "did not create the container within 2s"},
	} {
		t.Run(name, func(t *testing.T) {
			err := d.createFake(name, shim, c.script)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if _, err := d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: name}); err == nil {
				t.Error("the task is there")
			}
			m.goneForeign(name)
			m.eventually("no process left", func() error { return m.aliveForeign(name) })
			if got := d.state("bystander"); !strings.HasPrefix(got, "RUNNING") {
				t.Errorf("another task: %s", got)
			}
		})
	}
	if err := d.kill("bystander", int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	d.end("bystander", 137)
}

// TestForeignLifeBreaks has shims that hang or die after the create: what can be
// done says so in time, and once a hung shim is killed the task can be deleted.
func TestForeignLifeBreaks(t *testing.T) {
	m := impatient(t)
	shim := m.fakeForeign()
	d := m.start()
	for name, script := range map[string]foreignScript{
		"die-start":     {Die: "Start"},
		"hang-start":    {Hang: "Start"},
		"die-started":   {Die: "Start+"},
		"die-state":     {Die: "State"},
		"hang-state":    {Hang: "State"},
		"die-delete":    {Die: "Delete"},
		"die-deleted":   {Die: "Delete+"},
		"hang-delete":   {Hang: "Delete"},
		"hang-deleted":  {Hang: "Delete+"},
		"die-shutdown":  {Die: "Shutdown"},
		"hang-shutdown": {Hang: "Shutdown"},
		"stay":          {Mode: "stay"},
		"mute":          {Mode: "mute"},
		"no-pid":        {Pids: "none", Mode: "stay"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			if err := d.createFake(name, shim, script); err != nil {
				t.Fatal(err)
			}
			_, _ = d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: name})
			_, _ = d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: name})
			_ = unix.Kill(m.fakePID(t, name), unix.SIGKILL)
			m.eventually("delete", func() error {
				_, err := d.delete(name)
				if err != nil && strings.Contains(err.Error(), "not found") {
					err = nil // by an earlier one, whose answer was an error
				}
				if err != nil && strings.HasPrefix(name, "hang") {
					if pid := d.shimPID(name); pid != 0 {
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
				return err
			})
			m.goneForeign(name)
			m.eventually("no process left", func() error { return m.aliveForeign(name) })
			if took := time.Since(began); took > patience {
				t.Errorf("took %s", took)
			}
		})
	}
}

// TestForeignGuest has a shim whose pids are those of another machine: they are
// told, and nothing is done by them. The processes that have those numbers here go
// on, and the container is not taken for dead without them.
func TestForeignGuest(t *testing.T) {
	for _, pids := range []string{"none", "guest"} {
		t.Run(pids, func(t *testing.T) {
			m := impatient(t)
			shim := m.fakeForeign()
			d := m.start()
			if err := d.createFake("a", shim, foreignScript{Pids: pids, Version: 3}); err != nil {
				t.Fatal(err)
			}
			d.startTask("a")
			real := m.fakePID(t, "a")
			var shimRecord record.Shim
			var started record.Started
			if err := errors.Join(record.Read(m.bundle("a"), record.ShimFile, &shimRecord), record.Read(m.bundle("a"), record.StartedFile, &started)); err != nil {
				t.Fatal(err)
			}
			if shimRecord.PID != 0 || started.StartTime != 0 || started.PID == real {
				t.Errorf("on record: shim %+v, init %+v", shimRecord, started)
			}
			d.stop()
			d = m.start()
			d.verdict("a", "connected")
			if got := d.state("a"); !strings.HasPrefix(got, "RUNNING") {
				t.Error(got)
			}
			server := 0
			for _, pid := range m.processes() {
				if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.HasSuffix(string(line), "\x00serve\x00") {
					server = pid
				}
			}
			m.freeze(server)
			if err := d.kill("a", int(unix.SIGKILL)); err == nil || strings.Contains(err.Error(), "not found") {
				t.Errorf("a kill that can't be: %v", err)
			}
			if !sys.Alive(real, startOf(t, real)) {
				t.Fatal("the container was killed")
			}
			if err := unix.Kill(server, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			d.verdict("a", "stopped") // its delete has ended it, and told
			exit, err := readRecord[record.Exit](m.bundle("a"), record.ExitFile)
			if err != nil || exit == nil || exit.Status != 137 || exit.Reason != reasonForeign {
				t.Errorf("exit on record: %+v, %v", exit, err)
			}
			d.end("a", 137)
			m.goneForeign("a")
		})
	}
}

func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	start, err := sys.StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	return start
}

// TestForeignExec has execs of a foreign shim on record: their exits outlive it.
func TestForeignExec(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	if err := d.createFake("a", shim, foreignScript{Version: 3}); err != nil {
		t.Fatal(err)
	}
	d.startTask("a")
	for exec, args := range map[string][]string{"short": {"sh", "-c", "exit 3"}, "long": {"sleep", "1000"}, "gone": {"true"}} {
		spec, _ := json.Marshal(script{Args: args})
		if err := d.Exec(t.Context(), testNS, &tasks.ExecProcessRequest{ContainerId: "a", ExecId: exec, Spec: &anypb.Any{Value: spec}}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Start(t.Context(), testNS, &tasks.StartRequest{ContainerId: "a", ExecId: exec}); err != nil {
			t.Fatal(err)
		}
	}
	for exec, want := range map[string]uint32{"short": 3, "gone": 0} {
		if status, err := d.wait("a", exec); status != want || err != nil {
			t.Errorf("wait for %s: %d, %v", exec, status, err)
		}
	}
	if _, err := d.DeleteProcess(t.Context(), testNS, &tasks.DeleteProcessRequest{ContainerId: "a", ExecId: "gone"}); err != nil {
		t.Error(err)
	}
	if execs := execRecords(m.bundle("a")); len(execs) != 2 {
		t.Errorf("execs on record: %q", execs)
	}
	d.stop()
	d = m.start()
	d.verdict("a", "connected")
	if err := unix.Kill(d.shimPID("a"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "shim-lost")
	if status, err := d.wait("a", "short"); status != 3 || err != nil {
		t.Errorf("wait for an exec whose shim has died: %d, %v", status, err)
	}
	p, err := d.Get(t.Context(), testNS, &tasks.GetRequest{ContainerId: "a", ExecId: "long"})
	if err != nil || p.GetProcess().GetStatus().String() != "RUNNING" {
		t.Errorf("an exec that runs on: %v, %v", p, err)
	}
	for _, exec := range []string{"long", ""} {
		if err := d.Kill(t.Context(), testNS, &tasks.KillRequest{ContainerId: "a", ExecId: exec, Signal: uint32(unix.SIGKILL)}); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.wait("a", "long"); err != nil {
		t.Error(err)
	}
	if _, err := d.wait("a", ""); err != nil {
		t.Error(err)
	}
	if _, err := d.delete("a"); err != nil {
		t.Error(err)
	}
	m.goneForeign("a")
}

// TestForeignToldExit has a shim die right after it has told of an exit: what it
// told is on record.
func TestForeignToldExit(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	if err := d.createFake("a", shim, foreignScript{Args: []string{"sh", "-c", "exit 6"}, Hang: "Wait"}); err != nil {
		t.Fatal(err)
	}
	d.startTask("a")
	m.eventually("the exit on record", func() error {
		exit, err := readRecord[record.Exit](m.bundle("a"), record.ExitFile)
		if err == nil && (exit == nil || exit.Status != 6 || exit.Reason != "") {
			err = fmt.Errorf("%+v", exit)
		}
		return err
	})
	if err := unix.Kill(d.shimPID("a"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.end("a", 6)
}

// TestForeignPublish has a shim tell of events by running the daemon's binary.
func TestForeignPublish(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	m.daemon = filepath.Join(m.dir, "publisher")
	text := "#!/bin/sh\necho \"$@\" >> " + m.dir + "/published\ncat > " + m.dir + "/event\n"
	if err := os.WriteFile(m.daemon, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	d := m.start()
	if err := d.createFake("a", shim, foreignScript{Publish: true}); err != nil {
		t.Fatal(err)
	}
	m.eventually("an event published", func() error {
		said, _ := os.ReadFile(filepath.Join(m.dir, "published"))
		data, _ := os.ReadFile(filepath.Join(m.dir, "event"))
		var event anypb.Any
		if err := proto.Unmarshal(data, &event); err != nil {
			return err
		}
		if string(said) != "--address  publish --topic /tasks/create --namespace "+testNS+"\n" || event.GetTypeUrl() != "containerd.events.TaskCreate" {
			return fmt.Errorf("%q, %v", said, &event)
		}
		return nil
	})
	if _, err := d.delete("a"); err != nil {
		t.Error(err)
	}
}

// TestForeignOneHangs has a shim that hangs in its start hold nobody else up.
func TestForeignOneHangs(t *testing.T) {
	m := newMachine(t)
	m.deadlines.ShimStart = patience
	shim := m.fakeForeign()
	d := m.start()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := d.Create(ctx, testNS, foreignContainer("hangs", shim, foreignScript{Hang: "start"}), &tasks.CreateTaskRequest{ContainerId: "hangs"})
		failed <- err
	}()
	m.eventually("the shim to be started", func() error {
		if m.aliveForeign("hangs") == nil {
			return errors.New("it is not")
		}
		return nil
	})
	began := time.Now()
	if err := d.createFake("b", shim, foreignScript{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	d.startTask("b")
	d.end("b", 0)
	if took := time.Since(began); took > patience/2 {
		t.Errorf("took %s", took)
	}
	cancel() // its client gives up
	if err := <-failed; err == nil {
		t.Error("created")
	}
	m.goneForeign("hangs")
}

// TestForeignInfo asks a shim what it can do: once for each runtime name, and
// whenever somebody wants to know. One that does not say is served all the same.
func TestForeignInfo(t *testing.T) {
	m := newMachine(t)
	shim := m.fakeForeign()
	d := m.start()
	for _, id := range []string{"a", "b"} {
		c := foreignContainer(id, shim, foreignScript{Args: []string{"true"}})
		c.Runtime.Options = &anypb.Any{TypeUrl: "other.project/Options", Value: []byte{1}}
		if _, err := d.Create(t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		d.startTask(id)
		d.end(id, 0)
	}
	m.eventually("the shim to be asked", func() error {
		if !strings.Contains(m.logText(), `msg="shim found" runtime=`+shim+` path=`+shim+` name=fake version=1.2 makes_mounts=mkfs/*,special`) {
			return errors.New("no word of it in the log")
		}
		return nil
	})
	if asked, err := os.ReadFile(filepath.Join(m.dir, "foreign", "asked")); err != nil || string(asked) != "\"other.project/Options\"\n" {
		t.Errorf("asked: %q, %v", asked, err)
	}
	info, err := d.Info(t.Context(), shim, nil)
	if err != nil || info.GetName() != "fake" {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := d.Info(t.Context(), RuntimeRunc, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("our own: %v", err)
	}
	if _, err := d.Info(t.Context(), "io.containerd.nosuch.v1", nil); !errdefs.IsNotFound(err) {
		t.Errorf("not installed: %v", err)
	}
	bad := m.scripted("bad", `[ $cmd = -info ] && echo garbage`)
	if _, err := d.Info(t.Context(), bad, nil); err == nil || !strings.Contains(err.Error(), "containerd-shim-bad-v2 -info: output is no RuntimeInfo") {
		t.Errorf("garbage: %v", err)
	}
	mad := m.scripted("mad", `[ $cmd = -info ] && exit 1; exec `+shim+` "$@"`)
	c := foreignContainer("c", mad, foreignScript{Args: []string{"true"}})
	if _, err := d.Create(t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	d.startTask("c")
	d.end("c", 0)
	m.eventually("a word of it", func() error {
		if !strings.Contains(m.logText(), `msg="shim does not tell what it can do" runtime=`+mad) {
			return errors.New("none")
		}
		return nil
	})
}
