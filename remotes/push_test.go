package remotes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/testregistry"
	"github.com/containerd/errdefs"
)

// uploads answers the requests of an upload up to its PUT, which put answers.
func uploads(location func(r *http.Request) string, put http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(404)
		case http.MethodPost:
			w.Header().Set("Location", location(r))
			w.WriteHeader(202)
		case http.MethodPut:
			put(w, r)
		}
	}
}

func session(*http.Request) string { return "/v2/a/blobs/uploads/1?_state=x" }

// TestPushHostile is of registries that won't take a blob.
func TestPushHostile(t *testing.T) {
	leak.CheckProcess(t)
	data := bytes.Repeat([]byte("x"), 8<<20)
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); w.WriteHeader(code) }
	}
	// A server that has not read a body doesn't see its connection go.
	release := make(chan struct{})
	var other atomic.Int32
	elsewhere := serve(t, func(http.ResponseWriter, *http.Request) { other.Add(1) })
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		open   func() (io.ReadCloser, error)
		kind   func(error) bool
		want   string
	}{
		"another host": {uploads(func(*http.Request) string { return "http://" + elsewhere + "/up" }, status(201)), opener(data), errdefs.IsUnavailable, "different host"},
		"forbidden":    {uploads(session, status(403)), opener(data), errdefs.IsPermissionDenied, "403"},
		"broken":       {uploads(session, status(500)), opener(data), errdefs.IsUnavailable, "500"},
		"other digest": {uploads(session, status(400)), opener(data), errdefs.IsInvalidArgument, "400"},
		"takes none":   {uploads(session, func(http.ResponseWriter, *http.Request) { <-release }), opener(data), errdefs.IsUnavailable, "nothing came"},
		"no answer": {uploads(session, func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			hang(nil, r)
		}), opener(data), errdefs.IsUnavailable, "timeout awaiting"},
		"no uploads": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(map[string]int{"HEAD": 404, "POST": 405}[r.Method])
		}, opener(data), errdefs.IsNotImplemented, "405"},
		"too short": {uploads(session, status(201)), opener(data[1:]), errdefs.IsUnavailable, "ContentLength"},
		"can't read": {uploads(session, status(201)), func() (io.ReadCloser, error) {
			return io.NopCloser(iotest.ErrReader(errors.New("the disk is broken"))), nil
		}, nil, "the disk is broken"},
		"can't open":   {uploads(session, status(201)), func() (io.ReadCloser, error) { return nil, errors.New("the disk is gone") }, nil, "the disk is gone"},
		"wrong answer": {uploads(session, status(200)), opener(data), errdefs.IsUnavailable, "200"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := serve(t, c.answer)
			if name == "takes none" {
				t.Cleanup(func() { close(release) })
			}
			client := quick(t, Config{StallTimeout: 300 * time.Millisecond, HeaderTimeout: 300 * time.Millisecond, Attempts: 2})
			how, err := open(t, client, host+"/a", Access{}).PushBlob(t.Context(), describe("", data), nil, c.open)
			if err == nil || c.kind != nil && !c.kind(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), host+"/a") {
				t.Errorf("%q, %v; want %q", how, err, c.want)
			}
		})
	}
	t.Cleanup(func() {
		if n := other.Load(); n > 0 {
			t.Errorf("the other host was spoken to %d times", n)
		}
	})
}

// TestPushAgain uploads from the start after a connection broke, and finds what
// arrived though the answer did not.
func TestPushAgain(t *testing.T) {
	leak.CheckProcess(t)
	data := bytes.Repeat([]byte("x"), 1<<20)
	var puts atomic.Int32
	host := serve(t, uploads(session, func(w http.ResponseWriter, r *http.Request) {
		if puts.Add(1) == 1 {
			io.CopyN(io.Discard, r.Body, 1000)
			reset(w, r)
			return
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes came: %v", len(got), err)
		}
		w.WriteHeader(201)
	}))
	var opened int
	how, err := open(t, quick(t, Config{}), host+"/a", Access{}).PushBlob(t.Context(), describe("", data), nil, func() (io.ReadCloser, error) {
		opened++
		return opener(data)()
	})
	if err != nil || how != Uploaded || opened != 2 {
		t.Errorf("%s, %v, opened %d times", how, err, opened)
	}
	var there atomic.Bool
	upload := uploads(session, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		there.Store(true)
		reset(w, r)
	})
	host = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && there.Load() {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			return
		}
		upload(w, r)
	})
	if how, err := open(t, quick(t, Config{}), host+"/a", Access{}).PushBlob(t.Context(), describe("", data), nil, opener(data)); err != nil || how != Existed {
		t.Errorf("%s, %v", how, err)
	}
}

