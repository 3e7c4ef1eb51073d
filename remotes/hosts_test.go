package remotes

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// told describes hosts in one line each.
func told(hosts []Host) string {
	var lines []string
	for _, h := range hosts {
		line := h.URL.String() + " " + h.Capabilities.String()
		if h.Mirror {
			line += " mirror"
		}
		if h.TLS != nil {
			line += fmt.Sprintf(" ca=%v pairs=%v skip=%t", h.TLS.CAs, h.TLS.Pairs, h.TLS.SkipVerify)
		}
		if h.DialTimeout != 0 {
			line += " " + h.DialTimeout.String()
		}
		for key, values := range h.Header {
			line += fmt.Sprintf(" %s=%q", key, values)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

const every = " pull,push,referrers,resolve"

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHostsDefault is without any configuration.
func TestHostsDefault(t *testing.T) {
	for registry, want := range map[string]string{
		"docker.io":             "https://registry-1.docker.io/v2" + every,
		"registry.example":      "https://registry.example/v2" + every,
		"registry.example:5000": "https://registry.example:5000/v2" + every,
		"localhost:5000":        "http://localhost:5000/v2" + every,
		"127.0.0.1":             "http://127.0.0.1/v2" + every,
		"127.1.2.3:80":          "http://127.1.2.3:80/v2" + every,
		"[::1]:5000":            "http://[::1]:5000/v2" + every,
		"10.0.0.1:5000":         "https://10.0.0.1:5000/v2" + every,
		"localhost.example":     "https://localhost.example/v2" + every,
	} {
		for _, dir := range []string{"", t.TempDir(), "/no/where"} {
			hosts, err := Hosts(dir, registry)
			if err != nil || told(hosts) != want {
				t.Errorf("%s in %q: %s, %v", registry, dir, told(hosts), err)
			}
		}
	}
	for _, registry := range []string{"", "a/b", "../x", "a b", "u@h", "h?q", "h#f"} {
		for _, dir := range []string{"", t.TempDir()} {
			if hosts, err := Hosts(dir, registry); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q in %q: %s, %v", registry, dir, told(hosts), err)
			}
		}
	}
}

// TestHostsDirectory finds the directory of a registry.
func TestHostsDirectory(t *testing.T) {
	dir := t.TempDir()
	mirror := func(name string) string { return "[host.\"https://" + name + "\"]\n" }
	for name, file := range map[string]string{
		"a.example": "a", "b.example_5000_": "b", "b.example:5000": "unused", "c.example:5000": "c", "_default": "default", "__1_80_": "unused", "::1_80_": "six",
	} {
		write(t, filepath.Join(dir, name, hostsFile), mirror(file))
	}
	for registry, want := range map[string]string{
		"a.example": "a", "b.example:5000": "b", "c.example:5000": "c", "a.example:80": "default", "docker.io": "default", "[::1]:80": "six",
	} {
		hosts, err := Hosts(dir, registry)
		if err != nil || len(hosts) != 2 || hosts[0].URL.Host != want || !hosts[0].Mirror || hosts[1].Mirror {
			t.Errorf("%s: %s, %v", registry, told(hosts), err)
		}
	}
	write(t, filepath.Join(dir, "file.example"), "")
	if _, err := Hosts(dir, "file.example"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file in place of a directory: %v", err)
	}
}

// TestHostsKeys reads keys as docker keeps them.
func TestHostsKeys(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "localhost:5000")
	for _, name := range []string{"ca.crt", "me.cert", "me.key", "notes.txt"} {
		write(t, filepath.Join(at, name), "")
	}
	hosts, err := Hosts(dir, "localhost:5000")
	want := fmt.Sprintf("https://localhost:5000/v2%s ca=[%[2]s/ca.crt] pairs=[[%[2]s/me.cert %[2]s/me.key]] skip=false", every, at)
	if err != nil || told(hosts) != want {
		t.Errorf("got %s, %v\nwant %s", told(hosts), err, want)
	}
	write(t, filepath.Join(at, "other.cert"), "")
	if _, err := Hosts(dir, "localhost:5000"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "other.cert has no key") {
		t.Errorf("a certificate without a key: %v", err)
	}
}

func TestParseHosts(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":  {"", "https://r.example/v2" + every},
		"server": {`server = "https://other.example"`, "https://other.example/v2" + every + " mirror"},
		"order": {"[host.\"https://z\"]\n[host.\"https://a\"]\n[host.\"https://m\"]\n capabilities=['pull','Resolve']",
			"https://z/v2" + every + " mirror\nhttps://a/v2" + every + " mirror\nhttps://m/v2 pull,resolve mirror\nhttps://r.example/v2" + every},
		"tables below": {"[host.\"https://z\".header]\n x-a = ['1','2']\n[host.\"https://a\"]",
			"https://z/v2" + every + " mirror X-A=[\"1\" \"2\"]\nhttps://a/v2" + every + " mirror\nhttps://r.example/v2" + every},
		"paths": {"[host.\"https://a/cache\"]\n[host.\"https://b/v2/\"]\n[host.\"https://c/api/\"]\n override_path=true\n[host.\"http://d:80/x/v2/y\"]",
			"https://a/cache/v2" + every + " mirror\nhttps://b/v2" + every + " mirror\nhttps://c/api" + every + " mirror\nhttp://d:80/x/v2/y/v2" + every + " mirror\nhttps://r.example/v2" + every},
		"schemes": {"[host.\"a.example\"]\n[host.\"localhost:5000\"]", "https://a.example/v2" + every + " mirror\nhttp://localhost:5000/v2" + every + " mirror\nhttps://r.example/v2" + every},
		"keys": {"ca = 'ca.pem'\nclient = [['c','k'],'both']\nskip_verify = true\n[host.\"https://a\"]\n ca=['/abs','rel']\n client='one'\n dial_timeout='3s'",
			"https://a/v2" + every + " mirror ca=[/abs DIR/rel] pairs=[[DIR/one ]] skip=false 3s\nhttps://r.example/v2" + every + " ca=[DIR/ca.pem] pairs=[[DIR/c DIR/k] [DIR/both ]] skip=true"},
		"itself first": {"server='https://r.example'\n[host.\"https://r.example\"]", "https://r.example/v2" + every},
		"no push":      {"capabilities=['pull']", "https://r.example/v2 pull"},
		"nothing":      {"capabilities=[]", "https://r.example/v2 "},
		"unknown key":  {"[host.\"https://a\"]\ncapability=['pull']", `line 2, column 1: unknown key "host.https://a.capability"`},
		"not TOML":     {"a = = b", "line 1, column 5"},
		"wrong type":   {"skip_verify = 'yes'", "line 1, column 15"},
		"capability":   {"capabilities = ['fly']", `capability "fly"`},
		"timeout":      {"dial_timeout = 'soon'", `dial_timeout "soon"`},
		"negative":     {"dial_timeout = '-1s'", `dial_timeout "-1s"`},
		"scheme":       {"server = 'ftp://x'", "neither http nor https"},
		"password":     {"server = 'https://me:secret@x'", `the URL of host "x" has a user or password`},
		"query":        {"server = 'https://x?y'", "has to be a host"},
		"header":       {"[header]\nx = \"a\\nb\"", "has a line's end in it"},
		"header type":  {"[header]\nx = 1", "want a text or a list of texts"},
		"client":       {"client = [['a','b','c']]", "pairs of certificate and key"},
		"client type":  {"client = 7", "want a text"},
		"http keys":    {"server='http://x'\nca='c'", "by http, which has none"},
		"inline":       {"host = {\"https://a\" = {}}", "hosts have to be tables"},
	} {
		hosts, err := parseHosts([]byte(c.text), "DIR", "r.example")
		got := told(hosts)
		if err != nil {
			got = err.Error()
			if !errdefs.IsInvalidArgument(err) || strings.Contains(got, "secret") {
				t.Errorf("%s: %v", name, err)
			}
			if !strings.Contains(got, c.want) {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		} else if got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
	if hosts, err := parseHosts(nil, "DIR", "localhost:5000"); err != nil || hosts[0].URL.Scheme != "http" {
		t.Errorf("this machine: %s, %v", told(hosts), err)
	}
	if hosts, err := parseHosts([]byte("ca='c'"), "DIR", "localhost:5000"); err != nil || hosts[0].URL.Scheme != "https" {
		t.Errorf("this machine with keys: %s, %v", told(hosts), err)
	}
}

// TestHostsLarge refuses a file that is none.
func TestHostsLarge(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "_default", hostsFile), strings.Repeat("#", maxHosts+1))
	begin := time.Now()
	if _, err := Hosts(dir, "r.example"); !errdefs.IsInvalidArgument(err) || time.Since(begin) > 10*time.Second {
		t.Errorf("a file of more than %d bytes: %v", maxHosts, err)
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("server='https://a'\n[host.\"https://b/c\"]\ncapabilities=['pull']\nca=['x']\nclient=[['a','b']]\n[host.\"https://b/c\".header]\nx='y'"))
	f.Add([]byte("[host.x]\n[host.x.header]\n[[host]]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hosts, err := parseHosts(data, "DIR", "r.example")
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%v", err)
			}
			return
		}
		for _, h := range hosts {
			if h.URL.Host == "" || h.URL.User != nil || h.URL.Scheme != "http" && h.URL.Scheme != "https" {
				t.Fatalf("host %v", h.URL)
			}
		}
	})
}
