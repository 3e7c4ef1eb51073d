package config

import "time"

// DefaultPath is read when no file is named. That it is missing is no error.
const DefaultPath = "/etc/berth/config.toml"

// MaxSocketPath is the longest path, in bytes, of the daemon's own sockets
// (docs/compatibility.md). The kernel's bound is 107; the ".ttrpc" socket is
// checked with its suffix.
const MaxSocketPath = 104

// TTRPCSuffix is what the ttrpc socket's path adds to the gRPC socket's.
const TTRPCSuffix = ".ttrpc"

// Config is everything that can be set. Default has the value of each field
// that a file does not name.
type Config struct {
	Root        string   `toml:"root" comment:"What outlives the machine's power: database, content, snapshots, logs."`
	State       string   `toml:"state" comment:"What lives as long as the boot: bundles, sockets, the event journal. Best on a tmpfs."`
	Shim        string   `toml:"shim" comment:"Path of berth-shim; empty: beside berthd, then in PATH."`
	Snapshotter string   `toml:"snapshotter" comment:"Snapshotter for images that berth itself unpacks: overlayfs, native, erofs, or one of proxy_snapshotters; empty: the best this machine can."`
	Sharing     string   `toml:"content_sharing" comment:"shared: namespaces share blobs they know the digest of; isolated: each has to bring the bytes."`
	GRPC        GRPC     `toml:"grpc"`
	Runtime     Runtime  `toml:"runtime"`
	Registry    Registry `toml:"registry"`
	Images      Images   `toml:"images"`
	Log         Log      `toml:"log"`
	Debug       Endpoint `toml:"debug" comment:"pprof on a unix socket; empty: not served."`
	Metrics     Endpoint `toml:"metrics" comment:"Prometheus at /v1/metrics on a TCP address (host:port) or a unix socket (a path); empty: not served."`
	GC          GC       `toml:"gc"`
	Events      Events   `toml:"events"`
	Memory      Memory   `toml:"memory"`
	Deadlines   Deadline `toml:"deadlines" comment:"How long the daemon waits for what it calls."`

	Overlay    Overlay              `toml:"overlay"`
	Verifiers  Verifiers            `toml:"image_verifiers"`
	Proxies    map[string]Proxy     `toml:"proxy_snapshotters,omitempty" comment:"Snapshotters that are other programs: [proxy_snapshotters.NAME]."`
	Processors map[string]Processor `toml:"stream_processors,omitempty" comment:"Programs between a layer's blob and its tar: [stream_processors.ID]."`
}

// GRPC says where clients find the daemon.
type GRPC struct {
	Address string `toml:"address" comment:"Unix socket; empty: STATE/berth.sock. The ttrpc socket for shims is beside it, with .ttrpc added."`
	UID     int    `toml:"uid" comment:"Owner of the socket."`
	GID     int    `toml:"gid" comment:"Group of the socket; its members may do everything root may."`
}

// Runtime says how containers are run.
type Runtime struct {
	Binary string `toml:"binary" comment:"OCI runtime for tasks that name none: a name in PATH or a path."`
}

// Registry says how registries are reached.
type Registry struct {
	HostsDir string `toml:"hosts_dir" comment:"Directory with one for each registry: hosts.toml or certificates, as containerd and docker have it. It need not exist; empty: none."`
}

// Images bounds what images may ask for.
type Images struct {
	MaxLayer int64 `toml:"max_layer_bytes" comment:"Bytes that a layer may have uncompressed; one that has more is refused, be it as small as it may while it is compressed."`
}

// Log says what the daemon writes on standard error.
type Log struct {
	Level  string `toml:"level" comment:"debug, info, warn or error. Read again on SIGHUP."`
	Format string `toml:"format" comment:"text or json."`
}

// Endpoint is where something optional listens; empty means nowhere.
type Endpoint struct {
	Address string `toml:"address"`
}

// GC says when a collection runs.
type GC struct {
	StartupDelay   Duration `toml:"startup_delay" comment:"First collection after the start."`
	ScheduleDelay  Duration `toml:"schedule_delay" comment:"Wait after a delete, so that many make one collection."`
	PauseThreshold float64  `toml:"pause_threshold" comment:"Largest share of time, up to 0.5, that collections may take."`
}

// Events bounds the journal.
type Events struct {
	MaxBytes int64 `toml:"max_bytes" comment:"Events kept on disk for subscribers that are slow or were away, in bytes."`
}

// Memory keeps the idle daemon small.
type Memory struct {
	GCPercent int   `toml:"gc_percent" comment:"Go's GOGC: lower takes less memory and more CPU. A small heap is collected less often."`
	Limit     int64 `toml:"limit" comment:"Go's soft memory limit in bytes; 0: none."`
}

// Deadline bounds the waits on others.
type Deadline struct {
	Drain    Duration `toml:"drain" comment:"On SIGTERM: for calls in flight to end."`
	Shutdown Duration `toml:"shutdown" comment:"On SIGTERM, after that: for the daemon's own parts to end."`
	Features Duration `toml:"features" comment:"For the OCI runtime to tell its features."`
	Create   Duration `toml:"create" comment:"For a shim to start, mount a root file system and make the container."`
	Start    Duration `toml:"start" comment:"For a container's process, or an exec, to start."`
	Delete   Duration `toml:"delete" comment:"For a shim to remove a task, its output written to the end."`
}

// Values of Config.Sharing.
const (
	Shared   = "shared"
	Isolated = "isolated"
)

// Default is the configuration without a file.
func Default() Config {
	return Config{
		Root:     "/var/lib/berth",
		State:    "/run/berth",
		Sharing:  Shared,
		Runtime:  Runtime{Binary: "runc"},
		Registry: Registry{HostsDir: "/etc/berth/certs.d"},
		Images:   Images{MaxLayer: 1 << 40},
		Log:      Log{Level: "info", Format: "text"},
		GC: GC{
			StartupDelay:   Duration{100 * time.Millisecond},
			ScheduleDelay:  Duration{100 * time.Millisecond},
			PauseThreshold: 0.02,
		},
		Events: Events{MaxBytes: 64 << 20},
		Memory: Memory{GCPercent: 50},
		Deadlines: Deadline{
			Drain:    Duration{5 * time.Second},
			Shutdown: Duration{5 * time.Second},
			Features: Duration{5 * time.Second},
			Create:   Duration{2 * time.Minute},
			Start:    Duration{time.Minute},
			Delete:   Duration{time.Minute},
		},
		Overlay:   Overlay{UserXattr: Auto},
		Verifiers: Verifiers{Dir: "/etc/berth/image-verifiers", Max: 10, Timeout: Duration{10 * time.Second}},
	}
}

// Complete fills in what depends on other fields.
func (c *Config) Complete() {
	if c.GRPC.Address == "" {
		c.GRPC.Address = c.State + "/berth.sock"
	}
}

// TTRPCAddress is the path of the socket to which shims send events.
func (c *Config) TTRPCAddress() string { return c.GRPC.Address + TTRPCSuffix }

// Duration is a time.Duration that a file spells like "1m30s". It is a struct
// so that a plain number in a file, which has no unit, is an error.
type Duration struct{ time.Duration }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText writes the duration as UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
