package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/remotes"
	"github.com/berthd/berth/remotes/dockerconfig"
)

// registryFlags say how a registry is spoken to.
type registryFlags struct {
	user          string
	passwordStdin bool
	plainHTTP     bool
	hostsDir      string
}

func (f *registryFlags) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.user, "user", "u", "", "log in as `NAME` for this once, with a password that is asked for, and not as `berth login` did")
	flags.BoolVar(&f.passwordStdin, "password-stdin", false, "with --user: read the password from standard input")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak http, not https, with a registry that the hosts' directory says nothing about")
	flags.StringVar(&f.hostsDir, "hosts-dir", "", "`directory` with a hosts.toml for each registry, of the daemon's machine; default: the daemon's own")
}

// registry says to the client how the registry of an image is spoken to.
func (a *app) registry(f *registryFlags, image string) (client.Registry, error) {
	r := client.Registry{HostsDir: f.hostsDir, PlainHTTP: f.plainHTTP}
	if f.user != "" {
		ref, err := remotes.ParseReference(image)
		if err != nil {
			return r, err
		}
		name, password, err := a.userAndPassword(f.user, f.passwordStdin)
		if err != nil {
			return r, err
		}
		r.Credentials = func(_ context.Context, q client.CredentialRequest) (client.Credential, error) {
			if !hostOf(ref.Registry, q.Host) { // a mirror gets no password of another
				return client.Credential{}, nil
			}
			return client.Credential{Username: name, Password: password}, nil
		}
		return r, nil
	}
	if f.passwordStdin {
		return r, usage(errors.New("--password-stdin without --user: whose password is it?"))
	}
	store, err := dockerconfig.Open("")
	if err != nil {
		return r, nil // without a home there is nothing to look up
	}
	r.Credentials = func(ctx context.Context, q client.CredentialRequest) (client.Credential, error) {
		c, err := store.Get(ctx, q.Host)
		if err != nil {
			return client.Credential{}, err
		}
		if c.RegistryToken != "" {
			return client.Credential{Header: "Bearer " + c.RegistryToken}, nil
		}
		return client.Credential{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken}, nil
	}
	return r, nil
}

// hostOf tells whether a host is that of a registry. docker.io has its API elsewhere.
func hostOf(registry, host string) bool {
	if isHub(registry) {
		return isHub(host)
	}
	return strings.EqualFold(registry, host)
}

func isHub(host string) bool {
	return host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io"
}

// userAndPassword reads NAME or NAME:PASSWORD, and asks for what is not there.
func (a *app) userAndPassword(user string, stdin bool) (name, password string, err error) {
	name, password, inArgs := strings.Cut(user, ":")
	switch {
	case inArgs && stdin:
		return "", "", usage(errors.New("there is a password in --user and one on standard input"))
	case inArgs:
		fmt.Fprintln(a.err, "berth: warning: a password among the arguments is there for all users of this machine to see, and stays in the shell's history; leave it out and berth asks, or use --password-stdin")
		return name, password, nil
	case stdin:
		password, err = a.passwordFromInput()
	default:
		password, err = a.askPassword(fmt.Sprintf("Password of %s: ", name))
	}
	return name, password, err
}
