package metadata

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/snapshots"
)

// Several workers pull, unpack, run and delete images of one namespace, which
// share layers, while collections run without end. Each has images of its own
// name, and knows which of them are there: those are to be whole at any time.

const (
	pullWorkers = 4
	pullImages  = 4 // of each worker
	pullSteps   = 12
	pullLayers  = 5
)

// pullStep is one thing that a worker does with one of its images.
type pullStep struct {
	Do     string
	Image  int
	Layers []int // from the lowest on
	Late   bool  // labels come in a further call, as some clients have it
}

func pullPlan() *rapid.Generator[[]pullStep] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) pullStep {
		return pullStep{
			Do:     rapid.SampledFrom([]string{"pull", "pull", "pull", "delete", "run", "remove", "break off"}).Draw(t, "do"),
			Image:  rapid.IntRange(0, pullImages-1).Draw(t, "image"),
			Layers: rapid.SliceOfN(rapid.IntRange(0, pullLayers-1), 1, 4).Draw(t, "layers"),
			Late:   rapid.Bool().Draw(t, "late"),
		}
	}), 1, pullSteps)
}

// puller is one worker.
type puller struct {
	w      *world
	name   string
	s      Scope
	fail   func(format string, args ...any)
	images [pullImages][]int // layers of those that are there; nil: not there
	// runs are the layers below a container's snapshot; nil: there is none.
	runs   []int
	leases int
}

func (p *puller) check(what string, err error) {
	if err != nil {
		p.fail("%s: %s: %v", p.name, what, err)
	}
}

func (p *puller) image(i int) string { return fmt.Sprintf("%s/%d", p.name, i) }

func layerText(i int) string { return fmt.Sprint("layer ", i) }

// texts are config and manifest of an image: those of equal layers are one.
func texts(layers []int) (config, manifest string) {
	return fmt.Sprint("config ", layers), fmt.Sprint("manifest ", layers)
}

func chainOf(layers []int) string { return fmt.Sprint("chain ", layers) }

// fetch has a blob in the lease, with its labels.
func (p *puller) fetch(s Scope, text string, given map[string]string, late bool) {
	d := digest.FromString(text)
	atOnce := given
	if late {
		atOnce = nil
	}
	for {
		err := p.write(s, text, d, atOnce)
		if errdefs.IsUnavailable(err) { // another one fetches it
			continue
		}
		if !errdefs.IsAlreadyExists(err) {
			p.check("fetch "+text, err)
		} else if len(given) > 0 {
			late = true
		}
		break
	}
	if late && len(given) > 0 {
		info := &contentapi.Info{Digest: d.String(), Labels: given}
		paths := []string{}
		for key := range given {
			paths = append(paths, "labels."+key)
		}
		p.check("label "+text, second(p.w.Blobs(s).Update(bg, info, paths...)))
	}
}

func (p *puller) write(s Scope, text string, d digest.Digest, given map[string]string) error {
	w, err := p.w.Blobs(s).Writer(bg, "fetch "+text, content.Expect{Size: int64(len(text)), Digest: d})
	if err != nil {
		return err
	}
	status, err := w.Status()
	if err == nil && status.Offset == 0 {
		_, err = w.Write([]byte(text))
	}
	if err == nil {
		err = w.Commit(bg, int64(len(text)), d, given)
	}
	return errors.Join(err, w.Close())
}

// unpack has the chain of the layers in the lease.
func (p *puller) unpack(s Scope, layers []int, attempt int) {
	native, err := p.w.Snapshotter(s, "native")
	p.check("snapshotter", err)
	parent := ""
	for n := range layers {
		name := chainOf(layers[:n+1])
		for try := 0; ; try++ {
			key := fmt.Sprintf("extract %s %d %d %s", p.name, attempt, try, name)
			_, err := native.Prepare(bg, key, parent, map[string]string{labels.SnapshotRef: name})
			if errdefs.IsAlreadyExists(err) {
				break
			}
			p.check("prepare "+name, err)
			err = native.Commit(bg, name, key, "", nil)
			if errdefs.IsAlreadyExists(err) {
				p.check("remove "+key, native.Remove(bg, key))
				break
			}
			p.check("commit "+name, err)
			break
		}
		_, err := native.Stat(bg, name)
		p.check("unpacked "+name, err)
		parent = name
	}
}

