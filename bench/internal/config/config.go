// Package config reads the description of a daemon under test.
package config

import (
	"fmt"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Daemon describes one daemon: how to start it and how to talk to it. Strings
// may hold the placeholders {root} {state} {socket} {config} and any {name}
// given to the benchmark with -set name=value.
type Daemon struct {
	Name           string   `toml:"name"`
	Command        []string `toml:"command"`
	Env            []string `toml:"env"`
	ConfigTemplate string   `toml:"config_template"`
	// VersionCommand prints the daemon's version; with it one of ConfigFor may
	// take the place of ConfigTemplate.
	VersionCommand []string       `toml:"version_command"`
	ConfigFor      []Versioned    `toml:"config_for"`
	Runtime        string         `toml:"runtime"`
	RuntimeOptions RuntimeOptions `toml:"runtime_options"`
	Snapshotter    string         `toml:"snapshotter"`
	// OCIRuntime is the OCI runtime that the limit drives directly; it should
	// be the one the daemon uses.
	OCIRuntime string `toml:"oci_runtime"`
	// Logs are the URIs that have the shim write a container's output into the file
	// {log}: as it is ("raw"), and with a time before each line ("lines"). One
	// that is missing is not served.
	Logs map[string]string `toml:"logs"`
	// Binaries are the files whose sizes the static scenario adds up.
	Binaries []string `toml:"binaries"`
}

// RuntimeOptions are sent as containerd.runc.v1.Options when Send is true.
type RuntimeOptions struct {
	Send          bool   `toml:"send"`
	BinaryName    string `toml:"binary_name"`
	Root          string `toml:"root"`
	SystemdCgroup bool   `toml:"systemd_cgroup"`
}

// Load reads a daemon description, fills in defaults and settles which config
// template the daemon's version needs.
func Load(path string, vars map[string]string) (*Daemon, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Runtime:     "io.containerd.runc.v2",
		Snapshotter: "overlayfs",
		OCIRuntime:  "runc",
	}
	dec := toml.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if d.Name == "" || len(d.Command) == 0 {
		return nil, fmt.Errorf("%s: name and command are required", path)
	}
	if err := d.choose(vars); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// Expand replaces placeholders in a string.
func Expand(s string, vars map[string]string) string {
	for k, v := range vars {
		s = strings.ReplaceAll(s, "{"+k+"}", v)
	}
	return s
}

// Expanded returns a copy with all placeholders replaced.
func (d *Daemon) Expanded(vars map[string]string) *Daemon {
	c := *d
	c.Command = expandAll(d.Command, vars)
	c.Env = expandAll(d.Env, vars)
	c.Binaries = expandAll(d.Binaries, vars)
	c.ConfigTemplate = Expand(d.ConfigTemplate, vars)
	c.Runtime = Expand(d.Runtime, vars)
	c.OCIRuntime = Expand(d.OCIRuntime, vars)
	c.Snapshotter = Expand(d.Snapshotter, vars)
	c.RuntimeOptions.BinaryName = Expand(d.RuntimeOptions.BinaryName, vars)
	c.RuntimeOptions.Root = Expand(d.RuntimeOptions.Root, vars)
	return &c
}

func expandAll(in []string, vars map[string]string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = Expand(s, vars)
	}
	return out
}
