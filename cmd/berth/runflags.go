package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/internal/names"
	"github.com/berthd/berth/runtime/spec"
)

// runFlags are the flags of run.
type runFlags struct {
	detach, interactive, tty, remove bool

	name        string
	labels      []string
	runtime     string
	snapshotter string
	stopSignal  string
	restart     string
	checkpoint  string
	pull        string
	systemd     bool

	env, envFiles []string
	user, cwd     string
	entrypoint    []string // nil: not given

	mounts, volumes  []string
	memory           string
	cpus             float64
	network          string
	hostname         string
	readOnly         bool
	privileged       bool
	noNewPrivileges  bool
	capAdd, capDrop  []string
	seccomp          string
	entrypointString string

	log  logFlags
	more specFlags
}

func (f *runFlags) register(flags *pflag.FlagSet) {
	flags.BoolVarP(&f.detach, "detach", "d", false, "let it run in the background, with its output in a log")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "give it berth's standard input; with -d, that of who attaches")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	f.log.register(flags)
	f.more.register(flags)
	flags.BoolVar(&f.remove, "rm", false, "remove it when it has ended")
	flags.StringVar(&f.name, "name", "", "its `id`; made up if not given")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label, as `KEY=VALUE`")
	flags.StringVar(&f.runtime, "runtime", "", "OCI `runtime`, as a program or a path, or name of a shim's runtime like "+client.DefaultRuntime)
	flags.BoolVar(&f.systemd, "systemd-cgroup", false, "have systemd make its control group, as a scope in system.slice")
	flags.StringVar(&f.snapshotter, "snapshotter", "", "`snapshotter` for its files")
	flags.StringVar(&f.pull, "pull", pullMissing, "`when` to fetch the image from its registry: missing, always, never")
	flags.StringVar(&f.stopSignal, "stop-signal", "", "`signal` by which stop asks it to end")
	registerRestart(flags, &f.restart)
	flags.StringVar(&f.checkpoint, "checkpoint", "", "with -d: go on from a checkpoint of another `CONTAINER/NAME`, instead of beginning")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment, as `KEY[=VALUE]`; KEY alone passes berth's own on")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`file` with such lines")
	flags.StringVarP(&f.user, "user", "u", "", "user, as `NAME|UID[:GROUP|GID]`")
	flags.StringVarP(&f.cwd, "cwd", "w", "", "working `directory`")
	flags.StringVar(&f.entrypointString, "entrypoint", "", "`program` instead of the image's entrypoint; empty: none")
	flags.StringArrayVar(&f.mounts, "mount", nil, "`mount`, as type=bind,src=PATH,dst=PATH[,ro] or type=tmpfs,dst=PATH[,size=SIZE]")
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "bind mount, as `SOURCE:DESTINATION[:ro]`")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit, a `size` like 64m or 1.5g")
	flags.Float64Var(&f.cpus, "cpus", 0, "`number` of CPUs it may use at once, like 1.5")
	flags.StringVar(&f.network, "net", string(spec.NetworkNone), "`network`: none, or host")
	flags.StringVar(&f.hostname, "hostname", "", "`name` of the host it sees")
	flags.BoolVar(&f.readOnly, "read-only", false, "let it not write its root file system")
	flags.BoolVar(&f.privileged, "privileged", false, "give it all capabilities and devices of the host")
	flags.BoolVar(&f.noNewPrivileges, "no-new-privileges", false, "let set-user-id programs gain nothing")
	flags.StringSliceVar(&f.capAdd, "cap-add", nil, "`capability` to add, or ALL")
	flags.StringSliceVar(&f.capDrop, "cap-drop", nil, "`capability` to take away, or ALL")
	flags.StringVar(&f.seccomp, "seccomp", "", "`file` with a seccomp profile; unconfined: none")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name { // what fingers know
		case "workdir":
			name = "cwd"
		case "network":
			name = "net"
		}
		return pflag.NormalizedName(name)
	})
}

// check refuses flags that do not go together.
func (f *runFlags) check() error {
	if f.pull != pullMissing && f.pull != pullAlways && f.pull != pullNever {
		return usage(fmt.Errorf("--pull %q is neither %s nor %s nor %s", f.pull, pullMissing, pullAlways, pullNever))
	}
	policy, err := checkRestart(f.restart)
	switch {
	case err != nil:
		return usage(err)
	case policy != "no" && f.remove:
		return hint(fmt.Errorf("--restart %s with --rm: a container is either kept or removed when it ends", policy), "leave one of them out")
	case policy != "no" && !f.detach:
		return hint(fmt.Errorf("--restart %s in the foreground: who watches would see the first run alone", policy),
			"run it with -d, and read its output with `berth logs -f`")
	case f.checkpoint != "" && !f.detach:
		return usage(errors.New("--checkpoint in the foreground: with -d it goes on in the background; `berth attach` shows its output"))
	case f.detach && f.remove:
		return hint(errors.New("--rm with -d: nobody would be there to remove the container when it ends"),
			"run it without --rm, and `berth rm` it afterwards")
	}
	return f.log.check(f.detach)
}

