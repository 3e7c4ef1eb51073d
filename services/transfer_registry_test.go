package services

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/api/services/images/v1/imagesgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/remotes"
)

// registry is one in this process, with one image, for ali.
type registry struct {
	*httptest.Server
	host     string
	manifest ocispec.Descriptor

	mu   sync.Mutex
	seen http.Header // of the last request
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	layer, err := testimage.Layer(testimage.File{Name: "a", Body: "from the registry"})
	if err != nil {
		t.Fatal(err)
	}
	layout, err := testimage.NewLayout(testimage.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{}
	if r.manifest, err = layout.Add(testimage.Gzip, testimage.Image{Layers: [][]byte{layer}}); err != nil {
		t.Fatal(err)
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.seen = q.Header.Clone()
		r.mu.Unlock()
		if user, password, _ := q.BasicAuth(); user != "ali" || password != "sesame" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		what, d := path.Base(path.Dir(q.URL.Path)), digest.Digest(path.Base(q.URL.Path))
		if d == "1" {
			d = r.manifest.Digest
		}
		body, ok := layout.Blobs[d]
		if !ok || !strings.HasPrefix(q.URL.Path, "/v2/team/box/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if what == "manifests" {
			w.Header().Set("Content-Type", r.manifest.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}))
	t.Cleanup(r.Close)
	r.host = r.Listener.Addr().String()
	return r
}

// answer opens a stream on which a client answers what it is asked; nil closes it.
func (m *moving) answer(id string, with proto.Message) (asked func() []*transfer.AuthRequest) {
	s := mustStream(m.ctx, m.t, m.d, id)
	var all []*transfer.AuthRequest
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			a, err := s.Recv()
			if err != nil {
				return
			}
			q := &transfer.AuthRequest{}
			if proto.Unmarshal(a.GetValue(), q) == nil {
				all = append(all, q)
			}
			if with == nil {
				s.CloseSend()
				continue
			}
			if s.Send(packed(m.t, with)) != nil {
				return
			}
		}
	}()
	return func() []*transfer.AuthRequest {
		<-done
		return all
	}
}

// Who a client says it is, and what else it says of a registry.
func TestTransferRegistry(t *testing.T) {
	client := remotes.New(remotes.Config{Attempts: 1})
	t.Cleanup(client.Close)
	d := start(t, func(c *Config) { c.Remotes = client })
	r := newRegistry(t)
	for name, c := range map[string]struct {
		answer   proto.Message
		want     codes.Code
		resolver *transfer.RegistryResolver
	}{
		"credentials":  {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "ali", Secret: "sesame"}},
		"header":       {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_HEADER, Secret: "Basic YWxpOnNlc2FtZQ=="}},
		"wrong":        {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "ali", Secret: "hush"}, want: codes.Unauthenticated},
		"none":         {answer: &transfer.AuthResponse{}, want: codes.Unauthenticated},
		"refresh":      {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_REFRESH}, want: codes.Unauthenticated},
		"bad header":   {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_HEADER, Secret: "hush"}, want: codes.Unauthenticated},
		"unknown type": {answer: &transfer.AuthResponse{AuthType: 17, Secret: "hush"}, want: codes.Unauthenticated},
		"ended":        {answer: &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "ali", Secret: "sesame", ExpireAt: timestamppb.New(time.Now().Add(-time.Hour))}, want: codes.Unauthenticated},
		"no answer":    {answer: nil, want: codes.Unauthenticated},
		"nonsense":     {answer: &emptypb.Empty{}, want: codes.Unauthenticated},
	} {
		m := newMoving(t, d)
		asked := m.answer("auth", c.answer)
		err := m.do(
			&transfer.OCIRegistry{Reference: r.host + "/team/box:1", Resolver: &transfer.RegistryResolver{AuthStream: "auth", Headers: map[string]string{"X-Test": name}}},
			&transfer.ImageStore{Name: "box-" + name, Unpacks: []*transfer.UnpackConfiguration{{}}, Labels: map[string]string{"a": "b"}})
		if status.Code(err) != c.want || err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "sesame")) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		questions := asked()
		if len(questions) == 0 || questions[0].GetHost() != r.host || questions[0].GetReference() != r.host+"/team/box:1" ||
			len(questions[0].GetWwwauthenticate()) != 1 || r.seen.Get("X-Test") != name {
			t.Errorf("%s: asked %v, headers %v", name, questions, r.seen)
		}
		i, err := imagesgrpc.NewImagesClient(d).Get(m.ctx, &images.GetImageRequest{Name: "box-" + name})
		if made := err == nil; made != (c.want == codes.OK) || made && (i.GetImage().GetTarget().GetDigest() != r.manifest.Digest.String() || i.GetImage().GetLabels()["a"] != "b") {
			t.Errorf("%s: image %v, %v", name, i, err)
		}
	}
}