// TestPushWrong refuses what can't be right before anybody is asked.
func TestPushWrong(t *testing.T) {
	certs := t.TempDir()
	write(t, filepath.Join(certs, "r.example", hostsFile), "server='http://127.0.0.1:1'\ncapabilities=['pull']\n")
	r := open(t, quick(t, Config{HostsDir: certs}), "r.example/a", Access{})
	_, desc, body := image(t, "seed", 10, nil)
	if err := r.PushManifest(t.Context(), desc, body, ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "capability push") {
		t.Errorf("nobody to push to: %v", err)
	}
	for name, err := range map[string]error{
		"body": r.PushManifest(t.Context(), desc, body[1:], ""),
		"tag":  r.PushManifest(t.Context(), desc, body, "a/b"),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := desc
	bad.Digest = "sha256:../../x"
	if _, err := r.Blob(t.Context(), bad, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("digest: %v", err)
	}
	if _, err := r.Blob(t.Context(), desc, desc.Size+1); !errdefs.IsOutOfRange(err) {
		t.Errorf("offset: %v", err)
	}
	bad = desc
	bad.Size = MaxManifest + 1
	if _, err := r.Manifest(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("size: %v", err)
	}
}

// TestReferences is of names as clients write them. The cases are those that other
// clients were seen to agree on.
func TestReferences(t *testing.T) {
	sum := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"alpine":                         "docker.io/library/alpine:latest",
		"docker.io/alpine:3":             "docker.io/library/alpine:3",
		"index.docker.io/library/alpine": "docker.io/library/alpine:latest",
		"foo/bar":                        "docker.io/foo/bar:latest",
		"localhost/foo":                  "localhost/foo:latest",
		"foo.bar:80/baz/qux:tag":         "foo.bar:80/baz/qux:tag",
		"[::1]:5000/a":                   "[::1]:5000/a:latest",
		"alpine@" + sum:                  "docker.io/library/alpine@" + sum,
		"alpine:3@" + sum:                "docker.io/library/alpine@" + sum,
		"":                               "", "A": "", "a//b": "", "a:": "", "a@sha256:1": "", "https://a/b": "", "../a": "", "a b": "", strings.Repeat("a", 300): "",
	} {
		ref, err := ParseReference(text)
		if got := ref.String(); want != "" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
		if want == "" && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", text, ref, err)
		}
	}
}

// TestRetryAfter reads the header of that name.
func TestRetryAfter(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": -1, "x": -1, "-1": -1, "1.5": -1, "99999999999999": -1, "0": 0, "120": 2 * time.Minute,
		"Wed, 02 Jan 2030 03:04:15 GMT": 10 * time.Second, "Wed, 02 Jan 2030 03:04:00 GMT": 0,
	} {
		got, ok := retryAfter(text, now)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %s, %v", text, got, ok)
		}
	}
	p := policy{attempts: 100, first: time.Second, longest: 20 * time.Second}
	for attempt := range 99 {
		if d := p.pause(attempt); d < min(time.Second<<min(attempt, 10), 20*time.Second)/2 || d > 20*time.Second {
			t.Errorf("pause %d is %s", attempt, d)
		}
	}
}

// FuzzContentRange reads what part a server says it sends.
func FuzzContentRange(f *testing.F) {
	for _, seed := range []string{"bytes 0-9/10", "bytes 5-9/*", "bytes */10", "bytes 9-5/10", "bytes 0-99999999999999999999/1", "", "bytes -1-2/3"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, size, err := contentRange(text)
		if err == nil && (first < 0 || last < first || size >= 0 && last >= size || size < -1) {
			t.Fatalf("%q: %d-%d/%d", text, first, last, size)
		}
	})
}

