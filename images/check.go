package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	imagesapi "github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/content"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// CheckOptions say how deep a check goes, and what it does about what it finds.
type CheckOptions struct {
	Deep   bool             // read every blob, and compare layers with what they were unpacked from
	Images bool             // also whether images are whole and unpacked, and what refers to what is gone
	Repair bool             // put right what can be put right
	Fetch  metadata.Fetcher // to repair with; nil: nothing is fetched
}

// repairPasses is how often what an image lacks is fetched: an index names
// manifests, which name configs and layers.
const repairPasses = 6

// Check is metadata's check of rows and disk, and then looks at the images. A
// check that repairs keeps collections off.
func (s *Store) Check(ctx context.Context, o CheckOptions) iter.Seq[metadata.Problem] {
	return func(yield func(metadata.Problem) bool) {
		inner := metadata.CheckOptions{ReadContent: o.Deep, References: o.Images}
		if o.Repair {
			release, err := s.DB.HoldCollections(ctx)
			if err != nil {
				yield(metadata.Problem{Kind: "database", Text: fmt.Sprintf("collections could not be kept off: %v", err)})
				return
			}
			defer release()
			inner.Repair = &metadata.Repair{Fetch: o.Fetch, Layer: (&maker{store: s}).layer}
		}
		for p := range s.DB.Check(ctx, inner) {
			if !yield(p) {
				return
			}
		}
		if !o.Images {
			return
		}
		c := &checker{store: s, options: o, yield: yield}
		if err := c.all(ctx); err != nil && !c.ended {
			yield(metadata.Problem{Kind: "image", Text: fmt.Sprintf("the check of images could not go on: %v", err)})
		}
	}
}

// checker is one run over all images.
type checker struct {
	store   *Store
	options CheckOptions
	yield   func(metadata.Problem) bool
	ended   bool
	layers  map[string]bool // those compared, by namespace, snapshotter and name
}

func (c *checker) all(ctx context.Context) error {
	c.layers = map[string]bool{}
	spaces, err := c.store.DB.Namespaces().List(ctx)
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		rows, err := c.store.DB.Images(metadata.Scope{Namespace: ns.Name}).List(ctx)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if err := c.image(ctx, ns.Name, row); err != nil || c.ended {
				return err
			}
		}
	}
	return nil
}

// report hands out a problem, with what came of its repair.
func (c *checker) report(ns, name, text, repaired string, failed error) {
	p := metadata.Problem{Kind: "image", Namespace: ns, Object: name, Text: text, Repaired: repaired}
	if failed != nil {
		p.Failed = failed.Error()
	}
	c.ended = c.ended || !c.yield(p)
}

