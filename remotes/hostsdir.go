package remotes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Files in the directory of a registry.
const (
	hostsFile   = "hosts.toml"
	defaultName = "_default" // directory for those that have none
	maxHosts    = 1 << 20    // bytes of a hosts.toml
)

// Hosts lists where images of a registry, as it stands at the beginning of a
// reference, can be had, in the order in which they are to be asked. dir has a
// directory for each registry: of registry.example:5000 it is registry.example_5000_
// or registry.example:5000, else _default. In it, hosts.toml says where; without
// that, files as docker has them say with which keys. An empty dir has nothing.
//
// InvalidArgument: a file that can't be understood; the error names it, and the
// line.
func Hosts(dir, registry string) ([]Host, error) {
	if dir == "" {
		host, err := server(registry, false)
		return []Host{host}, err
	}
	if strings.ContainsAny(registry, "/\\\x00") || strings.HasPrefix(registry, ".") || registry == "" {
		return nil, fmt.Errorf("registry %q is no name of a host: %w", registry, errdefs.ErrInvalidArgument)
	}
	for _, name := range directoryNames(registry) {
		at := filepath.Join(dir, name)
		info, err := os.Stat(at)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", registry, err)
		}
		if !info.IsDir() {
			return nil, fmt.Errorf("registry %s: %s is not a directory: %w", registry, at, errdefs.ErrInvalidArgument)
		}
		return fromDirectory(at, registry)
	}
	host, err := server(registry, false)
	return []Host{host}, err
}

// directoryNames lists the names that a registry's directory may have.
func directoryNames(registry string) []string {
	var names []string
	if host, port, err := net.SplitHostPort(registry); err == nil {
		names = append(names, strings.Trim(host, "[]")+"_"+port+"_")
	}
	return append(names, registry, defaultName)
}

func fromDirectory(dir, registry string) ([]Host, error) {
	file := filepath.Join(dir, hostsFile)
	data, err := readLimited(file, maxHosts)
	if errors.Is(err, fs.ErrNotExist) {
		return fromKeys(dir, registry)
	}
	if err != nil {
		return nil, err
	}
	hosts, err := parseHosts(data, dir, registry)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return hosts, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes: %w", path, limit, errdefs.ErrInvalidArgument)
	}
	return data, err
}

// fromKeys reads keys as docker keeps them: *.crt are authorities, *.cert our
// certificates, each with a *.key of the same name.
func fromKeys(dir, registry string) ([]Host, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	keys := &TLS{}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		switch name := strings.TrimSuffix(at, ".cert"); {
		case strings.HasSuffix(at, ".crt"):
			keys.CAs = append(keys.CAs, at)
		case name != at:
			key := name + ".key"
			if _, err := os.Stat(key); err != nil {
				return nil, fmt.Errorf("%s has no key beside it: %w: %w", at, err, errdefs.ErrInvalidArgument)
			}
			keys.Pairs = append(keys.Pairs, [2]string{at, key})
		}
	}
	known := len(keys.CAs) > 0 || len(keys.Pairs) > 0
	host, err := server(registry, known)
	if known {
		host.TLS = keys
	}
	return []Host{host}, err
}

// hostTable is what hosts.toml says of one host.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// hostsTable is a hosts.toml. What stands beside server is of the registry itself.
type hostsTable struct {
	Server string `toml:"server"`
	hostTable
	Host map[string]hostTable `toml:"host"`
}

// parseHosts reads a hosts.toml. The hosts come in the order of the file, the
// registry itself at the end.
func parseHosts(data []byte, dir, registry string) ([]Host, error) {
	var t hostsTable
	if err := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(&t); err != nil {
		return nil, fmt.Errorf("%s: %w", explainTOML(err), errdefs.ErrInvalidArgument)
	}
	var hosts []Host
	for _, name := range hostOrder(data) {
		table, ok := t.Host[name]
		if !ok {
			continue
		}
		host, err := table.host(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", shown(name), err)
		}
		host.Mirror = true
		hosts = append(hosts, host)
	}
	if len(hosts) != len(t.Host) {
		return nil, fmt.Errorf("hosts have to be tables, as [host.\"https://mirror.example\"]: %w", errdefs.ErrInvalidArgument)
	}
	last, err := t.server(dir, registry)
	if err != nil {
		return nil, err
	}
	// A mirror that is the registry itself is not asked twice.
	hosts = slices.DeleteFunc(hosts, func(h Host) bool {
		return h.URL.String() == last.URL.String() && h.Capabilities == last.Capabilities && h.TLS == nil && last.TLS == nil
	})
	return append(hosts, last), nil
}

