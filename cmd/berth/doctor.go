package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/berth/maintenance/v1"
	"github.com/berthd/berth/client"
)

// finding is one of the doctor's, as JSON has it.
type finding struct {
	Kind      string     `json:"kind"`
	Namespace string     `json:"namespace"`
	Object    string     `json:"object"`
	Text      string     `json:"text"`
	Since     *time.Time `json:"since,omitempty"`    // when it was first seen; of what the store has it is not known
	Repaired  string     `json:"repaired,omitempty"` // what was done about it; empty while it is open
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what is not as it has to be",
		Long: "Compare, in all namespaces, tasks with their processes, control groups and records, what tasks leave with\n" +
			"what there is, and the store with the disk. What can be proved to be wrong the daemon repairs by itself, now and\n" +
			"every 30 seconds; the last repairs are listed, too. Nothing is killed.\n\n" +
			"Exit status: 1 if something is open.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				a.format = formatJSON
			}
			return a.withClient(a.doctor)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "output for machines, as --format json")
	return cmd
}

func (a *app) doctor(ctx context.Context, c *client.Client) error {
	found, err := examine(ctx, c)
	if err != nil {
		return err
	}
	open := 0
	for _, f := range found {
		if f.Repaired == "" {
			open++
		}
	}
	if a.json() {
		err = writeJSON(a.out, found)
	} else {
		err = a.doctorTable(found)
	}
	if err == nil && open > 0 {
		err = fmt.Errorf("problems: %d", open)
	}
	return err
}

// examine asks the daemon for all that is wrong.
func examine(ctx context.Context, c *client.Client) ([]finding, error) {
	found := []finding{}
	reply, err := c.Maintenance().Inspect(ctx, &maintenance.InspectRequest{})
	if err != nil {
		return nil, fmt.Errorf("inspect tasks: %w", err)
	}
	for _, f := range reply.GetFindings() {
		since := time.Unix(0, f.GetSinceNs())
		found = append(found, finding{f.GetKind(), f.GetNamespace(), f.GetObject(), f.GetText(), &since, f.GetRepaired()})
	}
	check, err := c.Maintenance().Check(ctx, &maintenance.CheckRequest{})
	if err != nil {
		return nil, fmt.Errorf("check the store: %w", err)
	}
	for {
		p, err := check.Recv()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("check the store: %w", err)
		}
		found = append(found, finding{Kind: p.GetKind(), Namespace: p.GetNamespace(), Object: p.GetObject(), Text: p.GetText()})
	}
}

func (a *app) doctorTable(found []finding) error {
	if len(found) == 0 {
		_, err := fmt.Fprintln(a.out, "nothing is wrong")
		return err
	}
	for _, f := range found {
		object := f.Object
		if f.Namespace != "" {
			object = f.Namespace + "/" + object
		}
		mark := "PROBLEM "
		if f.Repaired != "" {
			mark = "REPAIRED"
		}
		fmt.Fprintf(a.out, "%s  %s %s: %s", mark, f.Kind, object, f.Text)
		if f.Repaired != "" {
			fmt.Fprintf(a.out, ": %s", f.Repaired)
		}
		if f.Since != nil {
			fmt.Fprintf(a.out, " (since %s)", f.Since.Format(time.DateTime))
		}
		fmt.Fprintln(a.out)
	}
	return nil
}
