package images

import (
	"maps"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/internal/labels"
)

// Reference says how to name the images of an archive.
type Reference struct {
	Name string // a name, or what names begin with
	// Prefix says that Name is what names begin with, up to the tag: an image that
	// has a tag and no name is called Name:TAG.
	Prefix bool
	// Overwrite takes names of the archive that do not begin with Name too. Without
	// it such an image is left out.
	Overwrite bool
	// Digest adds the name NAME@DIGEST, unless SkipNamed is set and there is a name.
	Digest    bool
	SkipNamed bool
}

// names gives the names for an image of an archive, of which the archive knows the
// full name, or a tag alone, or nothing. None: it is not wanted.
func (r Reference) names(full, tag string, d digest.Digest) []string {
	if !r.Prefix {
		return nil // of the archive as a whole, not of an image in it
	}
	var out []string
	switch {
	case full != "" && (r.Overwrite || begins(full, r.Name)):
		out = append(out, full)
	case full == "" && tag != "":
		out = append(out, r.Name+":"+tag)
	}
	if r.Digest && (len(out) == 0 || !r.SkipNamed) {
		out = append(out, r.Name+"@"+d.String())
	}
	return out
}

// naming says how the images of an archive are called.
type naming struct {
	name  string      // of one that has none
	refs  []Reference // nil: by their own names
	index string      // of all together
}

// of gives the names for an image that the archive calls full, or by a tag alone, or
// not at all.
func (n naming) of(full, tag string, d digest.Digest) ([]string, error) {
	var out []string
	switch {
	case n.refs != nil:
		for _, ref := range n.refs {
			out = append(out, ref.names(full, tag, d)...)
		}
		return out, nil
	case full != "":
		return []string{full}, nil
	case n.name == "":
		return nil, invalid("archive: index.json does not name image %s: give it a name", d)
	}
	named, err := withTag(n.name, tag)
	return []string{named}, err
}

// docker gives the names for an image that docker calls by tags.
func (n naming) docker(tags []string, d digest.Digest) ([]string, error) {
	if len(tags) == 0 {
		return n.of("", "", d)
	}
	var out []string
	for _, tag := range tags {
		full, err := Normalize(tag)
		if err != nil {
			return nil, err
		}
		names, err := n.of(full, "", d)
		if err != nil {
			return nil, err
		}
		out = append(out, names...)
	}
	return out, nil
}

// begins tells whether a name begins with a prefix, in whole components.
func begins(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || strings.ContainsAny(rest[:1], "/:@"))
}

// ExtraLabels are those of an image that is but another name of the image main: it
// goes when that goes. Without a main image they are the labels that are given.
func ExtraLabels(given map[string]string, main string) map[string]string {
	if main == "" {
		return given
	}
	all := maps.Clone(given)
	if all == nil {
		all = map[string]string{}
	}
	all[labels.GCBackRefImage] = main
	all[labels.GCExpire] = time.Now().UTC().Format(time.RFC3339)
	return all
}
