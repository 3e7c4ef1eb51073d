// Package remotes owns the way to registries: where the images of a name are to be
// found, with which keys and under which rules.
//
// What an administrator says about registries stands in a directory with a
// directory for each of them, as containerd and docker have it. It is read anew for
// each reference, so a change needs no restart.
package remotes