// image looks at one image and repairs it if that is wanted.
func (c *checker) image(ctx context.Context, ns string, row *imagesapi.Image) error {
	st, err := c.store.Look(ctx, ns, row.Name)
	if errdefs.IsNotFound(err) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	if st.Problem != "" {
		repaired, failed := "", error(nil)
		before := st
		if c.options.Repair {
			if st, failed = c.mend(ctx, row, st); failed == nil {
				repaired = "fetched and unpacked again"
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		c.report(ns, before.Name, before.Problem, repaired, failed)
	}
	if c.options.Repair {
		if err := c.store.relabel(ctx, &st); err != nil {
			return err
		}
	}
	if !c.options.Deep || c.ended {
		return nil
	}
	for i := range st.Variants {
		v := &st.Variants[i]
		if v.State != Whole {
			continue
		}
		for _, snapshotter := range v.Unpacked {
			if err := c.compare(ctx, ns, row.Name, snapshotter, v); err != nil || c.ended {
				return err
			}
		}
	}
	return nil
}

// mend fetches what an image lacks and unpacks what was unpacked. It gives the
// image's new state, and why it is not whole if it is not.
func (c *checker) mend(ctx context.Context, row *imagesapi.Image, st State) (State, error) {
	var failed error
	brought := map[digest.Digest]bool{}
	for range repairPasses {
		var missing []ocispec.Descriptor
		for _, v := range st.Variants {
			if v.State == Partial {
				missing = append(missing, v.Missing...)
			}
		}
		if len(st.Variants) == 0 {
			missing = append(missing, st.Target)
		}
		if len(missing) == 0 {
			break
		}
		if failed = c.fetch(ctx, st, missing); failed != nil {
			break
		}
		for _, d := range missing {
			brought[d.Digest] = true
		}
		next, err := c.store.State(ctx, st.Namespace, row)
		if err != nil {
			return st, err
		}
		st = next
	}
	var errs []error
	for i := range st.Variants {
		v := &st.Variants[i]
		if v.State == Whole && brought[v.doc.Config.Digest] {
			errs = append(errs, c.store.rejoin(ctx, st.Namespace, v))
		}
		for _, snapshotter := range v.Broken {
			if v.State == Whole && v.config != nil && len(v.doc.Layers) > 0 {
				errs = append(errs, c.store.leased(ctx, metadata.Scope{Namespace: st.Namespace}, func(scope metadata.Scope) error {
					return c.store.remake(ctx, scope, snapshotter, v, len(v.doc.Layers)-1)
				}))
			}
		}
	}
	if err := errors.Join(append(errs, failed)...); err != nil {
		return st, err
	}
	next, err := c.store.State(ctx, st.Namespace, row)
	if err == nil && next.Problem != "" {
		err = fmt.Errorf("%s; pull or import it again", next.Problem)
	}
	return next, err
}

// rejoin has the config of a variant, whose row was gone and its labels with it, keep
// what there is unpacked of the variant.
func (s *Store) rejoin(ctx context.Context, ns string, v *Variant) error {
	chains, err := v.chains()
	if err != nil || len(chains) == 0 {
		return nil // it can't be unpacked
	}
	scope, top := metadata.Scope{Namespace: ns}, chains[len(chains)-1]
	keep := map[string]string{}
	for _, name := range s.DB.Snapshotters() {
		sn, err := s.DB.Snapshotter(scope, name)
		if err != nil {
			return err
		}
		_, err = sn.Stat(ctx, top)
		if err == nil {
			keep[labels.GCRefSnapshot+name] = top
		} else if !errdefs.IsNotFound(err) {
			return err
		}
	}
	return addLabels(ctx, s.DB.Blobs(scope), v.doc.Config.Digest, keep)
}

// fetch brings in blobs of an image: those whose bytes are in the store, known to
// another namespace, as they are, the others from where the rest of the image came.
func (c *checker) fetch(ctx context.Context, st State, missing []ocispec.Descriptor) error {
	return c.store.leased(ctx, metadata.Scope{Namespace: st.Namespace}, func(scope metadata.Scope) error {
		for _, d := range missing {
			if err := c.bring(ctx, scope, st, d); err != nil {
				return fmt.Errorf("%w: pull or import it again", err)
			}
		}
		return nil
	})
}

// bring brings in one blob.
func (c *checker) bring(ctx context.Context, scope metadata.Scope, st State, d ocispec.Descriptor) error {
	lent, err := c.take(ctx, scope, d, nil, nil)
	if lent || err != nil {
		return err
	}
	sources, err := c.sources(ctx, st)
	switch {
	case err != nil:
		return err
	case len(sources) == 0:
		return errors.New("no registry is recorded that has it")
	case c.options.Fetch == nil:
		return errors.New("nothing may be fetched")
	}
	var errs []error
	for _, from := range sources {
		about := map[string]string{labels.DistributionSource + from[0]: from[1]}
		_, err := c.take(ctx, scope, d, about, func() (io.ReadCloser, error) { return c.options.Fetch.Fetch(ctx, from[0], from[1], d) })
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("fetch %s from %s/%s: %w", d.Digest, from[0], from[1], err))
	}
	return errors.Join(errs...)
}

// sources lists the repositories, as host and path, that blobs of the image came
// from.
func (c *checker) sources(ctx context.Context, st State) ([][2]string, error) {
	blobs := c.store.DB.Blobs(metadata.Scope{Namespace: st.Namespace})
	all := map[[2]string]bool{}
	look := func(d digest.Digest) error {
		row, err := blobs.Info(ctx, d)
		if errdefs.IsNotFound(err) {
			return nil
		}
		for key, list := range row.GetLabels() {
			if host, ok := strings.CutPrefix(key, labels.DistributionSource); ok && host != "" {
				for path := range strings.SplitSeq(list, ",") {
					all[[2]string{host, path}] = path != ""
				}
			}
		}
		return err
	}
	if err := look(st.Target.Digest); err != nil {
		return nil, err
	}
	for _, v := range st.Variants {
		for _, d := range v.has {
			if err := look(d); err != nil {
				return nil, err
			}
		}
	}
	maps.DeleteFunc(all, func(_ [2]string, ok bool) bool { return !ok })
	return slices.SortedFunc(maps.Keys(all), func(a, b [2]string) int {
		return strings.Compare(a[0]+"/"+a[1], b[0]+"/"+b[1])
	}), nil
}

// take brings in one blob, from what open gives unless the store has its bytes;
// without open only then. It tells whether the namespace has it now.
func (c *checker) take(ctx context.Context, scope metadata.Scope, d ocispec.Descriptor, about map[string]string, open func() (io.ReadCloser, error)) (ok bool, err error) {
	w, err := c.store.DB.Blobs(scope).Writer(ctx, "repair-"+d.Digest.String(), content.Expect{Size: d.Size, Digest: d.Digest})
	if errdefs.IsAlreadyExists(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, w.End(ctx, ok && err == nil)) }()
	st, err := w.Status()
	if err != nil {
		return false, err
	}
	if st.Offset != d.Size || w.Digest() != d.Digest {
		if open == nil {
			return false, nil
		}
		if err := copyFrom(w, d.Size, open); err != nil {
			return false, err
		}
	}
	err = w.Commit(ctx, d.Size, d.Digest, about)
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	return err == nil, err
}

