// Package archtest holds the module to its architecture: which package may
// import which, and a few rules about what source may contain. It has only
// tests; each rule says why it is there, and a failure shows the chain of
// imports or the place that breaks it.
package archtest
