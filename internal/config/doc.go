// Package config owns the daemon's configuration: one struct, its defaults, its
// TOML file and the check of both. It reads no environment and changes nothing
// on the machine.
package config
