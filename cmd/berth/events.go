package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	_ "github.com/berthd/berth/api/events" // so that events of these types can be decoded
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/client"
	"github.com/berthd/berth/protobuf"
)

// event is a line in the JSON of events.
type event struct {
	Time      time.Time       `json:"time"`
	Namespace string          `json:"namespace"`
	Topic     string          `json:"topic"`
	Type      string          `json:"type"`
	Event     json.RawMessage `json:"event"`
}

func (a *app) eventsCommand() *cobra.Command {
	var filters []string
	var allNamespaces bool
	cmd := &cobra.Command{
		Use:   "events [--filter FILTER]...",
		Short: "Print what happens from now on, until ^C",
		Long: "Print what happens in the namespace from now on, until ^C.\n\n" +
			"A filter is selectors parted by commas, all of which must match; of several filters one has to.\n" +
			"Fields: topic, namespace, and those of the event, as event.container_id.\n\n" +
			"JSON: one object a line with time, namespace, topic, type, event.",
		Example:           `  berth events --filter 'topic=="/tasks/exit",event.container_id==web' --filter 'topic~=|^/images/|'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error {
				if !allNamespaces {
					filters = within(c.Namespace(), filters)
				}
				return a.events(ctx, c, filters)
			})
		},
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only what matches")
	cmd.Flags().BoolVarP(&allNamespaces, "all-namespaces", "A", false, "of every namespace")
	return cmd
}

// within narrows filters to a namespace.
func within(namespace string, filters []string) []string {
	own := "namespace==" + strconv.Quote(namespace)
	if len(filters) == 0 {
		return []string{own}
	}
	narrowed := make([]string, len(filters))
	for i, filter := range filters {
		narrowed[i] = own
		if filter != "" {
			narrowed[i] += "," + filter
		}
	}
	return narrowed
}

func (a *app) events(ctx context.Context, c *client.Client, filters []string) error {
	for envelope, err := range c.Subscribe(ctx, filters...) {
		if err != nil {
			return err
		}
		if err := a.writeEvent(envelope); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) writeEvent(envelope *types.Envelope) error {
	e := event{
		Time:      protobuf.Time(envelope.GetTimestamp()),
		Namespace: envelope.GetNamespace(),
		Topic:     envelope.GetTopic(),
		Type:      envelope.GetEvent().GetTypeUrl(),
		Event:     json.RawMessage("null"),
	}
	if decoded := decodeAny(envelope.GetEvent()); decoded != nil {
		e.Event = decoded.Value
	}
	if a.json() {
		return json.NewEncoder(a.out).Encode(e)
	}
	_, err := fmt.Fprintf(a.out, "%s  %s  %s  %s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), e.Namespace, e.Topic, e.Event)
	return err
}
