// Package testimage makes images for tests and the demo: of busybox, or of
// whatever a test gives it, as OCI layout or docker archive, without any other
// program. The same input gives the same bytes. It belongs to no program that
// is installed.
package testimage

import (
	"archive/tar"
	"bytes"
	_ "crypto/sha256" // for package digest
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Time is the time of everything in these images.
var Time = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// Compressions of layers.
const (
	None = "none"
	Gzip = "gzip"
	Zstd = "zstd"
)

// Image is an image to be made.
type Image struct {
	Name     string           // "" for one without a name
	Platform ocispec.Platform // zero: linux on this machine's architecture
	Config   ocispec.ImageConfig
	Layers   [][]byte // tars, bottom first
}

// File is an entry of a layer. Without a type it is a directory if the name
// ends in a slash, else a hard or symbolic link or a regular file.
type File struct {
	Name string
	Body string
	Mode int64  // 0: 0755 for directories, else 0644
	Uid  int    // and gid
	Hard string // target of a hard link
	Link string // target of a symbolic link
	Type byte
}

// Layer makes a layer tar.
func Layer(files ...File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.Uid, Gid: f.Uid, Typeflag: f.Type, ModTime: Time, Size: int64(len(f.Body))}
		switch {
		case f.Type != 0:
		case f.Hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.Hard
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		default:
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer entry %q: %w", f.Name, err)
		}
		if _, err := io.WriteString(w, f.Body); err != nil {
			return nil, fmt.Errorf("layer entry %q: %w", f.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// ConfigJSON is the config blob of the image.
func (i *Image) ConfigJSON() ([]byte, error) {
	config := ocispec.Image{Created: &Time, Platform: i.platform(), Config: i.Config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	for _, layer := range i.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
		config.History = append(config.History, ocispec.History{Created: &Time, CreatedBy: "testimage"})
	}
	return json.Marshal(config)
}

func (i *Image) platform() ocispec.Platform {
	if i.Platform.OS == "" {
		return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	return i.Platform
}

// compress packs a layer and gives the media type of the result.
func compress(layer []byte, compression string) ([]byte, string, error) {
	switch compression {
	case None:
		return layer, ocispec.MediaTypeImageLayer, nil
	case Gzip, "":
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(layer); err != nil {
			return nil, "", err
		}
		if err := w.Close(); err != nil {
			return nil, "", err
		}
		return buf.Bytes(), ocispec.MediaTypeImageLayerGzip, nil
	case Zstd:
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, "", err
		}
		return w.EncodeAll(layer, nil), ocispec.MediaTypeImageLayerZstd, w.Close()
	}
	return nil, "", fmt.Errorf("unknown compression %q: use %s, %s or %s", compression, None, Gzip, Zstd)
}

var schema = specs.Versioned{SchemaVersion: 2}
