// Package spec owns the OCI runtime spec that berth gives to a container: the
// defaults for Linux, what the image says, and what the user asked for, in this
// order. It starts nothing and talks to nobody; of the machine it reads only
// what Host and Root hold.
package spec
