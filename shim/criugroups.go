package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/internal/durable"
	"github.com/berthd/berth/runtime/record"
)

// With version 2 of control groups, runc leaves it to criu into which group what it
// restores goes, and criu takes that of the dump. That may be another container's
// by now: both would share limits, and a kill of one would miss it. A file of
// settings for criu, which an annotation names to runc, gives the container's own.
const (
	criuAnnotation = "org.criu.config"
	criuFile       = "criu.conf"
)

// directCriu has criu restore a bundle's container into its own control group.
// Settings that the container brings itself stay, and so does a group that can't
// be told from its config.json.
func directCriu(bundle string, systemd bool) error {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil // runc tells criu with version 1
	}
	return writeCriu(bundle, systemd)
}

func writeCriu(bundle string, systemd bool) error {
	config := filepath.Join(bundle, record.ConfigFile)
	f, err := os.Open(config)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the runtime says so
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Linux       struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	var whole map[string]json.RawMessage // with what this program knows nothing of
	if json.Unmarshal(data, &spec) != nil || json.Unmarshal(data, &whole) != nil {
		return nil // nor can the runtime make anything of it
	}
	group := groupPath(spec.Linux.CgroupsPath, systemd)
	file := filepath.Join(bundle, criuFile)
	if given := spec.Annotations[criuAnnotation]; group == "" || given != "" && given != file {
		return nil
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[criuAnnotation] = file
	if whole["annotations"], err = json.Marshal(spec.Annotations); err != nil {
		return err
	}
	if data, err = json.Marshal(whole); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("cgroup-root "+group+"\n"), 0o600); err != nil {
		return err
	}
	if err := durable.WriteVolatile("shim.criuconfig", config, data, 0o600); err != nil {
		return fmt.Errorf("name criu's settings in %s: %w", config, err)
	}
	return nil
}

// groupPath is where in the hierarchy the group of a spec's cgroupsPath is; "" if
// that depends on who asks, or can't be written to criu's file.
func groupPath(cgroupsPath string, systemd bool) string {
	if strings.ContainsAny(cgroupsPath, " \t\n#\"'") {
		return ""
	}
	if !systemd {
		if !path.IsAbs(cgroupsPath) {
			return ""
		}
		return path.Clean(cgroupsPath)
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || parts[2] == "" {
		return ""
	}
	slice, unit := parts[0], parts[2]
	if slice == "" {
		slice = "system.slice"
	}
	if !strings.HasSuffix(unit, ".slice") {
		if parts[1] != "" {
			unit = parts[1] + "-" + unit
		}
		unit += ".scope"
	}
	return path.Join(slicePath(slice), unit)
}

// slicePath is where systemd has a slice: "a-b.slice" is in "a.slice".
func slicePath(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "-" {
		return "/"
	}
	at, prefix := "/", ""
	for part := range strings.SplitSeq(name, "-") {
		prefix += part
		at = path.Join(at, prefix+".slice")
		prefix += "-"
	}
	return at
}
