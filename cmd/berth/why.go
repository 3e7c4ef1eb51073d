package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// keptChain is the way from a root to an object, as JSON has it.
type keptChain struct {
	Links   []keptLink `json:"links"` // the first is the root, the last the object
	Reason  string     `json:"reason"`
	Garbage bool       `json:"garbage"` // nothing keeps it
}

type keptLink struct {
	Kind        string `json:"kind"`
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	Snapshotter string `json:"snapshotter,omitempty"`
	By          string `json:"by,omitempty"` // by what it keeps the next one
}

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "why DIGEST|SNAPSHOT|NAME",
		Short: "Tell what keeps an object from collection",
		Long: "Tell the way from a container, image, lease or other root to a blob or snapshot, or that nothing keeps it. The object\n" +
			"is a digest or the key of a snapshot, or enough of its start, or any other name; all namespaces are looked at, or the\n" +
			"one that --namespace names.\n\n" +
			"JSON: a list of objects with links (kind, namespace, name, snapshotter, by), reason, garbage.",
		Args:              exactArgs(1, "digest, snapshot or name"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				return a.why(ctx, c, args[0], a.onlyNamespace(cmd))
			})
		},
	}
}

// onlyNamespace is the namespace that a command for all of them was given; "" for
// all.
func (a *app) onlyNamespace(cmd *cobra.Command) string {
	if cmd.Flags().Changed("namespace") {
		return a.namespace
	}
	return ""
}

func (a *app) why(ctx context.Context, c *client.Client, object, namespace string) error {
	reply, err := c.Maintenance().Why(ctx, &maintenance.WhyRequest{Object: object, Namespace: namespace})
	if errdefs.IsNotFound(err) {
		return hint(err, "`berth df -v` lists all objects")
	}
	if err != nil {
		return err
	}
	chains := []keptChain{}
	for _, chain := range reply.GetChains() {
		one := keptChain{Reason: chain.GetReason(), Garbage: chain.GetGarbage(), Links: []keptLink{}}
		for _, l := range chain.GetLinks() {
			one.Links = append(one.Links, keptLink{l.GetKind(), l.GetNamespace(), l.GetName(), l.GetSnapshotter(), l.GetBy()})
		}
		chains = append(chains, one)
	}
	if a.json() {
		return writeJSON(a.out, chains)
	}
	for i, chain := range chains {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		for depth, l := range chain.Links {
			text := l.Kind
			if l.Snapshotter != "" {
				text += "/" + l.Snapshotter
			}
			if text += " "; l.Namespace != "" {
				text += l.Namespace + "/"
			}
			text += l.Name
			if depth == 0 {
				text += " (" + chain.Reason + ")"
			}
			if depth > 0 {
				text = chain.Links[depth-1].By + " → " + text
			}
			fmt.Fprintln(a.out, oneLine(strings.Repeat("  ", depth)+text))
		}
		if chain.Garbage {
			fmt.Fprintln(a.out, "  it goes with the next collection")
		}
	}
	return nil
}
