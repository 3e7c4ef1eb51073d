package remotes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/internal/leak"
	"github.com/berthd/berth/internal/testregistry"
	"github.com/containerd/errdefs"
)

// realmServer gives out tokens that are numbered, and notes what it was asked.
type realmServer struct {
	mu     sync.Mutex
	asked  []string // method, form, authorization
	issued int
}

func (s *realmServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.Form.Encode()+" "+r.Header.Get("Authorization")+r.Header.Get("X-Secret"))
	s.issued++
	json.NewEncoder(w).Encode(map[string]any{"token": fmt.Sprint("token-", s.issued), "access_token": fmt.Sprint("token-", s.issued)})
}

func (s *realmServer) current() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint("Bearer token-", s.issued)
}

func (s *realmServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

func as(c Credential) Credentials {
	return func(context.Context, CredentialRequest) (Credential, error) { return c, nil }
}

const basicAuth = "Basic YWxpOm9wZW46c2VzYW1l" // of testUser and testPassword

// TestTokens fetches tokens, by GET with a password or nobody's, by POST with an
// identity token, and anew when one is no longer good. The realm is on another host
// of this machine's, which is a private network.
func TestTokens(t *testing.T) {
	leak.CheckProcess(t)
	data := []byte("the blob")
	for name, c := range map[string]struct {
		credentials Credentials
		want        string // the question for a token
	}{
		"nobody":         {nil, "GET scope=repository%3Aa%2Fb%3Apull&service=the+service "},
		"password":       {as(Credential{Username: testUser, Password: testPassword}), "GET scope=repository%3Aa%2Fb%3Apull&service=the+service " + basicAuth},
		"identity token": {as(Credential{IdentityToken: "idt"}), "POST client_id=berth&grant_type=refresh_token&refresh_token=idt&scope=repository%3Aa%2Fb%3Apull&service=the+service "},
	} {
		for _, name2 := range []string{"127.0.0.1", "localhost"} {
			t.Run(name+" at "+name2, func(t *testing.T) {
				realm := &realmServer{}
				tokens := httptest.NewServer(realm)
				t.Cleanup(tokens.Close)
				var revoked atomic.Bool
				host := serve(t, func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Authorization") != realm.current() || revoked.Swap(false) {
						w.Header().Add("WWW-Authenticate", "Negotiate")
						w.Header().Add("WWW-Authenticate", `Basic realm="other", Bearer Realm="`+tokens.URL+`/t?x=1",service="the service",scope="repository:a/b:pull"`)
						w.WriteHeader(401)
						return
					}
					w.Write(data)
				})
				host = strings.Replace(host, "127.0.0.1", name2, 1)
				access := Access{Credentials: c.credentials, Header: http.Header{"X-Secret": {"for the registry"}}}
				r := open(t, quick(t, Config{}), host+"/a/b", access)
				for range 2 {
					if got, err := fetch(t, r, describe("", data), 0); err != nil || !bytes.Equal(got, data) {
						t.Fatalf("%q, %v", got, err)
					}
				}
				want := strings.Replace(c.want, "=the+service", "=the+service&x=1", 1)
				if got := realm.questions(); len(got) != 1 || got[0] != want {
					t.Errorf("asked %q\nwant  %q", got, want)
				}
				realm.mu.Lock()
				realm.issued++ // the token is another now
				realm.mu.Unlock()
				if got, err := fetch(t, r, describe("", data), 0); err != nil || !bytes.Equal(got, data) {
					t.Errorf("after the token had run out: %q, %v", got, err)
				}
			})
		}
	}
}

