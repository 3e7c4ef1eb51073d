package diff

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/archive"
	"github.com/berthd/berth/internal/counted"
	"github.com/berthd/berth/internal/mount"
)

// DefaultMediaType is that of a layer where nobody asks for another.
const DefaultMediaType = ociLayer + "+" + Gzip

// MakeOptions say how to make a layer.
type MakeOptions struct {
	MediaType string    // "" is DefaultMediaType
	Epoch     time.Time // see archive.DiffOptions
}

// Layer describes a layer that was made.
type Layer struct {
	MediaType  string
	Compressed bool
	DiffID     digest.Digest // of the tar, not compressed
	Size       int64         // bytes of the tar
}

// Make writes to w, as a layer, what has to be laid down over left to have right;
// left without mounts is an empty tree. Nothing is written to either, and right may
// be in use: what changes meanwhile is in the layer or not. The same trees give the
// same bytes. If left is what an overlay in right is mounted over, its upper
// directory alone is read; other trees are mounted and compared.
//
// A media type that is not a layer's, or of another compression than gzip and zstd,
// is Unimplemented; what can't be in a layer FailedPrecondition.
func Make(ctx context.Context, w io.Writer, left, right []mount.Mount, o MakeOptions) (Layer, error) {
	made := Layer{MediaType: o.MediaType}
	if made.MediaType == "" {
		made.MediaType = DefaultMediaType
	}
	if len(right) == 0 {
		return Layer{}, fmt.Errorf("make layer: no mounts of the changed tree: %w", errdefs.ErrInvalidArgument)
	}
	packed, err := Compress(w, made.MediaType)
	if err != nil {
		return Layer{}, fmt.Errorf("make layer: %w", err)
	}
	hash := sha256.New()
	plain := &counted.Writer{W: io.MultiWriter(packed, hash)}
	err = write(ctx, plain, left, right, archive.DiffOptions{Epoch: o.Epoch})
	// An encoder has goroutines until it is closed.
	if closed := packed.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return Layer{}, fmt.Errorf("make layer: %w", err)
	}
	compression, _ := Compression(made.MediaType)
	made.Compressed = compression == Gzip || compression == Zstd
	made.DiffID, made.Size = digest.NewDigestFromBytes(digest.SHA256, hash.Sum(nil)), plain.N
	return made, nil
}

// through is a writer that has nothing to close.
type through struct{ io.Writer }

func (through) Close() error { return nil }

// Compress gives the compression that a media type asks for; it has to be closed,
// which leaves w open. Unimplemented: layers of that type are not made here.
func Compress(w io.Writer, mediaType string) (io.WriteCloser, error) {
	compression, layer := Compression(mediaType)
	if !layer || wrapping(mediaType) != "" {
		return nil, fmt.Errorf("media type %q: layers can be made as %s, +gzip and +zstd, and as docker's: %w", mediaType, ociLayer, errdefs.ErrNotImplemented)
	}
	switch compression {
	case Gzip:
		return gzip.NewWriter(w), nil
	case Zstd:
		return zstd.NewWriter(w)
	}
	return through{w}, nil
}

// write writes the tar.
func write(ctx context.Context, w io.Writer, left, right []mount.Mount, o archive.DiffOptions) error {
	p, err := pairOf(ctx, left, right)
	if err != nil {
		return err
	}
	if o.Owner = p.owner; p.upper != "" {
		return archive.DiffUpper(ctx, w, p.upper, o)
	}
	return at(ctx, p.left, func(lower string) error {
		return at(ctx, p.right, func(upper string) error { return archive.Diff(ctx, w, lower, upper, o) })
	})
}

// Changes tells what makes right differ from left, as archive.Changes does. As for
// Make, right may be in use, and an overlay's upper directory alone is read.
func Changes(ctx context.Context, left, right []mount.Mount, tell func(archive.Change) error) error {
	if len(right) == 0 {
		return fmt.Errorf("compare: no mounts of the changed tree: %w", errdefs.ErrInvalidArgument)
	}
	p, err := pairOf(ctx, left, right)
	if err != nil {
		return err
	}
	o := archive.DiffOptions{Owner: p.owner}
	return at(ctx, p.left, func(lower string) error {
		if p.upper != "" {
			return archive.ChangesUpper(ctx, lower, p.upper, o, tell)
		}
		return at(ctx, p.right, func(upper string) error { return archive.Changes(ctx, lower, upper, o, tell) })
	})
}

