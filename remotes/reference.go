package remotes

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference says which image of which registry is meant.
type Reference struct {
	Registry   string        // as a user names it: docker.io, registry.example:5000
	Repository string        // the path below it: library/alpine
	Tag        string        // "" only if there is a digest
	Digest     digest.Digest // wins over the tag
}

// ParseReference reads a reference as docker's clients do: a name without a
// registry is of docker.io, one without a tag or digest means latest.
func ParseReference(text string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Reference{}, fmt.Errorf("%q is no reference of an image: %v: %w", text, err, errdefs.ErrInvalidArgument)
	}
	named = reference.TagNameOnly(named)
	ref := Reference{Registry: reference.Domain(named), Repository: reference.Path(named)}
	if tagged, ok := named.(reference.Tagged); ok {
		ref.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		ref.Digest = digested.Digest()
	}
	return ref, nil
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// Object is what a registry is asked for: the digest, else the tag.
func (r Reference) Object() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// String is the reference in full, with the tag left out if there is a digest.
func (r Reference) String() string {
	switch {
	case r.Digest != "":
		return r.Name() + "@" + r.Digest.String()
	case r.Tag != "":
		return r.Name() + ":" + r.Tag
	}
	return r.Name()
}
