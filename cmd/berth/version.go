package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berthd/berth/internal/version"
)

// versions is the JSON of version.
type versions struct {
	Client clientVersion  `json:"client"`
	Server *serverVersion `json:"server"` // null: the daemon does not answer
}

// clientVersion is the build of this program.
type clientVersion struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
}

// serverVersion is what the daemon says of itself.
type serverVersion struct {
	Version  string `json:"version"`     // its own; empty: it is not berthd
	API      string `json:"api_version"` // level of containerd's API that it speaks
	Revision string `json:"revision"`
}

// ownVersion parts, in what the Version service of berthd answers, the daemon's
// own version from the level of the API. Another daemon has the latter alone.
func ownVersion(answer string) (own, api string) {
	api, own, _ = strings.Cut(answer, "+berth.")
	return own, api
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Tell the versions of berth and of the daemon",
		Long: "Tell the versions of berth and of the daemon.\n\n" +
			"JSON: an object with client (version, revision) and server (version, api_version,\n" +
			"revision). server is null if it does not answer; its version is empty if it is not berthd.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			own := version.Build()
			v := versions{Client: clientVersion{Version: own.Version, Revision: own.Revision}}
			server, err := a.serverBuild(ctx)
			v.Server = server
			return errors.Join(a.writeVersions(v), err)
		},
	}
}

func (a *app) serverBuild(ctx context.Context) (*serverVersion, error) {
	c, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	v, err := c.Version().Version(ctx, &emptypb.Empty{})
	if err != nil {
		return nil, fmt.Errorf("version of the daemon: %w", err)
	}
	own, api := ownVersion(v.GetVersion())
	return &serverVersion{Version: own, API: api, Revision: v.GetRevision()}, nil
}

func (a *app) writeVersions(v versions) error {
	if a.json() {
		return writeJSON(a.out, v)
	}
	fmt.Fprintf(a.out, "berth    %s, revision %s\n", v.Client.Version, or(v.Client.Revision, "unknown"))
	if v.Server != nil {
		fmt.Fprintf(a.out, "daemon   %s, revision %s\nAPI      containerd %s\n",
			or(v.Server.Version, "not berthd"), or(v.Server.Revision, "unknown"), v.Server.API)
	}
	return nil
}
