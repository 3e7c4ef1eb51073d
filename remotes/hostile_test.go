package remotes

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serve runs a server that answers as the test says, and returns its host.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// cut sends part of a body and closes the connection.
func cut(w http.ResponseWriter, status, length int, header http.Header, part []byte) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(buf, "HTTP/1.1 %d X\r\nContent-Length: %d\r\n", status, length)
	header.Write(buf)
	buf.WriteString("\r\n")
	buf.Write(part)
	buf.Flush()
	conn.Close()
}

func rangeStart(r *http.Request) int {
	text, _ := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	first, _, _ := strings.Cut(text, "-")
	at, _ := strconv.Atoi(first)
	return at
}

// TestBlobResumed breaks the connection again and again.
func TestBlobResumed(t *testing.T) {
	leak.CheckProcess(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	for name, ranges := range map[string]bool{"ranges": true, "no ranges": false} {
		for _, offset := range []int{0, 7, 1 << 20} {
			var asked atomic.Int32
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				from, status, header := 0, http.StatusOK, http.Header{}
				if at := rangeStart(r); ranges && at > 0 {
					from, status = at, http.StatusPartialContent
					header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
				}
				if n := int(asked.Add(1)); n <= 3 {
					cut(w, status, len(data)-from, header, data[from:max(from, offset+n*100_001)])
					return
				}
				w.Header()["Content-Range"] = header["Content-Range"]
				w.WriteHeader(status)
				w.Write(data[from:])
			})
			got, err := fetch(t, open(t, quick(t, Config{}), host+"/a", Access{}), describe("", data), int64(offset))
			if err != nil || !bytes.Equal(got, data[offset:]) {
				t.Errorf("%s from %d: %d of %d bytes, %v", name, offset, len(got), len(data)-offset, err)
			}
			if n := asked.Load(); n != 4 {
				t.Errorf("%s from %d: asked %d times", name, offset, n)
			}
		}
	}
}

// TestBlobNextHost goes on at the registry where a mirror gives up.
func TestBlobNextHost(t *testing.T) {
	leak.CheckProcess(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	bad := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if rangeStart(r) > 0 {
			http.Error(w, "", http.StatusInternalServerError)
			return
		}
		cut(w, 200, len(data), nil, data[:5000])
	})
	var from atomic.Int32
	good := serve(t, func(w http.ResponseWriter, r *http.Request) {
		from.Store(int32(rangeStart(r)))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	certs := t.TempDir()
	write(t, certs+"/r.example/"+hostsFile, "server='http://"+good+"'\n[host.'http://"+bad+"']\n")
	got, err := fetch(t, open(t, quick(t, Config{HostsDir: certs}), "r.example/a", Access{}), describe("", data), 0)
	if err != nil || !bytes.Equal(got, data) || from.Load() != 5000 {
		t.Errorf("%d bytes, the registry was asked from %d: %v", len(got), from.Load(), err)
	}
}

// TestBlobLies is of servers that send something else than they were asked for.
func TestBlobLies(t *testing.T) {
	leak.CheckProcess(t)
	data := []byte(strings.Repeat("x", 5000))
	long := append(data, 'y')
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		offset int64
		kind   func(error) bool
		want   string
	}{
		"longer":      {whole(long), 0, errdefs.IsDataLoss, "was to have 5000"},
		"shorter":     {whole(data[:4000]), 0, errdefs.IsDataLoss, "was to have 5000"},
		"endless":     {endless, 0, errdefs.IsDataLoss, "more than the 5000 bytes"},
		"ends early":  {func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); w.Write(data[:4000]) }, 0, errdefs.IsUnavailable, "unexpected EOF"},
		"other part":  {part("bytes 9-4999/5000"), 10, errdefs.IsDataLoss, "sends the part"},
		"more part":   {part("bytes 10-5000/5001"), 10, errdefs.IsDataLoss, "sends the part"},
		"no part":     {part(""), 10, errdefs.IsDataLoss, "sends the part"},
		"unasked":     {part("bytes 0-4999/5000"), 0, errdefs.IsDataLoss, "a part where all"},
		"range error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(416) }, 10, errdefs.IsDataLoss, "less than 11 bytes"},
		"no answer":   {hang, 0, errdefs.IsUnavailable, "timeout awaiting response headers"},
		"stalls": {func(w http.ResponseWriter, r *http.Request) {
			w.Write(data[:10])
			w.(http.Flusher).Flush()
			hang(w, r)
		}, 0, errdefs.IsUnavailable, "nothing came for too long"},
		"drips": {drip, 0, errdefs.IsUnavailable, "nothing came for too long"},
		"headers": {func(w http.ResponseWriter, _ *http.Request) {
			for i := range 300 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("h", 1000))
			}
		}, 0, errdefs.IsUnavailable, "response headers exceeded"},
		"no HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Write([]byte("\x00\x01\x02 SSH-2.0 ?secret \r\n\r\n"))
			conn.Close()
		}, 0, errdefs.IsUnavailable, "malformed HTTP"},
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not\u0000 for\nyou"}]}`)
		}, 0, errdefs.IsPermissionDenied, "denied: not for you"},
		"loop": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, 0, errdefs.IsPermissionDenied, "more than 10"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x?signature=secret", http.StatusTemporaryRedirect)
		}, 0, errdefs.IsUnavailable, "connection refused"},
		"scheme": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, 0, errdefs.IsPermissionDenied, "no web server"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := serve(t, c.answer)
			client := quick(t, Config{StallTimeout: 100 * time.Millisecond, HeaderTimeout: 100 * time.Millisecond, Attempts: 2})
			desc := describe("", data)
			got, err := fetch(t, open(t, client, host+"/a", Access{}), desc, c.offset)
			if !c.kind(err) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if !strings.Contains(err.Error(), host+"/a") || !strings.Contains(err.Error(), desc.Digest.String()) || strings.Contains(err.Error(), "secret") || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("the text of %v", err)
			}
			if int64(len(got)) > desc.Size-c.offset {
				t.Errorf("%d bytes were handed out", len(got))
			}
		})
	}
}

