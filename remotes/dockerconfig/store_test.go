package dockerconfig

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/remotes"
	"github.com/containerd/errdefs"
)

func store(t *testing.T, text string) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if text != "" {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// helper makes a program docker-credential-NAME of a shell's script.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestFile reads and writes a config.json.
func TestFile(t *testing.T) {
	leak.CheckProcess(t)
	text := `{"HttpHeaders":{"a":"b"},"auths":{"r.example":{"auth":"YTpiOmM="},"https://legacy.example/v1/":{"username":"u","password":"p"},
 "https://index.docker.io/v1/":{"identitytoken":"idt"},"bad.example":{"auth":"c2VjcmV0"},"worse.example":{"auth":7}}}`
	s := store(t, text)
	hub := remotes.Credential{IdentityToken: "idt"}
	for host, want := range map[string]remotes.Credential{
		"r.example": {Username: "a", Password: "b:c"}, "legacy.example": {Username: "u", Password: "p"}, "docker.io": hub, "registry-1.docker.io": hub, "none.example": {},
	} {
		if got, err := s.Credentials(t.Context(), remotes.CredentialRequest{Host: host}); err != nil || got != want {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	for _, host := range []string{"bad.example", "worse.example"} {
		if got, err := s.Get(t.Context(), host); !errdefs.IsInvalidArgument(err) || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), host) {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
	}
	mine := remotes.Credential{Username: "me", Password: "pass"}
	for _, host := range []string{"new.example:5000", "docker.io"} {
		if err := s.Put(t.Context(), host, mine); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), host); err != nil || got != mine {
			t.Errorf("%s: %+v, %v", host, got, err)
		}
		if err := s.Delete(t.Context(), host); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), host); err != nil || got != (remotes.Credential{}) {
			t.Errorf("%s is still there: %+v, %v", host, got, err)
		}
	}
	data, err := os.ReadFile(s.Path())
	if err != nil || !strings.Contains(string(data), `"HttpHeaders"`) {
		t.Errorf("the rest of the file: %s, %v", data, err)
	}
	if err := s.Put(t.Context(), "r.example", remotes.Credential{Username: "a:b"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a colon: %v", err)
	}
	empty := store(t, "")
	if err := empty.Put(t.Context(), "r.example", mine); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(empty.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for text, want := range map[string]string{
		"{\n\n x": "line 3", `{"credsStore":7}`: "credsStore", `{"credsStore":"../x"}`: "no name", `{"auths":7}`: "understood", strings.Repeat(" ", maxConfig+1): "larger",
	} {
		if _, err := store(t, text).Get(t.Context(), "r.example"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestHelper asks programs, good and bad ones.
func TestHelper(t *testing.T) {
	leak.CheckProcess(t)
	dir := t.TempDir()
	helper(t, "good", `cat > `+dir+`/$1; [ $1 = get ] && echo '{"ServerURL":"x","Username":"a","Secret":"b"}'; exit 0`)
	s := store(t, `{"credsStore":"good"}`)
	if got, err := s.Get(t.Context(), "docker.io"); err != nil || got != (remotes.Credential{Username: "a", Password: "b"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Put(t.Context(), "r.example", remotes.Credential{IdentityToken: "idt"}); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "r.example"); err != nil {
		t.Error(err)
	}
	for action, want := range map[string]string{"get": hubAddress, "store": `{"ServerURL":"r.example","Username":"\u003ctoken\u003e","Secret":"idt"}`, "erase": "r.example"} {
		if got, err := os.ReadFile(filepath.Join(dir, action)); err != nil || string(got) != want {
			t.Errorf("%s was told %q, %v", action, got, err)
		}
	}
	for script, want := range map[string]string{
		"echo '" + notFound + "'; exit 1":           "",
		"echo '{\"Username\":\"<token>\"}'":         "",
		"echo locked >&2; echo secret; exit 3":      "exit status 3: locked",
		"echo nonsense":                             "not understood",
		"exit 0":                                    "not understood",
		"yes":                                       "deadline exceeded",
		"sleep 2 & exec sleep 100":                  "deadline exceeded",
		"head -c 100000 /dev/zero; echo x; exit 0 ": "not understood",
	} {
		helper(t, "some", script)
		s := store(t, `{"credHelpers":{"r.example":"some"},"credsStore":"good"}`)
		s.timeout = 500 * time.Millisecond
		begin := time.Now()
		got, err := s.Get(t.Context(), "r.example")
		if want == "" && (err != nil || got != (remotes.Credential{})) || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %+v, %v", script, got, err)
		}
		if want == "deadline exceeded" && !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 20*time.Second {
			t.Errorf("%s: %v after %s", script, err, time.Since(begin))
		}
	}
	if _, err := store(t, `{"credsStore":"not-there"}`).Get(t.Context(), "r.example"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("%v", err)
	}
}

// TestLimited takes what a helper says to no end, and keeps little.
func TestLimited(t *testing.T) {
	var l limited
	if n, err := io.Copy(&l, io.LimitReader(zeros{}, 10<<20)); n != 10<<20 || err != nil || l.kept.Len() != maxOutput || !l.more {
		t.Errorf("%d bytes taken, %d kept, %v", n, l.kept.Len(), err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
