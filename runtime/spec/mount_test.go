package spec

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func bindMount(src, dst string, options ...string) *specs.Mount {
	return &specs.Mount{Type: "bind", Source: src, Destination: dst, Options: append([]string{"rbind", "rprivate"}, options...)}
}

func TestParseVolume(t *testing.T) {
	for text, want := range map[string]*specs.Mount{ // nil: InvalidArgument
		"/a:/b":       bindMount("/a", "/b", "rw"),
		"/a:/b:ro":    bindMount("/a", "/b", "ro"),
		"/a:/b:rw":    bindMount("/a", "/b", "rw"),
		"/a/../c:/b/": bindMount("/c", "/b", "rw"),
		"/a":          nil,
		"/a:b":        nil,
		"a:/b":        nil,
		"/a:/b:rx":    nil,
		"/a:/b:ro:":   nil,
		"/a:/":        nil,
		"/a:":         nil,
		"":            nil,
	} {
		got, err := ParseVolume(text)
		checkMount(t, text, want, got, err)
	}
}

func TestParseMount(t *testing.T) {
	for text, want := range map[string]*specs.Mount{ // nil: InvalidArgument
		"type=bind,src=/a,dst=/b":                     bindMount("/a", "/b", "rw"),
		"src=/a,dst=/b,ro":                            bindMount("/a", "/b", "ro"),
		"source=/a,target=/b,readonly=true":           bindMount("/a", "/b", "ro"),
		"source=/a,destination=/b,ro=false":           bindMount("/a", "/b", "rw"),
		`"src=/a,b",dst=/b`:                           bindMount("/a,b", "/b", "rw"),
		"src=/a,dst=/b,options=nosuid,options=noexec": bindMount("/a", "/b", "rw", "nosuid", "noexec"),
		"type=tmpfs,dst=/t":                           {Type: "tmpfs", Source: "tmpfs", Destination: "/t", Options: []string{"nosuid", "nodev", "rw"}},
		"type=tmpfs,dst=/t,size=1m,mode=1777,ro":      {Type: "tmpfs", Source: "tmpfs", Destination: "/t", Options: []string{"nosuid", "nodev", "ro", "size=1048576", "mode=1777"}},
		"type=tmpfs,dst=/t,src=/a":                    nil,
		"type=tmpfs,dst=/t,size=big":                  nil,
		"type=volume,src=a,dst=/b":                    nil,
		"src=/a,dst=/b,size=1m":                       nil,
		"src=/a":                                      nil,
		"dst=/b":                                      nil,
		"src=a,dst=/b":                                nil,
		"src=/a,dst=b":                                nil,
		"src=/a,dst=/":                                nil,
		"src=/a,dst=/b,ro=maybe":                      nil,
		"src=/a,dst=/b,colour=red":                    nil,
		"src,dst=/b":                                  nil,
		`"src=/a`:                                     nil,
		"":                                            nil,
	} {
		got, err := ParseMount(text)
		checkMount(t, text, want, got, err)
	}
}

func checkMount(t *testing.T, text string, want *specs.Mount, got specs.Mount, err error) {
	t.Helper()
	if want == nil {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, %v; want InvalidArgument", text, got, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%q: %v", text, err)
		return
	}
	if diff := cmp.Diff(*want, got); diff != "" {
		t.Errorf("%q (-want +got):\n%s", text, diff)
	}
}

func TestMountReplacesDefault(t *testing.T) {
	own := specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/dev/shm/", Options: []string{"size=1g"}}
	s := build(t, Options{Mounts: []specs.Mount{own}}, imagespec.ImageConfig{}, testHost())
	count := 0
	for _, m := range s.Mounts {
		if m.Destination == "/dev/shm" || m.Destination == "/dev/shm/" {
			count++
			if len(m.Options) != 1 {
				t.Errorf("the default is left: %v", m)
			}
		}
	}
	if count != 1 {
		t.Errorf("%d mounts at /dev/shm", count)
	}
}
