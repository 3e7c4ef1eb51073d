package images

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func vectors(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func TestMediaTypeVectors(t *testing.T) {
	var v struct {
		Cases []struct {
			Type                           string `json:"media_type"`
			Label                          string `json:"child_label"`
			Config, Index, Layer, Manifest bool
		}
	}
	vectors(t, "media-types.json", &v)
	if len(v.Cases) < 20 {
		t.Fatal(len(v.Cases))
	}
	for _, c := range v.Cases {
		want := Other
		switch {
		case c.Config:
			want = Config
		case c.Index:
			want = Index
		case c.Layer:
			want = Layer
		case c.Manifest:
			want = Manifest
		}
		if got := KindOf(c.Type); got != want {
			t.Errorf("%s: kind %d, want %d", c.Type, got, want)
		}
		if got := childLabel(c.Type); got != c.Label {
			t.Errorf("%s: label %s, want %s", c.Type, got, c.Label)
		}
	}
}

func TestChainIDVectors(t *testing.T) {
	var v struct {
		Cases []struct {
			ChainID  digest.Digest   `json:"chain_id"`
			ChainIDs []digest.Digest `json:"chain_ids"`
			DiffIDs  []digest.Digest `json:"diff_ids"`
		}
	}
	vectors(t, "chainid.json", &v)
	if len(v.Cases) < 5 {
		t.Fatal(len(v.Cases))
	}
	for _, c := range v.Cases {
		if got := ChainID(c.DiffIDs); got != c.ChainID {
			t.Errorf("%v: %s, want %s", c.DiffIDs, got, c.ChainID)
		}
		for i, want := range c.ChainIDs {
			if got := ChainID(c.DiffIDs[:i+1]); got != want {
				t.Errorf("%v: %s, want %s", c.DiffIDs[:i+1], got, want)
			}
		}
	}
}

func TestReferenceVectors(t *testing.T) {
	var v struct {
		Docker []struct {
			In, Normalized string
			Valid          bool
		}
	}
	vectors(t, "references.json", &v)
	if len(v.Docker) < 30 {
		t.Fatal(len(v.Docker))
	}
	domain := strings.NewReplacer("DEFAULT", "docker.io", "LEGACY", "index.docker.io")
	for _, c := range v.Docker {
		got, err := Normalize(domain.Replace(c.In))
		if (err == nil) != c.Valid || got != domain.Replace(c.Normalized) {
			t.Errorf("%q: %q, %v, want %q", c.In, got, err, c.Normalized)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		whole, ref, name string // annotations, the option
		want             string // or part of the error
	}{
		{"docker.io/library/a:1", "1", "", "docker.io/library/a:1"},
		{"a", "", "b", "docker.io/library/a:latest"},
		{"", "example.com/a:2", "b", "example.com/a:2"},
		{"", "a:2", "", "docker.io/library/a:2"},
		{"", "1.0", "b", "docker.io/library/b:1.0"},
		{"", "1.0", "b:x", "docker.io/library/b:x"},
		{"", "", "b", "docker.io/library/b:latest"},
		{"", "1.0", "", "give it a name"},
		{"", "", "", "give it a name"},
		{"Not A Name", "", "b", "invalid argument"},
		{"", "bad tag", "b", "invalid argument"},
	} {
		l := &loader{}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Annotations: map[string]string{}}
		if c.whole != "" {
			d.Annotations[nameAnnotation] = c.whole
		}
		if c.ref != "" {
			d.Annotations[ocispec.AnnotationRefName] = c.ref
		}
		var err error
		if l.index, err = json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}}); err != nil {
			t.Fatal(err)
		}
		got, err := l.images(t.Context(), naming{name: c.name})
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if len(got) != 1 || got[0].name != c.want || got[0].target.Annotations != nil {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