// pair is two trees to compare.
type pair struct {
	left, right []mount.Mount                 // without mapping of ids
	upper       string                        // of an overlay of right over left, if that will do
	owner       func(uid, gid int) (int, int) // gives the container's ids; nil: they are those on disk
}

func pairOf(ctx context.Context, left, right []mount.Mount) (p pair, err error) {
	var ids mapping
	if p.right, ids, err = unmapped(right); err != nil {
		return p, err
	}
	if p.left, _, err = unmapped(left); err != nil {
		return p, err
	}
	if ids.uids != nil || ids.gids != nil {
		p.owner = ids.back
	}
	if p.upper, err = upperOf(p.left, p.right); err != nil || p.upper == "" {
		return p, err
	}
	merge, err := archive.NeedsMerge(ctx, p.upper)
	if merge {
		p.upper = ""
	}
	return p, err
}

// upperOf gives the upper directory of an overlay in right whose lower directories
// are left, "" if that is not so.
func upperOf(left, right []mount.Mount) (string, error) {
	if len(right) != 1 || right[0].Type != "overlay" || right[0].Target != "" || userns.RunningInUserNS() {
		return "", nil
	}
	if !slices.ContainsFunc(right[0].Options, func(o string) bool { return strings.HasPrefix(o, "upperdir=") }) {
		return "", nil
	}
	upper, lower, err := overlayDirs(right[0].Options)
	if err != nil || upper == "" {
		return "", err
	}
	if len(left) != 1 || left[0].Target != "" {
		return "", nil
	}
	below := []string{left[0].Source}
	if left[0].Type == "overlay" {
		below = nil
		for _, option := range left[0].Options {
			if list, ok := strings.CutPrefix(option, "lowerdir="); ok {
				below = splitLower(list)
			}
			if strings.HasPrefix(option, "upperdir=") {
				return "", nil
			}
		}
	} else if left[0].Type != "bind" {
		return "", nil
	}
	if !slices.Equal(below, lower) {
		return "", nil
	}
	return upper, nil
}

// at calls do with where mounts are mounted; "" if there are none.
func at(ctx context.Context, mounts []mount.Mount, do func(root string) error) error {
	if len(mounts) == 0 {
		return do("")
	}
	return mount.WithTemp(ctx, mount.ReadOnly(mounts), do)
}

// mapping is how the container's users are mapped to those on disk.
type mapping struct{ uids, gids []idRange }

// idRange is a range of ids that follow one another on both sides.
type idRange struct{ inside, first, count int }

// back gives the container's ids.
func (m mapping) back(uid, gid int) (int, int) { return back(m.uids, uid), back(m.gids, gid) }

func back(ranges []idRange, id int) int {
	for _, r := range ranges {
		if id >= r.first && id < r.first+r.count {
			return r.inside + id - r.first
		}
	}
	return id // of a layer below, which has the container's
}

// unmapped takes the mapping of ids out of mounts: in a layer are the container's.
func unmapped(mounts []mount.Mount) ([]mount.Mount, mapping, error) {
	var m mapping
	list := make([]mount.Mount, len(mounts))
	for i, one := range mounts {
		list[i] = one
		list[i].Options = nil
		for _, option := range one.Options {
			key, value, _ := strings.Cut(option, "=")
			into := map[string]*[]idRange{"uidmap": &m.uids, "gidmap": &m.gids}[key]
			if into == nil {
				list[i].Options = append(list[i].Options, option)
				continue
			}
			var err error
			if *into, err = ranges(value); err != nil {
				return nil, m, fmt.Errorf("option %q: %w", option, err)
			}
		}
	}
	return list, m, nil
}

// ranges reads CONTAINER:HOST:SIZE[,...].
func ranges(text string) (list []idRange, err error) {
	for part := range strings.SplitSeq(text, ",") {
		fields := strings.Split(part, ":")
		var n [3]uint64
		ok := len(fields) == len(n)
		for i := 0; ok && i < len(n); i++ {
			n[i], err = strconv.ParseUint(fields[i], 10, 32)
			ok = err == nil
		}
		if !ok {
			return nil, fmt.Errorf("%q is not CONTAINER:HOST:SIZE: %w", part, errdefs.ErrInvalidArgument)
		}
		list = append(list, idRange{int(n[0]), int(n[1]), int(n[2])})
	}
	return list, nil
}
