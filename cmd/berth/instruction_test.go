package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestInstruct(t *testing.T) {
	change, err := instruct([]string{
		`CMD ["a", "b c"]`, `entrypoint run this`, `ENV A=new B="x y" C=a\ b`, `ENV D it is one`, `LABEL a.b='c "d"'`,
		`EXPOSE 80 53/udp`, `VOLUME ["/v"]`, `VOLUME /w /x`, `USER 1000:5`, `WORKDIR /srv`, `STOPSIGNAL SIGINT`,
	})
	if err != nil {
		t.Fatal(err)
	}
	got := imagespec.ImageConfig{Env: []string{"A=old", "AB=kept"}, Cmd: []string{"old"}}
	if err := change(&got); err != nil {
		t.Fatal(err)
	}
	want := imagespec.ImageConfig{
		Cmd: []string{"a", "b c"}, Entrypoint: []string{"/bin/sh", "-c", "run this"},
		Env:    []string{"A=new", "AB=kept", "B=x y", "C=a b", "D=it is one"},
		Labels: map[string]string{"a.b": `c "d"`}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
		Volumes: map[string]struct{}{"/v": {}, "/w": {}, "/x": {}}, User: "1000:5", WorkingDir: "/srv", StopSignal: "SIGINT",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, line := range []string{
		"", "RUN ls", "CMD", "CMD [", `CMD ["a"`, "CMD [1]", "ENV =x", `ENV A="x`, "ENV A=b c", "WORKDIR here", "LABEL =", "VOLUME [a]",
	} {
		if _, err := instruct([]string{line}); err == nil {
			t.Errorf("%q is taken", line)
		}
	}
}
