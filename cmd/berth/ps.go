package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/client"
)

// How much of a command a table shows, in characters: at most, and at least
// however narrow the terminal is: that is as wide as the head.
const (
	maxCommand = 40
	minCommand = len("COMMAND")
)

func (a *app) psCommand() *cobra.Command {
	var all, quiet bool
	cmd := &cobra.Command{
		Use:     "ps [-a] [-q]",
		Aliases: []string{"ls", "list"},
		Short:   "List containers",
		Long: "List the containers that run, or with -a all of them.\n\n" +
			"JSON: a list of objects with id, image, command, status (created, running, paused, pausing,\n" +
			"exited, unknown), pid, exit_status and exited_at if exited, with\n" +
			"exit_reason and oom_kills where there is something to tell, created_at, runtime, labels.",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.ps(ctx, c, all, quiet) })
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only the ids")
	return cmd
}

func (a *app) ps(ctx context.Context, c *client.Client, all, quiet bool) error {
	states, err := containerStates(ctx, c)
	if err != nil {
		return err
	}
	shown := []containerState{}
	for _, s := range states {
		if all || s.Status != statusExited && s.Status != statusCreated {
			shown = append(shown, s)
		}
	}
	switch {
	case quiet:
		for _, s := range shown {
			fmt.Fprintln(a.out, s.ID)
		}
		return nil
	case a.json():
		return writeJSON(a.out, shown)
	}
	return a.psTable(shown, columns(a.out))
}

// psTable writes the table. On a terminal, that is with columns above 0, the
// commands are cut so that its lines fit.
func (a *app) psTable(states []containerState, columns int) error {
	const command = 2
	rows := [][]string{{"CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS"}}
	for _, s := range states {
		rows = append(rows, []string{s.ID, or(familiar(s.Image), "-"), strings.Join(s.Command, " "), a.humanAge(s.CreatedAt), a.humanStatus(s)})
	}
	room := maxCommand
	if columns > 0 {
		room = columns
		for i := range rows[0] {
			if i != command {
				room -= width(rows, i)
			}
		}
		room = min(max(room-columnGap*(len(rows[0])-1), minCommand), maxCommand)
	}
	t := newTable(a.out, rows[0]...)
	for _, row := range rows[1:] {
		row[command] = shorten(row[command], room)
		t.row(row...)
	}
	return t.flush()
}

// humanStatus is a status for people: "exited (7) 3 minutes ago".
func (a *app) humanStatus(s containerState) string {
	if s.ExitStatus == nil {
		return s.Status
	}
	text := fmt.Sprintf("%s (%d)", s.Status, *s.ExitStatus)
	if s.OOMKills > 0 {
		text += " out of memory"
	}
	if s.ExitedAt != nil && s.ExitedAt.After(time.Unix(0, 0)) {
		text += " " + a.humanAge(*s.ExitedAt)
	}
	return text
}

// or gives the first text that is not empty.
func or(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}
