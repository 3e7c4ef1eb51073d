package metadata

import (
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/berthd/berth/internal/labels"
)

// kept gives a copy of labels without those that have no value, which are never
// stored; nil if none is left.
func kept(given map[string]string) map[string]string {
	var out map[string]string
	for key, value := range given {
		if value == "" {
			continue
		}
		if out == nil {
			out = make(map[string]string, len(given))
		}
		out[key] = value
	}
	return out
}

// subKey gives KEY of a path "field.KEY".
func subKey(path, field string) (key string, ok bool) {
	key, ok = strings.CutPrefix(path, field+".")
	return key, ok && key != ""
}

// maskLabels applies one path of an update mask to labels or annotations:
// "field" takes all of given, "field.KEY" that one. It tells whether the path
// is one of these.
func maskLabels(path, field string, stored *map[string]string, given map[string]string) bool {
	if path == field {
		*stored = kept(given)
		return true
	}
	key, ok := subKey(path, field)
	if !ok {
		return false
	}
	if value := given[key]; value != "" {
		if *stored == nil {
			*stored = map[string]string{}
		}
		(*stored)[key] = value
	} else {
		delete(*stored, key)
	}
	return true
}

// badPath is the error for a path of a mask that what does not have.
func badPath(what, path string) error {
	return fmt.Errorf("update mask: %s: there is no path %q that can be changed: %w", what, short(path), errdefs.ErrInvalidArgument)
}

// updateLabels applies a mask that may name nothing but labels.
func updateLabels(what string, stored *map[string]string, given map[string]string, mask []string) error {
	if len(mask) == 0 {
		mask = []string{"labels"}
	}
	for _, path := range mask {
		if !maskLabels(path, "labels", stored, given) {
			return badPath(what, path)
		}
	}
	if err := labels.Validate(*stored); err != nil {
		return err
	}
	return nil
}

// losesReference tells whether a change of labels may let something become
// garbage.
func losesReference(before, after map[string]string) bool {
	for key, value := range before {
		if strings.HasPrefix(key, labels.GC) && after[key] != value {
			return true
		}
	}
	return false
}

// cloneLabels copies labels, so that a caller may change what it gave or got.
func cloneLabels(given map[string]string) map[string]string { return maps.Clone(given) }
