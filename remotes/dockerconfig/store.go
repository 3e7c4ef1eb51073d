// Package dockerconfig owns access to the credentials that docker's command line
// keeps: in its config.json, or with the helpers that are named there. Helpers are
// programs, so this is for command lines: whoever runs one has written, or chosen,
// the file. The daemon doesn't link it.
package dockerconfig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/berthd/berth/remotes"
	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

const (
	maxConfig  = 1 << 20  // bytes of a config.json
	maxOutput  = 64 << 10 // bytes that a helper may say
	helperTime = 30 * time.Second
	// hubAddress is what docker calls docker.io where it keeps credentials.
	hubAddress = "https://index.docker.io/v1/"
	// tokenUser is the user of what is an identity token instead of a password.
	tokenUser = "<token>"
	// notFound is how a helper says that it has nothing.
	notFound = "credentials not found in native keychain"
)

// Store is a config.json and what is named there.
type Store struct {
	path    string
	timeout time.Duration // of a helper
}

// Open gives the store at a path; "" is where docker has it. The file need not be
// there yet, and is read at each call.
func Open(path string) (*Store, error) {
	if path == "" {
		dir := os.Getenv("DOCKER_CONFIG")
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, fmt.Errorf("docker's config.json: %w", err)
			}
			dir = filepath.Join(home, ".docker")
		}
		path = filepath.Join(dir, "config.json")
	}
	return &Store{path: path, timeout: helperTime}, nil
}

// Path is where the file is.
func (s *Store) Path() string { return s.path }

// Credentials asks the store for whom a registry's client is to be.
func (s *Store) Credentials(ctx context.Context, req remotes.CredentialRequest) (remotes.Credential, error) {
	return s.Get(ctx, req.Host)
}

// Get gives the credential for a host, the zero value if there is none.
func (s *Store) Get(ctx context.Context, host string) (remotes.Credential, error) {
	address := addressOf(host)
	helper, err := s.helper(host)
	if err != nil {
		return remotes.Credential{}, err
	}
	if helper != "" {
		return s.ask(ctx, helper, address)
	}
	file, err := s.file()
	if err != nil {
		return remotes.Credential{}, err
	}
	c, err := file.Get(ctx, address)
	if err != nil {
		// The library's text may hold what it could not read.
		return remotes.Credential{}, fmt.Errorf("%s: the entry of %s in auths can't be read: %w", s.path, address, errdefs.ErrInvalidArgument)
	}
	return remotes.Credential{Username: c.Username, Password: c.Password, IdentityToken: c.RefreshToken, RegistryToken: c.AccessToken}, nil
}

// Put keeps the credential for a host: with the helper, if one is named, else in the
// file, which only its owner can read.
func (s *Store) Put(ctx context.Context, host string, c remotes.Credential) error {
	address := addressOf(host)
	helper, err := s.helper(host)
	if err != nil {
		return err
	}
	if helper != "" {
		entry := helperEntry{ServerURL: address, Username: c.Username, Secret: c.Password}
		if c.IdentityToken != "" {
			entry.Username, entry.Secret = tokenUser, c.IdentityToken
		}
		data, err := json.Marshal(entry)
		if err != nil {
			return err
		}
		_, err = s.run(ctx, helper, "store", data)
		return err
	}
	file, err := s.file()
	if err != nil {
		return err
	}
	err = file.Put(ctx, address, auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken, AccessToken: c.RegistryToken})
	if errors.Is(err, credentials.ErrBadCredentialFormat) {
		return fmt.Errorf("the user of %s has a colon in its name, which can't be kept in %s: %w", host, s.path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("keep the credential for %s: %w", host, err)
	}
	return nil
}

// Delete forgets the credential for a host.
func (s *Store) Delete(ctx context.Context, host string) error {
	helper, err := s.helper(host)
	if err != nil {
		return err
	}
	if helper != "" {
		_, err := s.run(ctx, helper, "erase", []byte(addressOf(host)))
		return err
	}
	file, err := s.file()
	if err != nil {
		return err
	}
	return file.Delete(ctx, addressOf(host))
}

