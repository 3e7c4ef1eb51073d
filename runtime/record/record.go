// Package record owns the small files in a bundle from which a task can be
// known without asking anybody: what was intended, which processes came of it,
// and how they ended. The daemon and the shim both write and read them; each
// file has one writer.
//
//	STATE/io.containerd.runtime.v2.task/NAMESPACE/ID/
//	├── config.json      OCI spec, byte for byte as the client gave it     (daemon; the shim adds an annotation to restore it)
//	├── criu.conf        settings for criu's restore                       (shim)
//	├── intent.json      Intent                                            (daemon)
//	├── shim.json        Shim: the shim's pid, start time, socket          (daemon)
//	├── bootstrap.json   where a foreign shim listens, as it said          (daemon)
//	├── runtime.json     Runtime: how the OCI runtime is called            (shim)
//	├── init.json        Started: pid and start time of init               (shim, or daemon for a foreign shim)
//	├── exit.json        Exit of init                                      (shim, or daemon once the shim is dead)
//	├── execs/EXEC/      init.json and exit.json of each exec              (shim)
//	├── status.json      Status: created, running or paused at last        (daemon)
//	├── exit.seen        the exit event of init was published              (daemon)
//	├── delete.seen      the delete event of a task without a shim was     (daemon)
//	├── seen/EXEC        the exit event of that exec was published         (daemon)
//	├── shim.log         standard error of the shim, bounded               (shim)
//	├── runtime.log      log of the OCI runtime's last call                (shim)
//	└── rootfs/          mount point
//
// Files are replaced whole by rename and not flushed: they live as long as the
// boot (docs/adr/0001).
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/internal/sys"
)

// File names within a bundle, and within execs/EXEC/.
const (
	IntentFile     = "intent.json"
	ShimFile       = "shim.json"
	RuntimeFile    = "runtime.json"
	StartedFile    = "init.json"
	ExitFile       = "exit.json"
	ConfigFile     = "config.json"
	ShimLogFile    = "shim.log"
	RootfsDir      = "rootfs"
	ExecsDir       = "execs"
	StatusFile     = "status.json"
	ExitSeenFile   = "exit.seen"
	DeleteSeenFile = "delete.seen"
	SeenDir        = "seen"
	BootstrapFile  = "bootstrap.json"
	CriuFile       = "berth.json" // among a checkpoint's images
)

// Version is that of the files this package writes. A higher one is refused.
const Version = 1

// maxSize bounds what is read of a record file.
const maxSize = 1 << 20

// Any is a typed blob, as google.protobuf.Any.
type Any struct {
	TypeURL string `json:"type_url"`
	Value   []byte `json:"value"`
}

// Mount is one mount of the root file system.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Target  string   `json:"target,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Intent is what a Create asked for.
type Intent struct {
	Version   int     `json:"version"`
	Namespace string  `json:"namespace"`
	ID        string  `json:"id"`
	Runtime   string  `json:"runtime"`           // runtime name, such as io.containerd.runc.v2
	Binary    string  `json:"binary"`            // resolved path of the shim
	Group     string  `json:"group,omitempty"`   // the pod whose shim it shares
	Foreign   bool    `json:"foreign,omitempty"` // the shim is not our own: it keeps no records
	Options   *Any    `json:"options,omitempty"` // runtime options
	Rootfs    []Mount `json:"rootfs,omitempty"`
	Stdin     string  `json:"stdin,omitempty"`
	Stdout    string  `json:"stdout,omitempty"`
	Stderr    string  `json:"stderr,omitempty"`
	Terminal  bool    `json:"terminal,omitempty"`
	// Checkpoint is the directory with the images that its start restores.
	Checkpoint string    `json:"checkpoint,omitempty"`
	BootID     string    `json:"boot_id"` // /proc/sys/kernel/random/boot_id
	CreatedAt  time.Time `json:"created_at"`
}

// Shim is the shim process and where it listens. Of a foreign one the pid may not
// be known: 0.
type Shim struct {
	Version   int    `json:"version"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`         // field 22 of /proc/PID/stat, clock ticks since boot
	Socket    string `json:"socket"`             // absolute path of the unix socket; of a foreign shim any address
	Shared    bool   `json:"shared,omitempty"`   // it has claimed the bundle only if it has the container
	API       int    `json:"api,omitempty"`      // version of the task API, if it is not 3
	Protocol  string `json:"protocol,omitempty"` // if it is not ttrpc
}

// Runtime is how the OCI runtime of a container is called, for whoever has to
// clean up after its shim.
type Runtime struct {
	Version       int    `json:"version"`
	Binary        string `json:"binary,omitempty"` // "" is the default
	Root          string `json:"root"`             // the runtime's state directory
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
}

// Criu says what criu was allowed when it made a checkpoint, and so has to be at
// its restore. It is among the images; in those of other programs it is missing.
type Criu struct {
	Version         int      `json:"version"`
	OpenTCP         bool     `json:"open_tcp,omitempty"`
	ExternalSockets bool     `json:"external_sockets,omitempty"`
	Terminal        bool     `json:"terminal,omitempty"`
	FileLocks       bool     `json:"file_locks,omitempty"`
	EmptyNamespaces []string `json:"empty_namespaces,omitempty"`
	CgroupsMode     string   `json:"cgroups_mode,omitempty"`
}

// Started is a container process that the OCI runtime has made. A start time of
// 0, under a foreign shim, is that of a process that this machine does not have.
// The pid of a task from a checkpoint is 0 until its start has restored it.
type Started struct {
	Version   int    `json:"version"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat, clock ticks since boot
}

// Status is what the daemon last knew of a task whose init has not ended: what
// it lists until the shim has answered after a restart.
type Status struct {
	Version int    `json:"version"`
	Status  string `json:"status"` // a name of containerd.v1.types.Status, such as RUNNING
}

// Exit is how a process ended.
type Exit struct {
	Version  int       `json:"version"`
	PID      int       `json:"pid"`
	Status   uint32    `json:"status"` // exit code, or 128 and the signal's number
	ExitedAt time.Time `json:"exited_at"`
	// Reason is empty for a status that was waited for; else it says where the
	// status is from, such as "exit unobserved".
	Reason string `json:"reason,omitempty"`
	// OOMKills counts the processes of the container that the kernel's OOM killer
	// had ended by then, as far as the shim knows.
	OOMKills uint64 `json:"oom_kills,omitempty"`
}

// Write replaces the file of that name in dir by v as JSON. op names the fault
// points.
func Write(op, dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return durable.WriteVolatile(op, filepath.Join(dir, name), data, 0o600)
}

// Read reads a file that Write wrote into v, which points to one of the types
// above. A missing file is fs.ErrNotExist; anything else that is wrong with it,
// a higher version included, is an error that names it.
func Read(dir, name string, v any) error {
	path := filepath.Join(dir, name)
	data, err := sys.ReadFile(path, maxSize)
	switch {
	case errors.Is(err, sys.ErrTooLarge):
		return fmt.Errorf("read record %s: larger than %d bytes", path, maxSize)
	case err != nil:
		return err
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	if head.Version < 1 || head.Version > Version {
		return fmt.Errorf("read record %s: version %d is not known to this build, which writes %d", path, head.Version, Version)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	return nil
}
