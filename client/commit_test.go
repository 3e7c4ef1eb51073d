package client

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestChanged: what this version does not know of an image's configuration stays.
func TestChanged(t *testing.T) {
	base := func() *ImageConfig {
		c := &ImageConfig{raw: json.RawMessage(`{"config":{"Cmd":["old"],"User":"u","Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"]}}`)}
		if err := json.Unmarshal(c.raw, &c.Image); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for name, c := range map[string]struct {
		change func(*imagespec.ImageConfig) error
		want   string
	}{
		"nothing": {nil, `{"Cmd":["old"],"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"],"User":"u"}`},
		"set":     {func(c *imagespec.ImageConfig) error { c.Cmd = []string{"new"}; return nil }, `{"Cmd":["new"],"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"],"User":"u"}`},
		"dropped": {func(c *imagespec.ImageConfig) error { c.Cmd, c.User = nil, ""; return nil }, `{"Healthcheck":{"Test":["CMD","x"]},"OnBuild":["RUN y"]}`},
	} {
		got, err := changed(base(), c.change)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(got)
		if err != nil || string(text) != c.want {
			t.Errorf("%s: %s, want %s, %v", name, text, c.want, err)
		}
	}
	stop := errors.New("stop")
	if _, err := changed(base(), func(*imagespec.ImageConfig) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func TestImageName(t *testing.T) {
	for name, want := range map[string]string{
		"a": "docker.io/library/a:latest", "me/a:1": "docker.io/me/a:1", "host:5000/a": "host:5000/a:latest",
		"": "", "A": "", "a b": "", "a@sha256:0000000000000000000000000000000000000000000000000000000000000000": "",
	} {
		got, err := imageName(name)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %q, %v", name, got, err)
			}
			continue
		}
		if got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
}