func whole(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data)
	}
}

func endless(w http.ResponseWriter, _ *http.Request) {
	for block := []byte(strings.Repeat("x", 1<<16)); ; {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func drip(w http.ResponseWriter, r *http.Request) {
	for range 1000 {
		w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

func part(header string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if header != "" {
			w.Header().Set("Content-Range", header)
		}
		w.WriteHeader(http.StatusPartialContent)
	}
}

// TestManifestLies is of answers about manifests.
func TestManifestLies(t *testing.T) {
	leak.CheckProcess(t)
	_, desc, body := image(t, "seed", 10, nil)
	answer := func(mediaType, dgst string, data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.Header()["Docker-Content-Digest"] = []string{dgst}
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			w.Write(data)
		}
	}
	no := func(status int, next http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(status)
				return
			}
			next(w, r)
		}
	}
	other := describe("", []byte("other")).Digest.String()
	right := answer(desc.MediaType, desc.Digest.String(), body)
	both := []byte(`{"schemaVersion":2,"manifests":[],"config":{}}`)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   func(error) bool // nil: it has to work
		want   string
	}{
		"right":            {right, nil, ""},
		"no HEAD":          {no(405, right), nil, ""},
		"bad HEAD":         {no(400, right), nil, ""},
		"no digest":        {answer(desc.MediaType, "", body), nil, ""},
		"digest is none":   {answer(desc.MediaType, "sha256:zz", body), nil, ""},
		"text/plain":       {answer("text/plain; charset=utf-8", desc.Digest.String(), body), nil, ""},
		"lying digest":     {no(405, answer(desc.MediaType, other, body)), errdefs.IsDataLoss, "has the digest " + desc.Digest.String()},
		"a page":           {answer("text/html", "", []byte("<html>Welcome to the hotel's WiFi")), errdefs.IsDataLoss, "no manifest"},
		"another type":     {no(405, answer(ocispec.MediaTypeImageIndex, "", body)), errdefs.IsDataLoss, "calls itself"},
		"two in one":       {no(405, answer(ocispec.MediaTypeImageIndex, "", both)), errdefs.IsDataLoss, "in one"},
		"nothing":          {no(405, answer("application/json", "", []byte("{}"))), errdefs.IsDataLoss, "no manifest"},
		"schema 1":         {no(405, answer("application/json", "", []byte(`{"schemaVersion":1}`))), errdefs.IsNotImplemented, "schema 1"},
		"endless":          {no(405, endless), errdefs.IsDataLoss, "longer than 4194304"},
		"says it is large": {func(w http.ResponseWriter, r *http.Request) { large(w, desc) }, errdefs.IsDataLoss, "5000000"},
		"not there":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, errdefs.IsNotFound, "404"},
		"HEAD not there":   {no(404, right), errdefs.IsNotFound, "404"},
		"breaks off":       {no(405, func(w http.ResponseWriter, _ *http.Request) { cut(w, 200, 1000, nil, body[:10]) }), errdefs.IsUnavailable, "unexpected EOF"},
		"drips":            {no(405, drip), errdefs.IsUnavailable, "nothing came"},
		"never ends":       {no(405, slow), errdefs.IsUnavailable, "within the time allowed"},
		"always broken":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, errdefs.IsUnavailable, "503"},
		"wait for an hour": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, errdefs.IsUnavailable, "limits how often"},
		"GET wait for long": {no(405, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}), errdefs.IsUnavailable, "after 3600"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := serve(t, c.answer)
			client := quick(t, Config{StallTimeout: 200 * time.Millisecond, TotalTimeout: 2 * time.Second, Attempts: 3})
			got, err := open(t, client, host+"/a:b", Access{}).Resolve(t.Context())
			if c.kind == nil {
				if err != nil || got.Digest != desc.Digest || got.Size != desc.Size || got.MediaType != desc.MediaType {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if !c.kind(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), host+"/a:b") {
				t.Errorf("got %+v, %v, want %q", got, err, c.want)
			}
		})
	}
	t.Run("another digest", func(t *testing.T) {
		host := serve(t, answer(desc.MediaType, other, body))
		if _, err := open(t, quick(t, Config{}), host+"/a@"+desc.Digest.String(), Access{}).Resolve(t.Context()); !errdefs.IsDataLoss(err) {
			t.Errorf("%v", err)
		}
		wrong := serve(t, answer(desc.MediaType, desc.Digest.String(), append([]byte(" "), body...)))
		for _, host := range []string{host, wrong} {
			_, err := open(t, quick(t, Config{}), host+"/a", Access{}).Manifest(t.Context(), desc)
			if host == wrong && !errdefs.IsDataLoss(err) || host != wrong && err != nil {
				t.Errorf("%v", err)
			}
		}
	})
}