// FuzzManifest tells what a body is that a server sent.
func FuzzManifest(f *testing.F) {
	f.Add("application/json", []byte(`{"schemaVersion":2,"config":{},"mediaType":"x"}`))
	f.Add("text/html;;;", []byte("<html>"))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		mediaType, err := mediaTypeOf(header, body)
		if (mediaType == "") == (err == nil) {
			t.Fatalf("%q, %v", mediaType, err)
		}
		if err == nil && !json.Valid(body) {
			t.Fatalf("%q is a %s", body, mediaType)
		}
	})
}

// TestKeys says which key file is wrong, and takes a changed one at once.
func TestKeys(t *testing.T) {
	leak.CheckProcess(t)
	made, others := testregistry.MakeKeys(t, t.TempDir()), testregistry.MakeKeys(t, t.TempDir())
	host := testregistry.Start(t, false, &made)
	certs := t.TempDir()
	at := filepath.Join(certs, host)
	client := quick(t, Config{HostsDir: certs})
	for text, want := range map[string]string{
		"ca = 'none.pem'": "none.pem: no such file",
		"ca = 'text.pem'": "text.pem has no certificate",
		fmt.Sprintf("client = [['%s', '%s']]", made.Cert, others.Key): "certificate " + made.Cert,
	} {
		write(t, filepath.Join(at, "text.pem"), "text")
		write(t, filepath.Join(at, hostsFile), text)
		if _, err := client.Open(refer(t, host+"/a"), Access{}); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), host) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := os.Remove(filepath.Join(at, hostsFile)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ca   string
		kind func(error) bool
	}{{others.CA, errdefs.IsFailedPrecondition}, {made.CA, errdefs.IsNotFound}, {others.CA, errdefs.IsFailedPrecondition}} {
		data, err := os.ReadFile(c.ca)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(at, "ca.crt"), string(data))
		if _, err := open(t, client, host+"/a", Access{}).Resolve(t.Context()); !c.kind(err) {
			t.Errorf("%s: %v", c.ca, err)
		}
	}
}

// TestScheme is of what the caller says where the directory says nothing.
func TestScheme(t *testing.T) {
	certs := t.TempDir()
	write(t, filepath.Join(certs, "known.example", hostsFile), "server='https://known.example'\nskip_verify=true\n")
	client := quick(t, Config{HostsDir: certs})
	for _, c := range []struct{ ref, scheme, want string }{
		{"r.example/a", "", "https"}, {"r.example/a", "http", "http"}, {"localhost:5000/a", "", "http"}, {"localhost:5000/a", "https", "https"},
		{"known.example/a", "http", "https"}, {"alpine", "", "https"},
	} {
		r, err := client.Open(refer(t, c.ref), Access{DefaultScheme: c.scheme})
		if err != nil || len(r.Hosts()) != 1 || r.Hosts()[0].URL.Scheme != c.want {
			t.Errorf("%+v: %+v, %v", c, r.Hosts(), err)
		}
	}
	if _, err := client.Open(refer(t, "a"), Access{DefaultScheme: "ftp"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
	if _, err := client.Open(Reference{}, Access{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

// TestFlat fetches and pushes much more than it may keep.
func TestFlat(t *testing.T) {
	leak.CheckProcess(t)
	const size = 128 << 20
	block := make([]byte, 1<<20)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet:
			w.Header().Set("Content-Length", fmt.Sprint(size))
			for range size / len(block) {
				w.Write(block)
			}
		default:
			uploads(session, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); w.WriteHeader(201) })(w, r)
		}
	})
	r := open(t, quick(t, Config{}), host+"/a", Access{})
	desc := describe("", nil)
	desc.Size = size
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b, err := r.Blob(t.Context(), desc, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, b, make([]byte, 64<<10)); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	b.Close()
	zero := func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(nothing{}, size)), nil }
	if how, err := r.PushBlob(t.Context(), desc, nil, zero); err != nil || how != Uploaded {
		t.Errorf("%s, %v", how, err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes of memory for %d fetched and pushed", n, size)
	}
}

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { clear(p); return len(p), nil }
