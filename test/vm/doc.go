// Package vm holds the tests of what only a machine of its own can show: systemd as
// its first process, and berthd as a service of it. scripts/vm.sh runs them in the
// guest, after the suites that need no systemd.
package vm
