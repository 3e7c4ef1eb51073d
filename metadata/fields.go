package metadata

import (
	"strings"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/leases/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/filter"
	"github.com/berthd/berth/snapshots"
)

// fields says which fields of an object filters read. Those of text are present
// when they are not empty; those of always are present also when empty.
type fields[M any] struct {
	text   map[string]func(M) string
	always map[string]func(M) string
	maps   map[string]func(M) map[string]string // the rest of the path is the key
}

// adaptor shows m to a filter.
func (f fields[M]) adaptor(m M) filter.Adaptor {
	return filter.AdaptorFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		if entries, ok := f.maps[path[0]]; ok && len(path) > 1 {
			value, ok := entries(m)[strings.Join(path[1:], ".")]
			return value, ok
		}
		name := strings.Join(path, ".")
		if get, ok := f.text[name]; ok {
			value := get(m)
			return value, value != ""
		}
		if get, ok := f.always[name]; ok {
			return get(m), true
		}
		return "", false
	})
}

var (
	imageFields = fields[*images.Image]{
		text: map[string]func(*images.Image) string{
			"name":             (*images.Image).GetName,
			"target.digest":    func(i *images.Image) string { return i.GetTarget().GetDigest() },
			"target.mediatype": func(i *images.Image) string { return i.GetTarget().GetMediaType() },
		},
		maps: map[string]func(*images.Image) map[string]string{
			"labels":      (*images.Image).GetLabels,
			"annotations": func(i *images.Image) map[string]string { return i.GetTarget().GetAnnotations() },
		},
	}
	leaseFields = fields[*leases.Lease]{
		text: map[string]func(*leases.Lease) string{"id": (*leases.Lease).GetId},
		maps: map[string]func(*leases.Lease) map[string]string{"labels": (*leases.Lease).GetLabels},
	}
	sandboxFields = fields[*types.Sandbox]{
		text: map[string]func(*types.Sandbox) string{"id": (*types.Sandbox).GetSandboxId},
		maps: map[string]func(*types.Sandbox) map[string]string{"labels": (*types.Sandbox).GetLabels},
	}
	blobFields = fields[*contentapi.Info]{
		text: map[string]func(*contentapi.Info) string{"digest": (*contentapi.Info).GetDigest},
		maps: map[string]func(*contentapi.Info) map[string]string{"labels": (*contentapi.Info).GetLabels},
	}
	ingestFields = fields[*contentapi.Status]{
		text: map[string]func(*contentapi.Status) string{"ref": (*contentapi.Status).GetRef},
	}
	activationFields = fields[*types.ActivationInfo]{
		text: map[string]func(*types.ActivationInfo) string{"name": (*types.ActivationInfo).GetName},
		maps: map[string]func(*types.ActivationInfo) map[string]string{"labels": (*types.ActivationInfo).GetLabels},
	}
	snapshotFields = fields[snapshots.Info]{
		always: map[string]func(snapshots.Info) string{
			"name":   func(i snapshots.Info) string { return i.Name },
			"parent": func(i snapshots.Info) string { return i.Parent },
			"kind":   func(i snapshots.Info) string { return i.Kind.String() },
		},
		maps: map[string]func(snapshots.Info) map[string]string{"labels": func(i snapshots.Info) map[string]string { return i.Labels }},
	}
)

// list gives the rows of a namespace that one of the filters matches.
func list[M any](rows func(yield func(M, error) bool), known fields[M], filters []string) ([]M, error) {
	match, err := filter.ParseAll(filters...)
	if err != nil {
		return nil, err
	}
	all := len(filters) == 0
	var out []M
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		if all || match.Match(known.adaptor(row)) {
			out = append(out, row)
		}
	}
	return out, nil
}
