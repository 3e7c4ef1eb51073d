package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// TestGroupOf reads the pod of a container.
func TestGroupOf(t *testing.T) {
	for want, c := range map[string]*containers.Container{
		"":  containerOf("a", script{}),
		"s": {Id: "a", Sandbox: "s"},
		"p": annotated(`{"annotations":{"io.kubernetes.cri.sandbox-id":"p"}}`, "s"),
		"g": annotated(`{"annotations":{"io.kubernetes.cri.sandbox-id":"p","io.containerd.runc.v2.group":"g"}}`, ""),
		"t": annotated(`{"process":{"args":["io.kubernetes.cri.sandbox-id"]}}`, "t"),
	} {
		if got, err := groupOf(c); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if _, err := groupOf(annotated(`{"io.kubernetes.cri.sandbox-id"`, "")); err == nil {
		t.Error("a spec that is no JSON")
	}
}

func annotated(spec, sandbox string) *containers.Container {
	c := containerOf("a", script{})
	c.Spec.Value, c.Sandbox = []byte(spec), sandbox
	return c
}

// createInPod creates a container of a pod under the real shim.
func (d *daemon) createInPod(id, pod string, argv ...string) error {
	c := d.m.realContainer(id, argv...)
	var spec map[string]any
	if err := json.Unmarshal(c.Spec.Value, &spec); err != nil {
		return err
	}
	spec["annotations"] = map[string]string{"io.kubernetes.cri.sandbox-id": pod}
	var err error
	if c.Spec.Value, err = json.Marshal(spec); err != nil {
		return err
	}
	_, err = d.Create(d.m.t.Context(), testNS, c, &tasks.CreateTaskRequest{ContainerId: id, Rootfs: d.m.rootfs(id)})
	return err
}

// runPod runs containers of a pod, all created at once.
func (d *daemon) runPod(pod string, ids ...string) {
	d.m.t.Helper()
	var all sync.WaitGroup
	for _, id := range ids {
		_ = os.Remove(filepath.Join(d.m.dir, "layers", id, "fs", "ready")) // of an earlier container of that name
		all.Go(func() {
			if err := d.createInPod(id, pod, "sh", "-c", "trap 'exit 7' TERM; : >/ready; while :; do sleep 0.05; done"); err != nil {
				d.m.t.Error(err)
			}
		})
	}
	all.Wait()
	if d.m.t.Failed() {
		d.m.t.FailNow()
	}
	for _, id := range ids {
		d.startTask(id)
		d.m.ready(id)
	}
}

// podShims are the pids of the shims of tasks, by their records.
func (m *machine) podShims(ids ...string) string {
	m.t.Helper()
	seen := map[int]bool{}
	var pids []string
	for _, id := range ids {
		var s record.Shim
		if err := record.Read(m.bundle(id), record.ShimFile, &s); err != nil {
			m.t.Fatal(err)
		}
		if !seen[s.PID] {
			pids = append(pids, fmt.Sprint(s.PID))
		}
		seen[s.PID] = true
	}
	return strings.Join(pids, " ")
}

// endPod ends a container of runPod by SIGTERM.
func (d *daemon) endPod(id string) {
	d.m.t.Helper()
	if err := d.kill(id, int(unix.SIGTERM)); err != nil {
		d.m.t.Error(err)
	}
	d.end(id, 7)
}

// TestPod runs a pod: its containers share one process, begin and end each by
// itself, and a daemon that is killed finds all of them again.
func TestPod(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runPod("p", "a", "b", "c")
	d.runPod("q", "x")
	shim := m.podShims("a", "b", "c")
	if strings.Contains(shim, " ") || m.podShims("x") == shim {
		t.Errorf("shims of the pod %s, of another %s", shim, m.podShims("x"))
	}
	d.endPod("a") // the one that the shim may have been started for
	if err := d.createInPod("a", "p", "true"); err != nil {
		t.Fatal(err)
	}
	if got := m.podShims("a", "b", "c"); got != shim {
		t.Errorf("made anew, its shim is %s, that of the pod %s", got, shim)
	}
	if _, err := d.delete("a"); err != nil { // created, not started
		t.Error(err)
	}
	d.stop()
	d = m.start()
	for _, id := range []string{"b", "c", "x"} {
		d.verdict(id, "connected")
	}
	if err := d.createInPod("a", "p", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if got := m.podShims("a", "b"); got != shim {
		t.Errorf("after a restart the pod's shims are %s", got)
	}
	if _, err := d.delete("a"); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"b", "c", "x"} {
		d.endPod(id)
	}
	m.eventually("the shim of the pod to leave", func() error {
		if pid, err := strconv.Atoi(shim); err != nil || !sys.Zombie(pid) { // the test's child by now
			_, err = os.Stat("/proc/" + shim)
			if err == nil {
				return errors.New("it is there")
			}
		}
		return nil
	})
	d.runPod("p", "a") // the pod begins anew
	d.endPod("a")
}

// TestPodShimKilled kills the shim of a pod: each container runs on, and its
// exit is known; a new one of the pod gets a new shim.
func TestPodShimKilled(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runPod("p", "a", "b")
	var s record.Shim
	if err := record.Read(m.bundle("a"), record.ShimFile, &s); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.verdict("a", "shim-lost")
	d.verdict("b", "shim-lost")
	d.runPod("p", "c")
	if got := m.podShims("c"); got == fmt.Sprint(s.PID) {
		t.Error("the new container has the dead shim")
	}
	for _, id := range []string{"a", "b", "c"} {
		d.endPod(id)
	}
}

// TestPodRace makes and ends containers of one pod at random: whoever comes last
// takes the shim along, whoever comes next finds a new one.
func TestPodRace(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	var all sync.WaitGroup
	until := time.Now().Add(3 * time.Second)
	for n := range 3 {
		all.Go(func() {
			for round := 0; time.Now().Before(until); round++ {
				id := fmt.Sprintf("r%d-%d", n, round)
				if err := d.createInPod(id, "p", "sleep", "1000"); err != nil {
					t.Errorf("create %s: %v", id, err)
					return
				}
				if _, err := d.delete(id); err != nil {
					t.Errorf("delete %s: %v", id, err)
					return
				}
			}
		})
	}
	all.Wait()
	// A daemon that ends leaves a shim that is just ending to be reaped by others.
	m.eventually("every shim reaped", func() error {
		shims, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil {
			return err
		}
		for _, path := range shims {
			if children, _ := os.ReadFile(path); len(children) > 0 {
				return fmt.Errorf("children %s", children)
			}
		}
		return nil
	})
}

// TestPodCreateFails has a container of a pod fail to be created: the others do
// not notice.
func TestPodCreateFails(t *testing.T) {
	m := newRealMachine(t)
	d := m.start()
	d.runPod("p", "a")
	shim := m.podShims("a")
	if err := d.createInPod("b", "p", "/no/such/program"); err == nil {
		t.Fatal("created")
	}
	m.goneForeign("b")
	d.verdict("a", "connected")
	if got := m.podShims("a"); got != shim {
		t.Errorf("shim %s, before %s", got, shim)
	}
	d.endPod("a")
}
