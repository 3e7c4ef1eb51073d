package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/remotes"
	"github.com/berthd/berth/remotes/dockerconfig"
)

// hub is the registry of names that have none.
const hub = "docker.io"

// hostsDir is where the daemon has it unless its configuration says otherwise.
const hostsDir = "/etc/berth/certs.d"

// loginFlags are the flags of login.
type loginFlags struct {
	username      string
	password      string
	passwordStdin bool
	plainHTTP     bool
	hostsDir      string
}

func (a *app) loginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Log in to a registry",
		Long: "Try a name and a password with a registry, docker.io unless another is named, and keep them where docker does:\n" +
			"in ~/.docker/config.json ($DOCKER_CONFIG), or with the credential helper that is named there. `berth pull`\n" +
			"and `berth push` then log in by themselves.\n\n" +
			"Name and password are asked for at the terminal; in scripts use --username and --password-stdin.\n\n" +
			"JSON: an object with registry, username, kept_in, asked (whether the registry wanted to know).",
		Example: "  berth login registry.example:5000\n" +
			"  berth login -u ali --password-stdin registry.example < password",
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			registry := hub
			if len(args) == 1 {
				registry = args[0]
			}
			return a.login(&f, registry)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.username, "username", "u", "", "`name` of the account")
	flags.StringVarP(&f.password, "password", "p", "", "password; all users of the machine can see it, so rather let berth ask for it")
	flags.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from standard input")
	flags.BoolVar(&f.plainHTTP, "plain-http", false, "speak http, not https, with a registry that the hosts' directory says nothing about")
	flags.StringVar(&f.hostsDir, "hosts-dir", hostsDir, "`directory` with a hosts.toml for each registry")
	return cmd
}

// loggedIn is what login has done, in JSON.
type loggedIn struct {
	Registry string `json:"registry"`
	Username string `json:"username"`
	KeptIn   string `json:"kept_in"`
	Asked    bool   `json:"asked"`
}

func (a *app) login(f *loginFlags, registry string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ref, err := registryReference(registry)
	if err != nil {
		return usage(err)
	}
	store, err := dockerconfig.Open("")
	if err != nil {
		return err
	}
	credential, err := a.accountOf(f)
	if err != nil {
		return err
	}
	asked, err := try(ctx, f, ref, credential)
	if err != nil {
		return err
	}
	if err := store.Put(ctx, ref.Registry, credential); err != nil {
		return err
	}
	if a.json() {
		return writeJSON(a.out, loggedIn{ref.Registry, credential.Username, store.Path(), asked})
	}
	if !asked {
		fmt.Fprintf(a.err, "berth: warning: %s did not want to know who you are, so name and password are kept untried\n", ref.Registry)
	}
	fmt.Fprintf(a.out, "logged in to %s as %s\n", ref.Registry, credential.Username)
	return nil
}

// registryReference reads a registry's name.
func registryReference(registry string) (remotes.Reference, error) {
	if isHub(registry) {
		registry = hub
	}
	// A name is a registry's if an image can be named by it.
	ref, err := remotes.ParseReference(registry + "/login")
	if err != nil || ref.Registry != registry {
		return ref, fmt.Errorf("%q is no registry: give its host, with a port if it needs one, as registry.example:5000", registry)
	}
	ref.Tag = ""
	return ref, nil
}

// accountOf gives name and password, asking for what no flag tells.
func (a *app) accountOf(f *loginFlags) (c remotes.Credential, err error) {
	if f.passwordStdin && f.password != "" {
		return c, usage(errors.New("--password and --password-stdin are two passwords"))
	}
	if f.passwordStdin && f.username == "" {
		return c, usage(errors.New("--password-stdin without --username: whose password is it?"))
	}
	if c.Username = f.username; c.Username == "" {
		if c.Username, err = a.ask("Name: "); err != nil {
			return c, err
		}
	}
	switch {
	case f.password != "":
		fmt.Fprintln(a.err, "berth: warning: --password shows the password to all users of this machine, and leaves it in the shell's history; use --password-stdin")
		c.Password = f.password
	case f.passwordStdin:
		c.Password, err = a.passwordFromInput()
	default:
		c.Password, err = a.askPassword("Password: ")
	}
	return c, err
}

// try asks the registry whether it knows the account. asked tells whether it wanted
// to know.
func try(ctx context.Context, f *loginFlags, ref remotes.Reference, c remotes.Credential) (asked bool, err error) {
	access := remotes.Access{Credentials: func(_ context.Context, q remotes.CredentialRequest) (remotes.Credential, error) {
		asked = true
		return c, nil
	}}
	if f.plainHTTP {
		access.DefaultScheme = "http"
	}
	registries := remotes.New(remotes.Config{HostsDir: f.hostsDir})
	defer registries.Close()
	repository, err := registries.Open(ref, access)
	if err != nil {
		return false, err
	}
	err = repository.Ping(ctx)
	if errdefs.IsUnauthorized(err) {
		return asked, hint(fmt.Errorf("log in to %s: name or password is wrong: %w", ref.Registry, errdefs.ErrUnauthenticated), "nothing was kept; try again")
	}
	if err != nil {
		return asked, fmt.Errorf("log in to %s: %w", ref.Registry, err)
	}
	return asked, nil
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logout [REGISTRY]",
		Short: "Forget the account with a registry",
		Long: "Remove what `berth login` has kept for a registry, docker.io unless another is named.\n\n" +
			"JSON: an object with registry, kept_in.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			registry := hub
			if len(args) == 1 {
				registry = args[0]
			}
			return a.logout(registry)
		},
	}
}

func (a *app) logout(registry string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ref, err := registryReference(registry)
	if err != nil {
		return usage(err)
	}
	store, err := dockerconfig.Open("")
	if err != nil {
		return err
	}
	if err := store.Delete(ctx, ref.Registry); err != nil {
		return err
	}
	if a.json() {
		return writeJSON(a.out, struct {
			Registry string `json:"registry"`
			KeptIn   string `json:"kept_in"`
		}{ref.Registry, store.Path()})
	}
	fmt.Fprintf(a.out, "logged out of %s\n", ref.Registry)
	return nil
}
