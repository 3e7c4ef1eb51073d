package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	contentapi "github.com/berthd/berth/api/services/content/v1"
	imagesapi "github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/internal/labels"
	"github.com/berthd/berth/metadata"
)

// recoveredName begins the names of images whose own are lost.
const recoveredName = "recovered.local/"

// document is what tells an index from a manifest, and what it names.
type document struct {
	MediaType   string               `json:"mediaType"`
	Manifests   []ocispec.Descriptor `json:"manifests"`
	Config      *ocispec.Descriptor  `json:"config"`
	Layers      []ocispec.Descriptor `json:"layers"`
	Annotations map[string]string    `json:"annotations"`
}

// Recover makes images of blobs whose names are lost: of each index or manifest
// among them that no other document names, with the name that its annotations
// give, or one made of its digest. What becomes part of an image is kept by that
// from then on, and no more by itself; what was unpacked is not known, so images
// for this machine are unpacked. It gives the images it made.
func (s *Store) Recover(ctx context.Context, ns string, blobs []digest.Digest) ([]Imported, error) {
	scope := metadata.Scope{Namespace: ns}
	docs, err := s.documents(ctx, scope, blobs)
	if err != nil {
		return nil, err
	}
	named := map[digest.Digest]bool{}
	for _, doc := range docs {
		for _, d := range doc.children() {
			named[d.Digest] = true
		}
	}
	var made []Imported
	for _, d := range blobs {
		doc, ok := docs[d]
		if !ok || named[d] {
			continue
		}
		one, err := s.recover(ctx, scope, d, doc)
		if ctx.Err() != nil {
			return made, ctx.Err()
		}
		if err != nil {
			s.log().Warn("no image could be made of a manifest without a name", slog.String("digest", d.String()), slog.Any("error", err))
			continue
		}
		made = append(made, one)
	}
	return made, nil
}

func (d document) children() []ocispec.Descriptor {
	all := append([]ocispec.Descriptor{}, d.Manifests...)
	if d.Config != nil {
		all = append(all, *d.Config)
	}
	return append(all, d.Layers...)
}

// documents finds the indexes and manifests among blobs.
func (s *Store) documents(ctx context.Context, scope metadata.Scope, all []digest.Digest) (map[digest.Digest]document, error) {
	docs := map[digest.Digest]document{}
	blobs := s.DB.Blobs(scope)
	for _, d := range all {
		info, err := blobs.Info(ctx, d)
		if errdefs.IsNotFound(err) || err == nil && info.Size > maxDocument {
			continue
		}
		if err != nil {
			return nil, err
		}
		data, err := readDocument(ctx, blobs, "blob", ocispec.Descriptor{Digest: d, Size: info.Size})
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			continue // damaged: the check says so
		}
		var doc document
		if len(data) == 0 || data[0] != '{' || json.Unmarshal(data, &doc) != nil || d.Algorithm().FromBytes(data) != d {
			continue
		}
		if doc.MediaType == "" {
			switch {
			case doc.Manifests != nil && doc.Config == nil:
				doc.MediaType = ocispec.MediaTypeImageIndex
			case doc.Config != nil && doc.Manifests == nil:
				doc.MediaType = ocispec.MediaTypeImageManifest
			}
		}
		if kind := KindOf(doc.MediaType); kind == Index || kind == Manifest {
			docs[d] = doc
		}
	}
	return docs, nil
}

// recover makes an image of one document.
func (s *Store) recover(ctx context.Context, scope metadata.Scope, d digest.Digest, doc document) (Imported, error) {
	blobs := s.DB.Blobs(scope)
	info, err := blobs.Info(ctx, d)
	if err != nil {
		return Imported{}, err
	}
	one := Imported{Name: recoveredName + d.Encoded()[:12] + ":latest", Target: ocispec.Descriptor{MediaType: doc.MediaType, Digest: d, Size: info.Size}}
	if name, err := Normalize(doc.Annotations[nameAnnotation]); err == nil {
		one.Name = name
	}
	row := &imagesapi.Image{Name: one.Name, Target: &types.Descriptor{MediaType: doc.MediaType, Digest: d.String(), Size: info.Size}}
	rows := s.DB.Images(scope)
	if have, err := rows.Get(ctx, one.Name); err == nil && have.GetTarget().GetDigest() != d.String() {
		one.Name = recoveredName + d.Encoded()[:12] + ":latest" // the name came back otherwise
		row.Name = one.Name
	}
	st, err := s.State(ctx, scope.Namespace, row)
	if err != nil {
		return one, err
	}
	if st.Problem != "" {
		return one, errors.New(st.Problem)
	}
	if err := s.relabel(ctx, &st); err != nil {
		return one, err
	}
	if _, err := rows.Create(ctx, row, nil); err != nil && !errdefs.IsAlreadyExists(err) {
		return one, err
	}
	for _, v := range st.Variants {
		for _, part := range v.has {
			if err := unroot(ctx, blobs, part); err != nil {
				return one, err
			}
		}
	}
	if err := unroot(ctx, blobs, d); err != nil {
		return one, err
	}
	if one.ChainID, err = s.Unpack(ctx, scope, one.Target, UnpackOptions{}, nil); err != nil && ctx.Err() == nil {
		s.log().Warn("a recovered image could not be unpacked", slog.String("image", one.Name), slog.Any("error", err))
		err = nil
	}
	return one, err
}

// unroot takes the label from a blob by which it was kept by itself.
func unroot(ctx context.Context, blobs *metadata.Blobs, d digest.Digest) error {
	_, err := blobs.Update(ctx, &contentapi.Info{Digest: d.String()}, "labels."+labels.GCRoot)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", d, err)
	}
	return nil
}