// copyFrom writes a blob anew.
func copyFrom(w *metadata.Writer, size int64, open func() (io.ReadCloser, error)) error {
	if err := w.Truncate(0); err != nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, size+1))
	return errors.Join(err, r.Close())
}

// relabel gives the blobs of an image the labels by which each keeps the next
// from collection, where they have lost them.
func (s *Store) relabel(ctx context.Context, st *State) error {
	blobs := s.DB.Blobs(metadata.Scope{Namespace: st.Namespace})
	keep := func(parent ocispec.Descriptor, children []ocispec.Descriptor) error {
		row, err := blobs.Info(ctx, parent.Digest)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		kept := map[string]bool{}
		for key, value := range row.Labels {
			kept[value] = kept[value] || strings.HasPrefix(key, labels.GCRefContent)
		}
		lost := false
		for _, child := range children {
			if _, err := blobs.Info(ctx, child.Digest); err == nil && !kept[child.Digest.String()] {
				lost = true
			}
		}
		if !lost {
			return nil
		}
		return addLabels(ctx, blobs, parent.Digest, childLabels(children, func(d ocispec.Descriptor) bool {
			_, err := blobs.Info(ctx, d.Digest)
			return err == nil
		}))
	}
	var manifests []ocispec.Descriptor
	for _, v := range st.Variants {
		if v.State == Whole {
			manifests = append(manifests, v.Manifest)
			if err := keep(v.Manifest, partsOf(&v.doc)); err != nil {
				return err
			}
		}
	}
	if KindOf(st.Target.MediaType) == Index {
		return keep(st.Target, manifests)
	}
	return nil
}