// server is the registry itself.
func (t *hostsTable) server(dir, registry string) (Host, error) {
	own, err := server(registry, true)
	if err != nil {
		return Host{}, err
	}
	if t.Server == "" && isLocal(registry) && t.CA == nil && t.Client == nil && t.SkipVerify == nil {
		own, err = server(registry, false)
		if err != nil {
			return Host{}, err
		}
	}
	address := t.Server
	if address == "" {
		address = own.URL.Scheme + "://" + own.URL.Host
	}
	host, err := t.host(address, dir)
	if err != nil {
		return Host{}, fmt.Errorf("server %q: %w", shown(address), err)
	}
	host.Mirror = host.URL.Host != own.URL.Host
	return host, nil
}

func (t *hostTable) host(address, dir string) (Host, error) {
	u, err := parseURL(address, t.OverridePath)
	if err != nil {
		return Host{}, err
	}
	h := Host{URL: u, Capabilities: all, Header: http.Header{}}
	if t.Capabilities != nil {
		h.Capabilities = 0
	}
	for _, name := range t.Capabilities {
		one, ok := capabilities[strings.ToLower(name)]
		if !ok {
			return Host{}, fmt.Errorf("capability %q: there are pull, resolve, push and referrers: %w", name, errdefs.ErrInvalidArgument)
		}
		h.Capabilities |= one
	}
	if t.DialTimeout != "" {
		if h.DialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil || h.DialTimeout <= 0 {
			return Host{}, fmt.Errorf("dial_timeout %q is no time like 3s: %w", t.DialTimeout, errdefs.ErrInvalidArgument)
		}
	}
	for key, value := range t.Header {
		list, err := texts(value)
		if err != nil {
			return Host{}, fmt.Errorf("header %q: %w", key, err)
		}
		for _, text := range list {
			if strings.ContainsAny(key+text, "\r\n\x00") || key == "" {
				return Host{}, fmt.Errorf("header %q has a line's end in it: %w", key, errdefs.ErrInvalidArgument)
			}
			h.Header.Add(key, text)
		}
	}
	h.TLS, err = t.tls(dir)
	if err == nil && h.TLS != nil && u.Scheme == "http" && len(h.TLS.CAs)+len(h.TLS.Pairs) > 0 {
		err = fmt.Errorf("it has keys, and is spoken to by http, which has none: %w", errdefs.ErrInvalidArgument)
	}
	return h, err
}

func (t *hostTable) tls(dir string) (*TLS, error) {
	keys := &TLS{SkipVerify: t.SkipVerify != nil && *t.SkipVerify}
	at := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	var err error
	if keys.CAs, err = texts(t.CA); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	for i, path := range keys.CAs {
		keys.CAs[i] = at(path)
	}
	pairs, ok := t.Client.([]any)
	if !ok {
		list, err := texts(t.Client)
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		for _, path := range list {
			pairs = append(pairs, path)
		}
	}
	for _, one := range pairs {
		list, err := texts(one)
		if err != nil || len(list) == 0 || len(list) > 2 {
			return nil, fmt.Errorf("client: want a file, or a list of files and of pairs of certificate and key: %w", errdefs.ErrInvalidArgument)
		}
		pair := [2]string{at(list[0])}
		if len(list) == 2 {
			pair[1] = at(list[1])
		}
		keys.Pairs = append(keys.Pairs, pair)
	}
	if len(keys.CAs) == 0 && len(keys.Pairs) == 0 && !keys.SkipVerify {
		return nil, nil
	}
	return keys, nil
}

// texts reads a text or a list of texts.
func texts(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		list := make([]string, len(v))
		for i, one := range v {
			text, ok := one.(string)
			if !ok {
				return nil, fmt.Errorf("want a text or a list of texts: %w", errdefs.ErrInvalidArgument)
			}
			list[i] = text
		}
		return list, nil
	}
	return nil, fmt.Errorf("want a text or a list of texts: %w", errdefs.ErrInvalidArgument)
}

// hostOrder lists the names of the tables in host, in the order of the file, which
// decoding loses.
func hostOrder(data []byte) []string {
	var names []string
	p := unstable.Parser{}
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		key := e.Key()
		var parts []string
		for key.Next() {
			parts = append(parts, string(key.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(names, parts[1]) {
			names = append(names, parts[1])
		}
	}
	return names
}

// explainTOML says where a file is wrong.
func explainTOML(err error) string {
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		row, column := strict.Errors[0].Position()
		return fmt.Sprintf("line %d, column %d: unknown key %q", row, column, strings.Join(strict.Errors[0].Key(), "."))
	case errors.As(err, &decode):
		row, column := decode.Position()
		return fmt.Sprintf("line %d, column %d: %s", row, column, strings.TrimPrefix(decode.Error(), "toml: "))
	}
	return err.Error()
}
