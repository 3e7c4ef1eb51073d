package images

import (
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// nameAnnotation has the whole name of an image in an index.json.
const nameAnnotation = "io.containerd.image.name"

// Normalize gives an image name its full form: with a registry, and with the
// tag "latest" unless there is a tag or digest. With both the tag is dropped.
func Normalize(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", invalid("image name %q: %v", name, err)
	}
	return named.String(), nil
}

// nameOf reads the name of an image from its annotations in index.json. Many
// tools write no more than a tag: then the tag alone is returned.
func nameOf(d ocispec.Descriptor) (name, tag string, err error) {
	if name := d.Annotations[nameAnnotation]; name != "" {
		name, err = Normalize(name)
		return name, "", err
	}
	ref := d.Annotations[ocispec.AnnotationRefName]
	if strings.ContainsAny(ref, "/:@") {
		name, err = Normalize(ref)
		return name, "", err
	}
	return "", ref, nil
}

// withTag gives base the tag, unless it has a tag or digest.
func withTag(base, tag string) (string, error) {
	named, err := reference.ParseNormalizedNamed(base)
	if err != nil {
		return "", invalid("image name %q: %v", base, err)
	}
	if tag != "" && reference.IsNameOnly(named) {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return "", invalid("tag %q of image %q: %v", tag, base, err)
		}
		return tagged.String(), nil
	}
	return Normalize(base)
}