// logOptions say how the log of a container in the background is kept.
func (f *runFlags) logOptions() client.LogOptions {
	return client.LogOptions{Input: f.interactive, MaxSize: f.log.size, MaxFiles: f.log.files}
}

// options turns the flags into what the client takes.
func (f *runFlags) options(image string, args []string) (client.ContainerOptions, error) {
	o := client.ContainerOptions{ID: f.name, Image: image, Snapshotter: f.snapshotter, Labels: map[string]string{}}
	if o.ID == "" {
		o.ID = randomName()
	}
	if err := names.Identifier(o.ID); err != nil {
		return o, err
	}
	for _, label := range f.labels {
		key, value, _ := strings.Cut(label, "=")
		if key == "" {
			return o, fmt.Errorf("label %q has no key", label)
		}
		o.Labels[key] = value
	}
	if policy, err := checkRestart(f.restart); err != nil {
		return o, err
	} else if policy != "no" {
		maps.Copy(o.Labels, restartLabels(policy, ""))
	}
	if f.stopSignal != "" {
		if _, err := parseSignal(f.stopSignal); err != nil {
			return o, err
		}
		o.Labels[client.LabelStopSignal] = f.stopSignal
	}
	o.Runtime, o.RuntimeOptions = parseRuntime(f.runtime)
	var err error
	o.Spec, err = f.spec(args)
	if o.Spec.SystemdCgroup = f.systemd; f.systemd {
		chosen, _ := o.RuntimeOptions.(*runc.Options)
		o.RuntimeOptions = &runc.Options{BinaryName: chosen.GetBinaryName(), SystemdCgroup: true}
	}
	return o, err
}

func (f *runFlags) spec(args []string) (spec.Options, error) {
	s := spec.Options{
		Args:            args,
		Entrypoint:      f.entrypoint,
		User:            f.user,
		Cwd:             f.cwd,
		Terminal:        f.tty,
		Hostname:        f.hostname,
		Network:         spec.Network(f.network),
		ReadOnly:        f.readOnly,
		Privileged:      f.privileged,
		NoNewPrivileges: f.noNewPrivileges,
		CapAdd:          f.capAdd,
		CapDrop:         f.capDrop,
		CPUs:            f.cpus,
	}
	var err error
	if s.Env, err = environment(f.envFiles, f.env); err != nil {
		return s, err
	}
	if s.Mounts, err = f.parseMounts(); err != nil {
		return s, err
	}
	if f.memory != "" {
		if s.Memory, err = spec.ParseSize(f.memory); err != nil {
			return s, fmt.Errorf("memory limit: %w", err)
		}
		if s.Memory == 0 {
			return s, errors.New("memory limit: 0 bytes are none at all; leave --memory out for no limit")
		}
	}
	if s.Seccomp, err = readProfile(f.seccomp); err != nil {
		return s, err
	}
	return s, f.more.apply(&s)
}

// parseMounts reads --mount and --volume. What a bind mount shows has to be
// there: a directory made by accident hides a mistake.
func (f *runFlags) parseMounts() ([]specs.Mount, error) {
	var mounts []specs.Mount
	for _, text := range f.mounts {
		m, err := spec.ParseMount(text)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	for _, text := range f.volumes {
		m, err := spec.ParseVolume(text)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	for _, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			return nil, fmt.Errorf("mount at %s: %w", m.Destination, err)
		}
	}
	return mounts, nil
}

// maxProfile bounds a file with a seccomp profile, in bytes.
const maxProfile = 4 << 20

// readProfile reads --seccomp.
func readProfile(value string) (string, error) {
	switch value {
	case "", "default":
		return "", nil
	case spec.Unconfined:
		return value, nil
	}
	f, err := os.Open(value)
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProfile))
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w", err)
	}
	return string(data), nil
}

// parseRuntime tells names of runtimes, which have dots, from programs.
func parseRuntime(value string) (name string, options proto.Message) {
	switch {
	case value == "":
		return "", nil
	case strings.Contains(value, "/") || !strings.Contains(value, "."):
		return client.DefaultRuntime, &runc.Options{BinaryName: value}
	}
	return value, nil
}

// maxEnvLine bounds a line of an --env-file, in bytes.
const maxEnvLine = 1 << 20

// environment puts --env after --env-file. A KEY alone takes berth's own value;
// where berth has none, it stays alone, which takes the image's away.
func environment(files, entries []string) ([]string, error) {
	var env []string
	for _, file := range files {
		lines, err := envFile(file)
		if err != nil {
			return nil, fmt.Errorf("environment file: %w", err)
		}
		env = append(env, lines...)
	}
	env = append(env, entries...)
	for i, entry := range env {
		key, _, hasValue := strings.Cut(entry, "=")
		if key == "" {
			return nil, fmt.Errorf("environment %q has no name", entry)
		}
		if value, set := os.LookupEnv(key); set && !hasValue {
			env[i] = key + "=" + value
		}
	}
	return env, nil
}

func envFile(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, maxEnvLine)
	for scanner.Scan() {
		line := strings.TrimLeft(scanner.Text(), " \t")
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return lines, nil
}
