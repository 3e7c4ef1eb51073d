package scripts

import (
	"fmt"
	"slices"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berthd/berth/test/harness"
)

// cmdRegistry starts a registry for the rest of a script: REGISTRY is its host, CA the
// file with its authority's certificate.
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	refuse(ts, neg, len(args) == 0 || args[0] != "start", "registry start [password] [tls]")
	r, err := harness.StartRegistry(programs, harness.RegistryOptions{
		Password: slices.Contains(args, "password"), TLS: slices.Contains(args, "tls"),
	})
	ts.Check(err)
	ts.Defer(func() {
		if err := r.Close(); err != nil {
			ts.Logf("registry: %v", err)
		}
		if log := r.Log(); log != "" {
			ts.Logf("registry: %s", log)
		}
	})
	ts.Setenv("REGISTRY", r.Host)
	ts.Setenv("CA", r.CA)
	fmt.Fprintln(ts.Stdout(), r.URL)
}
