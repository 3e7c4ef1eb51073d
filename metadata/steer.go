package metadata

import (
	"strings"
	"time"

	"github.com/berthd/berth/internal/labels"
)

// steer reads one label that starts with labels.GC (contract, section 7).
func (f *facts) steer(n node, key, value string) {
	switch {
	case strings.HasPrefix(key, labels.GCRoot):
		f.root = n.kind == kindContent || n.kind == kindSnapshot
	case key == labels.GCExpire:
		if n.kind == kindLease || n.kind == kindImage {
			f.expires, _ = time.Parse(time.RFC3339, value) // an unreadable time is none
		}
	case key == labels.GCFlat:
		f.flat = n.kind == kindLease
	case key == labels.GCUsedAt:
		f.usedAt, _ = time.Parse(time.RFC3339, value)
	case strings.HasPrefix(key, labels.GCRef):
		if to, ok := labelTarget(n.ns, key[len(labels.GCRef):], value); ok && to.kind != kindContainer {
			f.labeled = append(f.labeled, to)
		}
	case strings.HasPrefix(key, labels.GCBackRef):
		if to, ok := labelTarget(n.ns, key[len(labels.GCBackRef):], value); ok {
			f.back = append(f.back, to)
		}
	case strings.HasPrefix(key, labels.GCCondSnapshot):
		snapshotter, _, _ := strings.Cut(key[len(labels.GCCondSnapshot):], "/")
		key, age, ok := parseCondition(value)
		if ok && snapshotter != "" && (n.kind == kindContent || n.kind == kindImage) {
			f.conds = append(f.conds, condition{snapshotNode(n.ns, snapshotter, key), age})
		}
	}
}

// labelTarget reads what a reference label names: KIND[.X or /X], or
// snapshot.SNAPSHOTTER[/X], in which a dot does not end the snapshotter.
func labelTarget(ns, family, value string) (node, bool) {
	if value == "" {
		return node{}, false
	}
	if rest, ok := strings.CutPrefix(family, "snapshot."); ok {
		snapshotter, _, _ := strings.Cut(rest, "/")
		return snapshotNode(ns, snapshotter, value), snapshotter != ""
	}
	if i := strings.IndexAny(family, "./"); i >= 0 {
		family = family[:i]
	}
	switch family {
	case "content":
		return node{kindContent, ns, value}, true
	case "image":
		return node{kindImage, ns, value}, true
	case "container":
		return node{kindContainer, ns, value}, true
	case "mount":
		return node{kindMount, ns, value}, true
	}
	return node{}, false // a stream, which has no row; or unknown
}

// parseCondition reads "usedat<DURATION|KEY".
func parseCondition(text string) (key string, age time.Duration, ok bool) {
	rest, ok := strings.CutPrefix(text, "usedat<")
	if !ok {
		return "", 0, false
	}
	duration, key, _ := strings.Cut(rest, "|")
	age, err := time.ParseDuration(duration)
	return key, age, err == nil && key != ""
}
