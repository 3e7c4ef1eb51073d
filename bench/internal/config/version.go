package config

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// Versioned is a config template for some versions of a daemon.
type Versioned struct {
	// Version is what the daemon's version starts with, such as "1.".
	Version  string `toml:"version"`
	Template string `toml:"config_template"`
}

// versionTimeout bounds the call of VersionCommand.
const versionTimeout = 10 * time.Second

var versionNumber = regexp.MustCompile(`\bv?(\d+\.\d+(\.\d+)?)`)

// choose asks the daemon's program for its version and takes the template that
// is meant for it, if one is.
func (d *Daemon) choose(vars map[string]string) error {
	if len(d.VersionCommand) == 0 || len(d.ConfigFor) == 0 {
		return nil
	}
	argv := expandAll(d.VersionCommand, vars)
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	found := versionNumber.FindSubmatch(out)
	if found == nil {
		return fmt.Errorf("%s: no version in %q", strings.Join(argv, " "), out)
	}
	for _, c := range d.ConfigFor {
		if strings.HasPrefix(string(found[1]), c.Version) {
			d.ConfigTemplate = c.Template
			return nil
		}
	}
	return nil
}
