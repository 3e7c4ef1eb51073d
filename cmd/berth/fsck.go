package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// problem is one of fsck's, as JSON has it.
type problem struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Object    string `json:"object"`
	Text      string `json:"text"`
	Repaired  string `json:"repaired,omitempty"` // what was done about it; empty while it is open
	Failed    string `json:"failed,omitempty"`   // why it could not be repaired
	Note      bool   `json:"note,omitempty"`     // no damage: a reference to what is gone
}

// fsckFlags are what fsck is asked for.
type fsckFlags struct{ deep, repair, noFetch, notes bool }

func (a *app) fsckCommand() *cobra.Command {
	var f fsckFlags
	cmd := &cobra.Command{
		Use:   "fsck [--deep] [--repair]",
		Short: "Look for damage in the store, and repair it",
		Long: "Compare, in all namespaces, what the database says with what is on disk, and look whether images are whole and\n" +
			"unpacked. --deep reads every blob again and unpacks layers once more, to compare.\n\n" +
			"--repair removes what belongs to nothing, fetches blobs from where they came, unpacks layers again, and drops\n" +
			"what nothing can bring back; the database as it was is kept as meta.db.before-repair.\n\n" +
			"If the daemon can't open its database, run `berthd fsck` in place of it.\n\n" +
			"JSON: a list of objects with kind, namespace, object, text, repaired, failed, note.\n\n" +
			"Exit status: 1 if damage is left.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			err := a.withClient(func(ctx context.Context, c *client.Client) error { return a.fsck(ctx, c, f) })
			var away *client.DialError
			if errors.As(err, &away) {
				return hint(err, "if the daemon does not start, `berthd fsck` looks at the store in place of it")
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.deep, "deep", false, "read every blob, and compare layers with what they were unpacked from")
	flags.BoolVar(&f.repair, "repair", false, "put right what can be put right")
	flags.BoolVar(&f.noFetch, "no-fetch", false, "fetch nothing from registries to repair")
	flags.BoolVar(&f.notes, "notes", false, "also tell what refers to what is gone, which is no damage")
	return cmd
}

func (a *app) fsck(ctx context.Context, c *client.Client, f fsckFlags) error {
	stream, err := c.Maintenance().Check(ctx, &maintenance.CheckRequest{
		ReadContent: f.deep, Images: true, Repair: f.repair, NoFetch: f.noFetch,
	})
	if err != nil {
		return fmt.Errorf("check the store: %w", err)
	}
	all := []problem{}
	open, repaired := 0, 0
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("check the store: %w", err)
		}
		if p.GetNote() && !f.notes {
			continue
		}
		one := problem{p.GetKind(), p.GetNamespace(), p.GetObject(), p.GetText(), p.GetRepaired(), p.GetFailed(), p.GetNote()}
		switch {
		case one.Note:
		case one.Repaired != "":
			repaired++
		default:
			open++
		}
		all = append(all, one)
		if !a.json() {
			a.fsckLine(one)
		}
	}
	if a.json() {
		err = writeJSON(a.out, all)
	} else if open+repaired == 0 {
		_, err = fmt.Fprintln(a.out, "nothing is damaged")
	}
	if err != nil || open == 0 {
		return err
	}
	err = fmt.Errorf("damage: %d", open)
	if !f.repair {
		return hint(err, "`berth fsck --repair` puts right what can be; `berth backup FILE` saves the database first")
	}
	return err
}

// fsckLine says one problem.
func (a *app) fsckLine(p problem) {
	object := p.Object
	if p.Namespace != "" {
		object = p.Namespace + "/" + object
	}
	mark, end := "DAMAGE  ", ""
	switch {
	case p.Note:
		mark = "NOTE    "
	case p.Repaired != "":
		mark, end = "REPAIRED", ": "+p.Repaired
	case p.Failed != "":
		end = " (not repaired: " + p.Failed + ")"
	}
	fmt.Fprintf(a.out, "%s  %s %s: %s%s\n", mark, p.Kind, oneLine(object), oneLine(p.Text), oneLine(end))
}

// oneLine takes out of a text what would make more than one line of it.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}
