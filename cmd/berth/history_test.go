package main

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/client"
)

func TestHistoryOf(t *testing.T) {
	layer := func(name string) imagespec.Descriptor {
		return imagespec.Descriptor{Digest: digest.Digest("sha256:" + name), Size: 1}
	}
	for name, c := range map[string]struct {
		history []imagespec.History
		layers  []imagespec.Descriptor
		want    string // by:layer, the last first
	}{
		"nothing": {nil, nil, ""},
		"whole": {
			[]imagespec.History{{CreatedBy: "a"}, {CreatedBy: "b", EmptyLayer: true}, {CreatedBy: "c"}},
			[]imagespec.Descriptor{layer("1"), layer("2")}, "c:2 b: a:1",
		},
		"too short": {[]imagespec.History{{CreatedBy: "a"}}, []imagespec.Descriptor{layer("1"), layer("2")}, ":2 a:1"},
		"too long":  {[]imagespec.History{{CreatedBy: "a"}, {CreatedBy: "b"}}, []imagespec.Descriptor{layer("1")}, "b: a:1"},
	} {
		var got []string
		for _, s := range historyOf(&client.ImageConfig{Image: imagespec.Image{History: c.history}, Layers: c.layers}) {
			got = append(got, s.CreatedBy+":"+strings.TrimPrefix(s.Layer, "sha256:"))
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, want %s", name, text, c.want)
		}
	}
}
