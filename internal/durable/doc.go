// Package durable owns the steps that make bytes and names survive: flush,
// rename, append. It is the only package that calls rename and sync, so the
// order of writes can be read, and broken by tests, in one place.
//
// Every function takes the name of the operation it is part of, such as
// "content.commit". Each of its steps is a fault point under that name:
// "content.commit.sync", "content.commit.rename", "content.commit.syncdir".
//
// There are two kinds of place (docs/adr/0001). What lies under the daemon's
// root must outlive the machine's power: use the plain functions. What lies
// under its state lives as long as the boot: use the Volatile ones, which
// replace whole files by rename and leave flushing to the kernel.
package durable
