package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berthd/berth/api/services/images/v1"
	"github.com/berthd/berth/client"
)

// completeTimeout bounds how long a press of the tab key may take.
const completeTimeout = time.Second

// completion is what cobra calls to complete an argument.
type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeContainers completes ids of containers that have one of the statuses
// given, or any.
func (a *app) completeContainers(statuses ...string) completion {
	return a.complete(func(ctx context.Context, c *client.Client) []string {
		states, err := containerStates(ctx, c)
		if err != nil {
			return nil
		}
		var ids []string
		for _, s := range states {
			if len(statuses) == 0 || slices.Contains(statuses, s.Status) {
				ids = append(ids, s.ID)
			}
		}
		return ids
	})
}

// completeImages completes names of images.
func (a *app) completeImages() completion {
	return a.complete(func(ctx context.Context, c *client.Client) []string {
		list, err := c.Images().List(ctx, &images.ListImagesRequest{})
		if err != nil {
			return nil
		}
		var names []string
		for _, image := range list.GetImages() {
			names = append(names, familiar(image.GetName()))
		}
		return names
	})
}

// first completes only the first argument; what follows is the shell's.
func first(complete completion) completion {
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return complete(cmd, args, start)
	}
}

// complete completes words that the daemon knows and that are not there yet.
// Without a daemon there are none.
func (a *app) complete(list func(context.Context, *client.Client) []string) completion {
	return func(_ *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completeTimeout)
		defer cancel()
		c, err := client.Dial(ctx, a.address, client.Options{Namespace: a.namespace})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		var words []string
		for _, word := range list(ctx, c) {
			if strings.HasPrefix(word, start) && !slices.Contains(args, word) {
				words = append(words, word)
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
