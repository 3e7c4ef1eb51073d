package remotes

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/berthd/berth/internal/leak"
)

// TestTrace looks at what is told of requests: what was asked and what came of it, and
// nothing secret.
func TestTrace(t *testing.T) {
	leak.CheckProcess(t)
	data := []byte("content")
	store := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(data) })
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case user != "ali" || password != "very-secret":
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			http.Redirect(w, r, "http://"+store+"/signed/blob?signature=also-secret", http.StatusTemporaryRedirect)
		}
	})
	var mu sync.Mutex
	var lines []string
	access := Access{
		Credentials: as(Credential{Username: "ali", Password: "very-secret"}),
		Header:      http.Header{"X-Key": {"header-secret"}},
		Trace: func(line string) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, line)
		},
	}
	if _, err := fetch(t, open(t, quick(t, Config{}), host+"/a", access), describe("", data), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, open(t, quick(t, Config{Attempts: 1}), "127.0.0.1:1/a", access), describe("", data), 0); err == nil {
		t.Fatal("fetched from nowhere")
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"GET http://" + host + "/v2/a/blobs/sha256:", ": 401 Unauthorized, HTTP/1.1, after ", ": 307 Temporary Redirect", "GET http://" + store + "/signed/blob: 200 OK", "7 bytes of text/plain",
		"GET http://127.0.0.1:1/v2/a/blobs/", "connection refused",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "secret") || strings.Contains(strings.ToLower(all), "authorization") {
		t.Errorf("a secret is in\n%s", all)
	}
}
