package diff

import (
	"slices"
	"strings"
)

// Media types of layers. The OCI ones may have suffixes, each after a "+".
const (
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociLayer           = "application/vnd.oci.image.layer.v1.tar"
	ociForeignLayer    = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// Compressions as media types tell them.
const (
	Plain   = ""
	Gzip    = "gzip"
	Zstd    = "zstd"
	Unknown = "unknown" // the bytes have to tell
)

// Compression tells whether mediaType is that of a layer tar, and how the tar
// is compressed. A type that says that the tar is wrapped in something else, as
// "+encrypted" does, counts as a layer.
func Compression(mediaType string) (compression string, layer bool) {
	base, rest, suffixed := strings.Cut(mediaType, "+")
	suffixes := strings.Split(rest, "+")
	switch base {
	case dockerLayer, dockerForeignLayer:
		if suffixed {
			return Plain, true
		}
		return Unknown, true
	case dockerLayer + ".gzip", dockerForeignLayer + ".gzip":
		return Gzip, true
	case dockerLayer + ".zstd":
		return Zstd, true
	case ociLayer, ociForeignLayer:
		switch {
		case slices.Contains(suffixes, Gzip):
			return Gzip, true
		case slices.Contains(suffixes, Zstd):
			return Zstd, true
		}
		return Plain, true
	}
	return Plain, false
}

// wrapping gives the first suffix that is no compression, such as "encrypted".
func wrapping(mediaType string) string {
	_, rest, _ := strings.Cut(mediaType, "+")
	for suffix := range strings.SplitSeq(rest, "+") {
		if suffix != "" && suffix != Gzip && suffix != Zstd {
			return suffix
		}
	}
	return ""
}
