package main

import (
	"fmt"
	"math/rand/v2"
)

// Words of which names are made: short, plain, and different in sound.
var (
	adjectives = []string{
		"able", "amber", "bold", "brave", "brisk", "calm", "clear", "coral", "eager", "early",
		"even", "fair", "fleet", "fresh", "gentle", "glad", "grand", "green", "happy", "hardy",
		"keen", "kind", "light", "lively", "loyal", "lucky", "mellow", "merry", "mild", "neat",
		"noble", "prime", "proud", "quick", "quiet", "ready", "rosy", "sharp", "silver", "solid",
		"steady", "still", "sunny", "swift", "tidy", "trim", "true", "vivid", "warm", "wise",
	}
	nouns = []string{
		"anchor", "barge", "bay", "beacon", "bow", "brig", "buoy", "canal", "canoe", "cape",
		"clipper", "coast", "compass", "cove", "crane", "current", "cutter", "deck", "delta", "dinghy",
		"dock", "ferry", "fjord", "galley", "gull", "harbor", "helm", "inlet", "jetty", "kayak",
		"keel", "ketch", "lagoon", "lantern", "mast", "mooring", "oar", "pier", "pilot", "port",
		"quay", "raft", "reef", "sail", "schooner", "shore", "sloop", "tide", "tug", "wharf",
	}
)

// randomName makes up an id for a container: "brisk-ketch-3f0a". Of 160 million
// it is one; should it be taken, the daemon says so.
func randomName() string {
	return fmt.Sprintf("%s-%s-%04x", adjectives[rand.IntN(len(adjectives))], nouns[rand.IntN(len(nouns))], rand.IntN(1<<16))
}
