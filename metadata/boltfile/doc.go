// Package boltfile owns the question whether a bbolt file is whole: it reads
// every page that the last commit reaches, without mapping the file and without
// bbolt, so that no damage can do more than give an error. bbolt itself
// believes its pages, and panics, in part in goroutines of its own, or reads
// beyond its mapping, when they don't deserve it.
//
// The format, in the byte order of the machine (bbolt's internal/common):
//
//	page     id u64, flags u16, count u16, overflow u32 (pages that follow)
//	meta     page 0 or 1, the valid one with the higher txid counts: magic u32,
//	         version u32, page size u32, flags u32, root bucket, freelist u64,
//	         pages u64 (how many are in use), txid u64, fnv64a of these u64
//	bucket   root page u64 (0: a leaf page follows inline), sequence u64
//	branch   elements: pos u32, key size u32, page u64
//	leaf     elements: flags u32 (1: the value is a bucket), pos u32,
//	         key size u32, value size u32; pos counts from the element
//	freelist page ids u64; a count of 65535 means that the first is the count
package boltfile
