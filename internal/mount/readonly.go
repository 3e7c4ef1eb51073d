package mount

import (
	"slices"
	"strings"
)

// ReadOnly turns mounts into such as can't be written through, which others may have
// mounted meanwhile. Of an overlay the upper directory becomes one more lower one:
// two mounts must not share it, nor a work directory. If its owners were to be
// mapped, they are shown as they are on disk: those of the upper directory are mapped
// there already.
func ReadOnly(mounts []Mount) []Mount {
	list := make([]Mount, 0, len(mounts))
	for _, m := range mounts {
		options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "rw" || o == "ro" })
		if m.Type == "overlay" {
			options = lowered(options)
		}
		list = append(list, Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: append(options, "ro")})
	}
	return list
}

// lowered rewrites the options of an overlay.
func lowered(options []string) []string {
	upper := ""
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = strings.ReplaceAll(strings.ReplaceAll(dir, `\:`, ":"), ":", `\:`) // which divides lower ones
		}
	}
	var kept []string
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "lowerdir" && upper != "":
			kept = append(kept, "lowerdir="+upper+":"+value)
		case key == "upperdir", key == "workdir", o == "volatile":
		case o == "index=on", o == "nfs_export=on": // they write
		case upper != "" && (key == "uidmap" || key == "gidmap"):
		default:
			kept = append(kept, o)
		}
	}
	return kept
}