// TestRegistryToken shows a token that somebody has already.
func TestRegistryToken(t *testing.T) {
	leak.CheckProcess(t)
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer mine" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://127.0.0.1:1/"`)
			w.WriteHeader(401)
		}
	})
	credential, err := HeaderCredential("bearer mine")
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, quick(t, Config{}), host+"/a", Access{Credentials: as(credential)}).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for value, want := range map[string]Credential{"Basic YTpiOmM=": {Username: "a", Password: "b:c"}, "Bearer": {}, "Digest x": {}, "Basic !": {}, "": {}} {
		got, err := HeaderCredential(value)
		if got != want || (err == nil) != (want != Credential{}) {
			t.Errorf("%q: %+v, %v", value, got, err)
		}
	}
}

// TestTokenServers is of realms that give no token.
func TestTokenServers(t *testing.T) {
	leak.CheckProcess(t)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   func(error) bool
		want   string
	}{
		"refuses":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, errdefs.IsUnauthorized, "answered 401"},
		"forbids":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, errdefs.IsPermissionDenied, "answered 403"},
		"is broken": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, errdefs.IsUnavailable, "answered 500"},
		"nothing":   {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }, errdefs.IsUnavailable, "empty token"},
		"no JSON":   {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, errdefs.IsUnavailable, "failed to decode"},
		"endless":   {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"token":"`); endless(w, r) }, errdefs.IsUnavailable, "failed to decode"},
		"hangs":     {hang, errdefs.IsUnavailable, "timeout awaiting"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, errdefs.IsPermissionDenied, "sends us elsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tokens := serve(t, c.answer)
			host := strings.Replace(serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+tokens+`/t"`)
				w.WriteHeader(401)
			}), "127.0.0.1", "localhost", 1)
			client := quick(t, Config{HeaderTimeout: 100 * time.Millisecond, Attempts: 2})
			_, err := open(t, client, host+"/a:b", Access{Credentials: as(Credential{Username: "u", Password: "secret"})}).Resolve(t.Context())
			if !c.kind(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestRealms says where a registry may send us with the password.
func TestRealms(t *testing.T) {
	for _, c := range []struct {
		registry, realm string
		ok, inside      bool
	}{
		{"https://1.1.1.1", "https://8.8.8.8/token", true, false},
		{"https://1.1.1.1", "http://8.8.8.8/token", false, false},
		{"https://1.1.1.1", "http://1.1.1.1/token", false, false},
		{"http://10.0.0.1:5000", "http://10.0.0.1:5001/token", true, false},
		{"http://10.0.0.1:5000", "http://10.0.0.2/token", true, true},
		{"http://10.0.0.1:5000", "https://8.8.8.8/token", true, false},
		{"https://10.0.0.1", "https://192.168.0.1/token", true, true},
		{"https://1.1.1.1", "https://10.0.0.1/token", false, true},
		{"https://1.1.1.1", "https://169.254.169.254/latest/meta-data", false, true},
		{"https://1.1.1.1", "https://[::1]/", false, true},
		{"https://1.1.1.1", "https://[::ffff:127.0.0.1]/", false, true},
		{"https://1.1.1.1", "https://100.100.100.200/", false, true},
		{"https://1.1.1.1", "https://user:secret@8.8.8.8/", false, false},
		{"https://1.1.1.1", "file:///etc/shadow", false, false},
		{"https://1.1.1.1", "/token", false, false},
		{"https://1.1.1.1", "", false, false},
		{"https://1.1.1.1", "https://%zz", false, false},
		{"https://127.0.0.1", "https://127.0.0.1:1/", true, false},
	} {
		registry, err := url.Parse(c.registry)
		if err != nil {
			t.Fatal(err)
		}
		u, inside, err := checkRealm(t.Context(), c.realm, registry)
		if (err == nil) != c.ok || c.ok && (u.String() != c.realm || inside != c.inside) {
			t.Errorf("%s names %s: %v, %v", c.registry, c.realm, inside, err)
		}
		if err != nil && (!errdefs.IsPermissionDenied(err) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%v", err)
		}
	}
}

// TestRedirectLosesSecrets sends us to another host, which must not learn who we
// are, not even if it asks.
func TestRedirectLosesSecrets(t *testing.T) {
	leak.CheckProcess(t)
	made := testregistry.MakeKeys(t, t.TempDir())
	data := []byte("the blob")
	for _, asks := range []bool{false, true} {
		var told atomic.Value
		told.Store("")
		storage := serve(t, func(w http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"Authorization", "X-Secret", "X-More", "Cookie"} {
				if v := r.Header.Get(name); v != "" {
					told.Store(name + ": " + v)
				}
			}
			if asks {
				w.Header().Set("WWW-Authenticate", `Basic realm="tell me"`)
				w.WriteHeader(401)
				return
			}
			w.Write(data)
		})
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != basicAuth || r.Header.Get("X-Secret") != "1" || r.Header.Get("X-More") != "2" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(401)
				return
			}
			http.Redirect(w, r, "http://"+storage+"/blob?signature=secret", http.StatusTemporaryRedirect)
		})
		certs := t.TempDir()
		write(t, filepath.Join(certs, host, hostsFile), "server='http://"+host+"'\n[header]\nX-Secret='1'\n")
		access := Access{Credentials: as(Credential{Username: testUser, Password: testPassword}), Header: http.Header{"x-more": {"2"}}}
		got, err := fetch(t, open(t, quick(t, Config{HostsDir: certs}), host+"/a", access), describe("", data), 0)
		if !asks && (err != nil || !bytes.Equal(got, data)) {
			t.Errorf("%q, %v", got, err)
		}
		if asks && (!errdefs.IsUnauthorized(err) || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), storage)) {
			t.Errorf("%v", err)
		}
		if v := told.Load(); v != "" {
			t.Errorf("the other host was told %s", v)
		}
	}
	t.Run("key and downgrade", func(t *testing.T) { loseKey(t, made, data) })
}