// addressOf is what docker calls a host where it keeps credentials.
func addressOf(host string) string {
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return hubAddress
	}
	return host
}

func (s *Store) read() ([]byte, error) {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("%s is larger than %d bytes: %w", s.path, maxConfig, errdefs.ErrInvalidArgument)
	}
	return data, err
}

// file is the file as the library has it, after a look at its size.
func (s *Store) file() (*credentials.FileStore, error) {
	if _, err := s.read(); err != nil {
		return nil, err
	}
	file, err := credentials.NewFileStore(s.path)
	if err != nil {
		return nil, fmt.Errorf("%s can't be understood: %w", s.path, errdefs.ErrInvalidArgument)
	}
	return file, nil
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// helper is the program that keeps the credential of a host, "" if it is the file.
func (s *Store) helper(host string) (string, error) {
	data, err := s.read()
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return "", err
	}
	var config struct {
		Store   string            `json:"credsStore"`
		Helpers map[string]string `json:"credHelpers"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
			return "", fmt.Errorf("%s, line %d: %v: %w", s.path, line, syntax, errdefs.ErrInvalidArgument)
		}
		return "", fmt.Errorf("%s: credsStore has to be a text, credHelpers a map of texts: %w", s.path, errdefs.ErrInvalidArgument)
	}
	name := config.Store
	for _, key := range []string{addressOf(host), host} {
		if own := config.Helpers[key]; own != "" {
			name = own
			break
		}
	}
	if name != "" && !helperName.MatchString(name) {
		return "", fmt.Errorf("%s: %q is no name of a credential helper: %w", s.path, name, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// helperEntry is what helpers speak.
type helperEntry struct {
	ServerURL string
	Username  string
	Secret    string
}

func (s *Store) ask(ctx context.Context, helper, address string) (remotes.Credential, error) {
	out, err := s.run(ctx, helper, "get", []byte(address))
	if errors.Is(err, errNothing) {
		return remotes.Credential{}, nil
	}
	if err != nil {
		return remotes.Credential{}, err
	}
	var entry helperEntry
	if json.Unmarshal(out, &entry) != nil {
		return remotes.Credential{}, fmt.Errorf("docker-credential-%s get: what it says is not understood: %w", helper, errdefs.ErrFailedPrecondition)
	}
	if entry.Username == tokenUser {
		return remotes.Credential{IdentityToken: entry.Secret}, nil
	}
	return remotes.Credential{Username: entry.Username, Password: entry.Secret}, nil
}

// errNothing is a helper that has no credential.
var errNothing = errors.New(notFound)

// run has a helper do something, in bounded time and with bounded words. A helper
// that asks a person has the terminal.
func (s *Store) run(ctx context.Context, helper, action string, input []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var out, words limited
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, action)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &words
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", cmd.Args[0]+" "+action, ctx.Err())
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%s names the credential helper %s, which is not installed: %w", s.path, cmd.Args[0], errdefs.ErrFailedPrecondition)
	case err != nil && strings.TrimSpace(out.kept.String()) == notFound:
		return nil, errNothing
	case out.more || err == nil && action == "get" && out.kept.Len() == 0:
		return nil, fmt.Errorf("%s %s: what it says is not understood: %w", cmd.Args[0], action, errdefs.ErrFailedPrecondition)
	case err != nil:
		text := words.kept.String()
		if action != "get" || text == "" {
			text = out.kept.String() + " " + text // helpers say on stdout what is wrong
		}
		return nil, fmt.Errorf("%s %s: %v: %s: %w", cmd.Args[0], action, err, clean(text), errdefs.ErrFailedPrecondition)
	}
	return out.kept.Bytes(), nil
}

// clean makes a helper's words fit for a line.
func clean(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	return strings.ToValidUTF8(text[:min(len(text), 300)], "")
}

// limited keeps the beginning of what is written. It has no ReadFrom, which would
// go past the limit.
type limited struct {
	kept bytes.Buffer
	more bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := maxOutput - l.kept.Len()
	l.more = l.more || len(p) > room
	l.kept.Write(p[:min(len(p), room)])
	return len(p), nil
}