func large(w http.ResponseWriter, desc ocispec.Descriptor) {
	w.Header().Set("Content-Type", desc.MediaType)
	w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	w.Header().Set("Content-Length", "5000000")
}

// slow sends enough not to stall, for ever.
func slow(w http.ResponseWriter, r *http.Request) {
	for r.Context().Err() == nil {
		w.Write(bytes.Repeat([]byte(" "), 2000))
		w.(http.Flusher).Flush()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.Context().Done():
		}
	}
}

// TestRetry counts tries and looks at the pauses between them.
func TestRetry(t *testing.T) {
	leak.CheckProcess(t)
	_, desc, body := image(t, "seed", 10, nil)
	for name, c := range map[string]struct {
		fail  int
		with  http.HandlerFunc
		least time.Duration
		tries int
		ok    bool
	}{
		"passing": {2, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 0, 3, true},
		"broken":  {2, func(w http.ResponseWriter, _ *http.Request) { cut(w, 200, 10, nil, nil) }, 0, 3, true},
		"reset":   {2, reset, 0, 3, true},
		"patience": {1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
		}, time.Second, 2, true},
		"too much patience": {1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}, 0, 1, false},
		"for ever":    {100, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, 0, 5, false},
		"not passing": {100, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, 0, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if int(tries.Add(1)) <= c.fail {
					c.with(w, r)
					return
				}
				w.Header().Set("Content-Type", desc.MediaType)
				w.Write(body)
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			begin := time.Now()
			got, _, err := open(t, quick(t, Config{LongestPause: 2 * time.Second}), host+"/a:b", Access{}).Get(ctx)
			if c.ok != (err == nil) || c.ok && got.Digest != desc.Digest {
				t.Errorf("%v, %v", got, err)
			}
			if d := time.Since(begin); d < c.least || int(tries.Load()) != c.tries || ctx.Err() != nil {
				t.Errorf("%d tries in %s", tries.Load(), d)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		host := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := open(t, quick(t, Config{FirstPause: time.Hour, LongestPause: time.Hour}), host+"/a:b", Access{}).Resolve(ctx)
		if err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) || errdefs.IsUnavailable(err) {
			t.Errorf("%v", err)
		}
	})
}

func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, _ := w.(http.Hijacker).Hijack()
	conn.Close()
}

// TestBounded looks that no more transfers than allowed are under way with a host,
// and that manifests are still to be had when all of those are.
func TestBounded(t *testing.T) {
	leak.CheckProcess(t)
	_, desc, manifest := image(t, "seed", 10, nil)
	data := bytes.Repeat([]byte("x"), 1<<20)
	var now, most atomic.Int32
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", desc.MediaType)
			w.Write(manifest)
			return
		}
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		w.Write(data)
	})
	r := open(t, quick(t, Config{MaxBlobs: 2}), host+"/a:b", Access{})
	var held []io.Closer
	for range 2 {
		b, err := r.Blob(t.Context(), describe("", data), 0)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, b)
	}
	if _, _, err := r.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Blob(ctx, describe("", data), 0); err == nil || ctx.Err() == nil {
		t.Errorf("a third blob: %v", err)
	}
	for _, b := range held {
		b.Close()
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if got, err := fetch(t, r, describe("", data), 0); err != nil || len(got) != len(data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
	// A handler may still be on its way out when the next transfer begins.
	if n := most.Load(); n > 4 {
		t.Errorf("%d transfers at once", n)
	}
}
