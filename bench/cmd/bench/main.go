// Command bench compares two daemons that speak containerd's gRPC API, and a
// limit without any daemon, in one interleaved run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/bench/internal/budget"
	"github.com/berthd/berth/bench/internal/config"
	"github.com/berthd/berth/bench/internal/daemon"
	"github.com/berthd/berth/bench/internal/ociimage"
	"github.com/berthd/berth/bench/internal/procfs"
	"github.com/berthd/berth/bench/internal/report"
	"github.com/berthd/berth/bench/internal/scenario"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == daemon.LauncherArg {
		daemon.RunLauncher()
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	f, err := parseFlags()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("must run as root")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The limit waits for containers whose parent, the OCI runtime, has gone.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	env, labels, err := setup(f)
	if err != nil {
		return err
	}
	defer os.RemoveAll(env.WorkDir)
	defer env.Close()
	rep := &report.Report{Started: time.Now(), Quick: f.quick, Host: host(f.work)}
	if err := identify(ctx, env, labels, rep); err != nil {
		return err
	}
	for _, s := range f.scenarios {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(os.Stderr, "%s running %s\n", time.Now().Format("15:04:05"), s.Name)
		out := scenario.Execute(ctx, env, s, labels, f.limit, rep)
		fmt.Print(out.Text())
		rep.Finished = time.Now()
		if err := save(rep, f); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(f.budgets) == 0 {
		return nil
	}
	fmt.Println("== budgets")
	if n := budget.Check(os.Stdout, rep, "A", f.budgets); n > 0 {
		return fmt.Errorf("%d of %d budgets exceeded", n, len(f.budgets))
	}
	return nil
}

func save(rep *report.Report, f *flags) error {
	if f.json != "" {
		if err := rep.WriteJSON(f.json); err != nil {
			return err
		}
	}
	if f.md != "" {
		return rep.WriteMarkdown(f.md)
	}
	return nil
}

// setup makes the work directory, the payload image and the environment.
func setup(f *flags) (*scenario.Env, []string, error) {
	work, err := os.MkdirTemp(f.work, "bench-")
	if err != nil {
		return nil, nil, err
	}
	env := &scenario.Env{P: f.params, WorkDir: work, Rootfs: filepath.Join(work, "rootfs"), Configs: map[string]*config.Daemon{}, Vars: f.vars}
	if err := os.MkdirAll(filepath.Join(work, "logs"), 0o755); err != nil {
		return nil, nil, err
	}
	if env.Payload, err = ociimage.BuildPayload(filepath.Join(work, "payload"), "bench.invalid/payload:1", f.payload); err != nil {
		return nil, nil, fmt.Errorf("%w (build it with go build -o payload ./cmd/payload, CGO_ENABLED=0)", err)
	}
	if err := ociimage.PayloadRootfs(env.Rootfs, f.payload); err != nil {
		return nil, nil, err
	}
	var labels []string
	for _, t := range []struct{ label, path string }{{"A", f.a}, {"B", f.b}} {
		if t.path == "" {
			continue
		}
		c, err := config.Load(t.path, f.vars)
		if err != nil {
			return nil, nil, err
		}
		env.Configs[t.label] = c
		labels = append(labels, t.label)
		env.OCIRuntime = config.Expand(c.OCIRuntime, f.vars)
	}
	return env, labels, nil
}

// identify starts each daemon once, to learn its version and to fail early.
func identify(ctx context.Context, env *scenario.Env, labels []string, rep *report.Report) error {
	for _, l := range labels {
		ref := report.TargetRef{Label: l, Name: env.Configs[l].Name}
		version, err := scenario.Version(ctx, env, l)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s (%s): %v\n", l, ref.Name, err)
			version = "does not start"
		}
		ref.Version = version
		rep.Targets = append(rep.Targets, ref)
	}
	return nil
}

func host(dir string) report.Host {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cg := "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		cg = "v2"
	} else if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		cg = "v1 hybrid"
	}
	var st unix.Statfs_t
	fs := "?"
	if unix.Statfs(dir, &st) == nil {
		fs = fsName(int64(st.Type))
	}
	return report.Host{
		Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(),
		MemMiB: procfs.MemTotalMiB(), Cgroup: cg, FS: fs,
	}
}

func fsName(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("%#x", magic)
}

type flags struct {
	a, b, work, payload, json, md string
	quick, limit                  bool
	budgets                       []budget.Budget
	params                        *scenario.Params
	scenarios                     []*scenario.Scenario
	vars                          map[string]string
}

// setVars collects -set name=value.
type setVars map[string]string

func (v setVars) String() string { return "" }

func (v setVars) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want name=value")
	}
	v[name] = value
	return nil
}

func parseFlags() (*flags, error) {
	f := &flags{vars: map[string]string{"runc": "runc", "berthd": "berthd", "shim": "berth-shim"}}
	var names, budgets string
	var density, restart, execs int
	flag.StringVar(&f.a, "a", "", "description of daemon A")
	flag.StringVar(&f.b, "b", "", "description of daemon B (may be left out)")
	flag.StringVar(&f.work, "work", os.TempDir(), "directory for roots, states and images; short, on the file system to measure")
	flag.StringVar(&f.payload, "payload", besideMe("payload"), "static payload binary")
	flag.StringVar(&f.json, "json", "", "write the report with raw samples to this file")
	flag.StringVar(&f.md, "md", "", "write the report as Markdown to this file")
	flag.BoolVar(&f.quick, "quick", false, "small sizes, for a run of a few minutes")
	flag.BoolVar(&f.limit, "limit", false, "also measure the limits")
	flag.StringVar(&budgets, "budgets", "", "file of golden numbers to hold A to; the exit status is 1 if one is exceeded")
	flag.StringVar(&names, "scenarios", "all", "comma-separated scenarios")
	flag.IntVar(&density, "density", 0, "running containers in the density scenario")
	flag.IntVar(&restart, "restart-running", 0, "running containers in the restart scenario")
	flag.IntVar(&execs, "execs", 0, "execs in the many-execs scenario")
	flag.Var(setVars(f.vars), "set", "name=value for {name} in the descriptions; may be repeated")
	flag.Parse()
	if flag.NArg() > 0 || f.a == "" {
		flag.Usage()
		return nil, errors.New("-a is required, and there are no arguments")
	}
	var err error
	if f.payload, err = filepath.Abs(f.payload); err != nil {
		return nil, err
	}
	f.vars["payload"] = f.payload
	f.params = scenario.DefaultParams()
	if f.quick {
		f.params = scenario.QuickParams()
	}
	if density > 0 {
		f.params.Density = density
	}
	if restart > 0 {
		f.params.RestartRunning = restart
	}
	if execs > 0 {
		f.params.ManyExecs = execs
	}
	if f.work, err = filepath.Abs(f.work); err != nil {
		return nil, err
	}
	if budgets != "" {
		if f.budgets, err = budget.Load(budgets); err != nil {
			return nil, err
		}
	}
	f.scenarios, err = choose(names)
	return f, err
}

func choose(names string) ([]*scenario.Scenario, error) {
	all := scenario.All()
	if names == "all" {
		return all, nil
	}
	var out []*scenario.Scenario
	for _, name := range strings.Split(names, ",") {
		found := false
		for _, s := range all {
			if s.Name == name {
				out, found = append(out, s), true
			}
		}
		if !found {
			known := make([]string, len(all))
			for i, s := range all {
				known[i] = s.Name
			}
			return nil, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	return out, nil
}

func besideMe(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}