// loseKey is a registry that knows us by our certificate and sends us to another
// host, once by https and once by http.
func loseKey(t *testing.T, made testregistry.Keys, data []byte) {
	listen := func(want bool, handler http.HandlerFunc) string {
		s := httptest.NewUnstartedServer(handler)
		keys, _, err := loadKeys(Host{URL: &url.URL{}, TLS: &TLS{CAs: []string{made.CA}, Pairs: [][2]string{{made.Cert, made.Key}}}})
		if err != nil {
			t.Fatal(err)
		}
		keys.ClientAuth = 1 // tls.RequestClientCert
		s.TLS = keys
		s.EnableHTTP2 = true
		s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if has := len(r.TLS.PeerCertificates) > 0; has != want {
				t.Errorf("%s: our certificate is shown: %v", r.Host, has)
			}
			handler(w, r)
		})
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	var proto atomic.Value
	storage := listen(false, func(w http.ResponseWriter, r *http.Request) { proto.Store(r.Proto); w.Write(data) })
	plain := serve(t, func(w http.ResponseWriter, _ *http.Request) { t.Error("http was spoken"); w.Write(data) })
	host := listen(true, func(w http.ResponseWriter, r *http.Request) {
		to := "https://" + storage
		if strings.Contains(r.URL.Path, "/down/") {
			to = "http://" + plain
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	})
	certs := t.TempDir()
	for from, to := range map[string]string{made.CA: "ca.crt", made.Cert: "me.cert", made.Key: "me.key"} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(certs, host, to), string(text))
	}
	client := quick(t, Config{HostsDir: certs})
	if got, err := fetch(t, open(t, client, host+"/a", Access{}), describe("", data), 0); err != nil || !bytes.Equal(got, data) || proto.Load() != "HTTP/1.1" {
		t.Errorf("%q by %v, %v", got, proto.Load(), err)
	}
	if _, err := fetch(t, open(t, client, host+"/down", Access{}), describe("", data), 0); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("down to http: %v", err)
	}
}

// TestMirrorRequests looks at what a mirror is asked: whose content, at which path,
// and as whom.
func TestMirrorRequests(t *testing.T) {
	leak.CheckProcess(t)
	_, desc, manifest := image(t, "seed", 10, nil)
	var asked []string
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.String()+" "+r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			if r.URL.Query().Get("last") == "" {
				w.Header().Set("Link", `</api/lib/x/tags/list?last=a>; rel="next"`)
			}
			io.WriteString(w, `{"tags":["a"]}`)
			return
		}
		w.Header().Set("Content-Type", desc.MediaType)
		w.Header().Set("Docker-Content-Digest", desc.Digest.String())
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		w.Write(manifest)
	})
	certs := t.TempDir()
	write(t, filepath.Join(certs, "r.example", hostsFile), "[host.'http://"+host+"/api']\noverride_path=true\n")
	r := open(t, quick(t, Config{HostsDir: certs}), "r.example/lib/x:v1", Access{Credentials: func(_ context.Context, req CredentialRequest) (Credential, error) {
		if req.Host != host {
			t.Errorf("credentials for %q", req.Host)
		}
		return Credential{Username: testUser, Password: testPassword}, nil
	}})
	if got, err := r.Resolve(t.Context()); err != nil || got.Digest != desc.Digest {
		t.Fatalf("%v, %v", got, err)
	}
	if tags, err := r.Tags(t.Context()); err != nil || len(tags) != 2 {
		t.Fatalf("%q, %v", tags, err)
	}
	want := []string{
		"HEAD /api/lib/x/manifests/v1?ns=r.example ",
		"HEAD /api/lib/x/manifests/v1?ns=r.example " + basicAuth,
		"GET /api/lib/x/tags/list?ns=r.example " + basicAuth,
		"GET /api/lib/x/tags/list?last=a&ns=r.example " + basicAuth,
	}
	if got := strings.Join(asked, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("asked\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// FuzzChallenges reads what a hostile server may want.
func FuzzChallenges(f *testing.F) {
	for _, seed := range []string{
		`Bearer realm="https://a/t",service="s",scope="x y"`, `Basic`, `Negotiate abc==, Basic realm="x", Bearer realm=y`,
		`Bearer realm="a\"b\\`, `bearer REALM = "q" , , scope=t`, "Bearer realm=\"\x00\n\"", strings.Repeat("a,", 9000),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := choose(parseChallenges([]string{text, text}))
		if !ok {
			return
		}
		again, ok := choose(parseChallenges([]string{c.header()}))
		if !ok || again.scheme != c.scheme {
			t.Fatalf("%q became %q", text, c.header())
		}
		if u, err := parseRealm(c.params["realm"], &url.URL{Scheme: "https", Host: "1.1.1.1"}); err == nil && u.Scheme != "https" {
			t.Fatalf("the password goes to %s", u)
		}
	})
}
