package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/api/services/tasks/v1"
	"github.com/berthd/berth/internal/mount"
	"github.com/berthd/berth/internal/sys"
	"github.com/berthd/berth/runtime/record"
)

// TestLatency measures a container's life, from create over start and exit to
// delete, through this package and with runc alone, turn by turn. It prints
// medians and fails on nothing: it takes a quiet machine. BERTH_LATENCY is the
// number of rounds.
func TestLatency(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("BERTH_LATENCY"))
	if err != nil {
		t.Skip("BERTH_LATENCY is not set to a number of rounds")
	}
	m := newRealMachine(t)
	// The init that runc leaves is reaped here, as the shim does it.
	if err := sys.SetSubreaper(); err != nil {
		t.Fatal(err)
	}
	d := m.start()
	phases := map[string][]time.Duration{}
	note := func(phase string, begin time.Time) time.Time {
		now := time.Now()
		phases[phase] = append(phases[phase], now.Sub(begin))
		return now
	}
	for i := range rounds + 3 {
		id := fmt.Sprintf("c%d", i)
		rootfs := m.rootfs(id)
		spent := cpuTime(t)
		begin := time.Now()
		at := begin
		_, err := d.Create(t.Context(), testNS, m.realContainer(id, "true"), &tasks.CreateTaskRequest{ContainerId: id, Rootfs: rootfs})
		if err != nil {
			t.Fatal(err)
		}
		at = note("berth create", at)
		d.runStarted(id)
		at = note("berth start", at)
		if _, err := d.wait(id, ""); err != nil {
			t.Fatal(err)
		}
		at = note("berth exit", at)
		if _, err := d.delete(id); err != nil {
			t.Fatal(err)
		}
		note("berth delete", at)
		note("berth", begin)
		if k := d.find(testNS, id); k != nil {
			<-k.ctx.Done() // the shim has been reaped, and what it has reaped counts with it
		}
		phases["berth cpu"] = append(phases["berth cpu"], cpuTime(t)-spent)
		m.runcLife(fmt.Sprintf("r%d", i), note)
		if i == 2 {
			clear(phases) // warm
		}
	}
	phases["runc cpu"] = m.cpu
	for _, phase := range []string{"berth", "berth create", "berth start", "berth exit", "berth delete", "berth cpu", "runc", "runc create", "runc start", "runc exit", "runc delete", "runc cpu"} {
		t.Logf("%-14s median %-10s best tenth %s", phase, quantile(phases[phase], 2), quantile(phases[phase], 10))
	}
	for _, q := range []int{2, 10} {
		ratio := func(what string) float64 {
			return float64(quantile(phases["berth"+what], q)) / float64(quantile(phases["runc"+what], q))
		}
		t.Logf("ratio at 1/%-3d %.3f of time, %.3f of cpu time", q, ratio(""), ratio(" cpu"))
	}
}

// cpuTime is what this process and those that it, or a child of it, has waited
// for have spent.
func cpuTime(t *testing.T) time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

// quantile is the duration that one in q is below.
func quantile(d []time.Duration, q int) time.Duration {
	slices.Sort(d)
	return d[len(d)/q].Round(10 * time.Microsecond)
}

// runcLife lives a life with runc alone. The root file system is mounted before
// and unmounted after.
func (m *machine) runcLife(id string, note func(string, time.Time) time.Time) {
	t := m.t
	t.Helper()
	dir := filepath.Join(m.dir, "alone", id)
	if err := os.MkdirAll(filepath.Join(dir, record.RootfsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, record.ConfigFile), m.realContainer(id, "true").Spec.Value, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range m.rootfs(id) {
		if err := (mount.Mount{Type: r.Type, Source: r.Source, Options: r.Options}).Do(filepath.Join(dir, record.RootfsDir)); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) {
		cmd := exec.Command("runc", append([]string{"--root", filepath.Join(m.dir, "alone-root")}, args...)...)
		if err := cmd.Run(); err != nil {
			t.Fatal(args, err)
		}
	}
	spent := cpuTime(t)
	begin := time.Now()
	at := begin
	run("create", "--bundle", dir, "--pid-file", filepath.Join(dir, "pid"), id)
	at = note("runc create", at)
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	handle, err := sys.OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	run("start", id)
	at = note("runc start", at)
	if _, err := handle.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	at = note("runc exit", at)
	run("delete", id)
	note("runc delete", at)
	note("runc", begin)
	m.cpu = append(m.cpu, cpuTime(t)-spent)
	if err := handle.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mount.UnmountAll(dir); err != nil {
		t.Fatal(err)
	}
}