// pull makes an image as a client does, and leaves off at the end if it is to
// break off: then only the lease's end is left to do.
func (p *puller) pull(st pullStep, attempt int) {
	p.leases++
	s := Scope{p.s.Namespace, fmt.Sprint(p.name, " ", p.leases)}
	p.check("lease", second(p.w.Leases(p.s).Create(bg, s.Lease, nil)))
	config, manifest := texts(st.Layers)
	given := map[string]string{labels.GCRefContent + ".config": digest.FromString(config).String()}
	for i, layer := range st.Layers {
		p.fetch(s, layerText(layer), nil, false)
		given[fmt.Sprintf("%s.l.%d", labels.GCRefContent, i)] = digest.FromString(layerText(layer)).String()
	}
	p.fetch(s, config, map[string]string{labels.GCRefSnapshot + "native": chainOf(st.Layers)}, st.Late)
	p.fetch(s, manifest, given, st.Late)
	p.unpack(s, st.Layers, attempt)
	if st.Do == "pull" {
		image := testImage(p.image(st.Image), digest.FromString(manifest))
		_, err := p.w.Images(s).Create(bg, image, nil)
		if errdefs.IsAlreadyExists(err) {
			_, err = p.w.Images(s).Update(bg, image, nil, nil)
		}
		p.check("image", err)
		p.images[st.Image] = st.Layers
	}
	p.check("end of lease", p.w.Leases(p.s).Delete(bg, s.Lease))
}

// run has a container on an image, or removes it and its snapshot.
func (p *puller) run(st pullStep) {
	native, err := p.w.Snapshotter(p.s, "native")
	p.check("snapshotter", err)
	id := "c-" + p.name
	if st.Do == "remove" {
		if p.runs != nil {
			p.check("remove container", p.w.Containers(p.s).Delete(bg, id))
			if err := native.Remove(bg, id); !errdefs.IsNotFound(err) { // collected
				p.check("remove its snapshot", err)
			}
			p.runs = nil
		}
		return
	}
	if layers := p.images[st.Image]; p.runs == nil && layers != nil {
		p.leases++
		s := Scope{p.s.Namespace, fmt.Sprint(p.name, " ", p.leases)}
		p.check("lease", second(p.w.Leases(p.s).Create(bg, s.Lease, nil)))
		leased, err := p.w.Snapshotter(s, "native")
		p.check("snapshotter", err)
		_, err = leased.Prepare(bg, id, chainOf(layers), nil)
		p.check("prepare container", err)
		c := testContainer(id)
		c.Snapshotter, c.SnapshotKey = "native", id
		p.check("container", second(p.w.Containers(s).Create(bg, c)))
		p.check("end of lease", p.w.Leases(p.s).Delete(bg, s.Lease))
		p.runs = layers
	}
}

func (p *puller) do(st pullStep, attempt int) {
	switch st.Do {
	case "pull", "break off":
		p.pull(st, attempt)
	case "delete":
		if p.images[st.Image] != nil {
			p.images[st.Image] = nil
			p.check("delete image", p.w.Images(p.s).Delete(bg, p.image(st.Image), nil))
		}
	default:
		p.run(st)
	}
}

// whole looks whether all is there that is to be.
func (p *puller) whole() {
	native, err := p.w.Snapshotter(p.s, "native")
	p.check("snapshotter", err)
	below := func(layers []int) {
		for n := range layers {
			info, err := native.Stat(bg, chainOf(layers[:n+1]))
			if p.check("snapshot", err); err == nil && info.Kind != snapshots.Committed {
				p.fail("%s: %s is %v", p.name, info.Name, info.Kind)
			}
		}
	}
	for i, layers := range p.images {
		if layers == nil {
			continue
		}
		config, manifest := texts(layers)
		row, err := p.w.Images(p.s).Get(bg, p.image(i))
		if p.check("image", err); err == nil && row.GetTarget().GetDigest() != digest.FromString(manifest).String() {
			p.fail("%s: image %d is another", p.name, i)
		}
		for _, text := range append([]string{config, manifest}, layerTexts(layers)...) {
			p.holds(text)
		}
		below(layers)
	}
	if p.runs != nil {
		_, err := native.Mounts(bg, "c-"+p.name)
		p.check("snapshot of a container", err)
		below(p.runs)
	}
}

func layerTexts(layers []int) (out []string) {
	for _, i := range layers {
		out = append(out, layerText(i))
	}
	return out
}

// holds reads a blob.
func (p *puller) holds(text string) {
	r, err := p.w.Blobs(p.s).Open(bg, digest.FromString(text))
	if err != nil {
		p.fail("%s: %s: %v", p.name, text, err)
		return
	}
	data := make([]byte, r.Size())
	_, err = r.ReadAt(data, 0)
	if p.check("read "+text, errors.Join(err, r.Close())); string(data) != text {
		p.fail("%s: %s holds %q", p.name, text, data)
	}
}

func TestPulls(t *testing.T) {
	trials(t, pullWorkers, pullPlan(), runPulls)
}

func runPulls(tr *trial, plans [][]pullStep) {
	tr.w.sweepRows = 2
	s := Scope{Namespace: "ns"}
	var work []func()
	for i, plan := range plans {
		p := &puller{w: tr.w, name: fmt.Sprint("w", i), s: s, fail: tr.fail}
		work = append(work, func() {
			for n, st := range plan {
				p.do(st, n)
				p.whole()
			}
			for image := range p.images {
				p.do(pullStep{Do: "delete", Image: image}, 0)
			}
			p.do(pullStep{Do: "remove"}, 0)
		})
	}
	tr.work(work...)
	tr.mustBeEmpty(s)
}