// What a client says wrongly, what else it can have, and what it is told.
func TestTransferRegistryFields(t *testing.T) {
	client := remotes.New(remotes.Config{Attempts: 1})
	t.Cleanup(client.Close)
	d := start(t, func(c *Config) { c.Remotes = client })
	r := newRegistry(t)
	for name, c := range map[string]struct {
		reference string
		resolver  *transfer.RegistryResolver
		to        *transfer.ImageStore
		want      codes.Code
	}{
		"no stream":        {"", &transfer.RegistryResolver{AuthStream: "none"}, nil, codes.NotFound},
		"no log stream":    {"", &transfer.RegistryResolver{HttpDebug: transfer.HTTPDebug_BOTH, LogsStream: "none"}, nil, codes.NotFound},
		"relative":         {"", &transfer.RegistryResolver{HostDir: "certs"}, nil, codes.InvalidArgument},
		"scheme":           {"", &transfer.RegistryResolver{DefaultScheme: "gopher"}, nil, codes.InvalidArgument},
		"header name":      {"", &transfer.RegistryResolver{Headers: map[string]string{"A B": "x"}}, nil, codes.InvalidArgument},
		"header value":     {"", &transfer.RegistryResolver{Headers: map[string]string{"A": "x\r\nB: y"}}, nil, codes.InvalidArgument},
		"reference":        {"A:B:C", nil, nil, codes.InvalidArgument},
		"no name":          {"", nil, &transfer.ImageStore{}, codes.InvalidArgument},
		"no such tag":      {r.host + "/team/box:2", nil, nil, codes.Unauthenticated},
		"no such platform": {"", nil, &transfer.ImageStore{Name: "x", Platforms: []*types.Platform{{Os: "plan9", Architecture: "mips"}}}, codes.NotFound},
	} {
		m := newMoving(t, d)
		if c.reference == "" {
			c.reference = r.host + "/team/box:1"
		}
		if c.to == nil {
			c.to = &transfer.ImageStore{Name: "x"}
		} else {
			c.resolver = &transfer.RegistryResolver{Headers: map[string]string{"Authorization": "Basic YWxpOnNlc2FtZQ=="}}
		}
		if err := m.do(&transfer.OCIRegistry{Reference: c.reference, Resolver: c.resolver}, c.to); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}

	m := newMoving(t, d)
	m.answer("auth", &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "ali", Secret: "sesame"})
	told := m.receive("log")
	err := m.do(
		&transfer.OCIRegistry{Reference: r.host + "/team/box:1", Resolver: &transfer.RegistryResolver{AuthStream: "auth", HttpDebug: transfer.HTTPDebug_DEBUG, LogsStream: "log"}},
		&transfer.ImageStore{Name: "box:1", ExtraReferences: []*transfer.ImageReference{{Name: "box:also"}, {Name: "box", IsPrefix: true}, {Name: "box", IsPrefix: true, AddDigest: true}}})
	if err != nil {
		t.Fatal(err)
	}
	log, ended := told()
	if text := string(log); ended != nil || !strings.Contains(text, "GET http://"+r.host+"/v2/team/box/manifests/1: 401") || !strings.Contains(text, "200 OK") || strings.Contains(text, "YWxp") {
		t.Errorf("told %q, %v", log, ended)
	}
	if got := strings.Join(m.images(), " "); got != "box:1 box:also box@"+r.manifest.Digest.String() {
		t.Errorf("images %s", got)
	}
	// Without a stream for it the daemon's log has it.
	m.answer("again", &transfer.AuthResponse{AuthType: transfer.AuthType_CREDENTIALS, Username: "ali", Secret: "sesame"})
	err = m.do(
		&transfer.OCIRegistry{Reference: r.host + "/team/box:1", Resolver: &transfer.RegistryResolver{AuthStream: "again", HttpDebug: transfer.HTTPDebug_TRACE}},
		&transfer.ImageStore{Name: "box:1"})
	if err != nil || !strings.Contains(d.log.String(), "registry asked") {
		t.Errorf("log: %v", err)
	}
}

// What of an image a client wants.
func TestPullOptions(t *testing.T) {
	own, other := &types.Platform{Os: "linux", Architecture: "amd64"}, &types.Platform{Os: "linux", Architecture: "arm64", Variant: "v8"}
	for name, c := range map[string]struct {
		to   *transfer.ImageStore
		want string
	}{
		"all":             {&transfer.ImageStore{Name: "a"}, "[] all packed []"},
		"one":             {&transfer.ImageStore{Name: "a", Platforms: []*types.Platform{own}}, "[linux/amd64] packed []"},
		"several":         {&transfer.ImageStore{Name: "a", Platforms: []*types.Platform{own, other}, AllMetadata: true}, "[linux/amd64 linux/arm64/v8] documents packed []"},
		"limited":         {&transfer.ImageStore{Name: "a", Platforms: []*types.Platform{own, other}, ManifestLimit: 1}, "[linux/amd64] packed []"},
		"all but limited": {&transfer.ImageStore{Name: "a", ManifestLimit: 1}, "[] packed []"},
		"unpacked": {&transfer.ImageStore{Name: "a", Platforms: []*types.Platform{own}, Unpacks: []*transfer.UnpackConfiguration{{Platform: own, Snapshotter: "native"}, {}}},
			"[linux/amd64] [{native linux/amd64} { }]"},
	} {
		o, err := pullOptions(c.to)
		got := fmt.Sprint(o.Platforms)
		for _, is := range []struct {
			so   bool
			text string
		}{{o.AllPlatforms, " all"}, {o.Documents, " documents"}, {o.NoUnpack, " packed"}} {
			if is.so {
				got += is.text
			}
		}
		if got += " " + fmt.Sprint(o.Unpack); err != nil || o.Name != "a" || got != c.want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, c.want)
		}
	}
}
