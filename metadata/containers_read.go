package metadata

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Numbers of the fields of a container that filters read, beyond those that
// collection reads.
const (
	containerID      = 1
	containerImage   = 3
	containerRuntime = 4
	runtimeName      = 1
)

// rawContainer is a container's stored bytes as filters see them. A container
// is mostly its spec, which no filter reads: to find one among thousands
// without it takes a small part of the time.
type rawContainer []byte

// Field gives "id", "image", "runtime.name" and "labels.KEY".
func (c rawContainer) Field(path []string) (value string, present bool) {
	if path[0] == "labels" && len(path) > 1 {
		return c.label(strings.Join(path[1:], "."))
	}
	switch strings.Join(path, ".") {
	case "id":
		value = string(bytesField(c, containerID))
	case "image":
		value = string(bytesField(c, containerImage))
	case "runtime.name":
		value = string(bytesField(bytesField(c, containerRuntime), runtimeName))
	}
	return value, value != ""
}

func (c rawContainer) label(key string) (value string, present bool) {
	_ = eachField(c, func(number protowire.Number, entry []byte) error {
		if number == containerLabels && string(bytesField(entry, mapKey)) == key {
			value, present = string(bytesField(entry, mapValue)), true
		}
		return nil
	})
	return value, present
}

// bytesField gives a field of a message; nil if it is not there, or the message
// can't be read, which those say who decode it.
func bytesField(message []byte, field protowire.Number) (value []byte) {
	_ = eachField(message, func(number protowire.Number, v []byte) error {
		if number == field {
			value = v
		}
		return nil
	})
	return value
}

const (
	// decodeShare is how many rows make it worth to have another goroutine.
	decodeShare = 512
	maxDecoders = 4
)

// decodeAll gives the rows of a namespace that match, in byte order of their
// keys. Many of them are decoded on several processors.
func (t Table[M]) decodeAll(tx *Tx, ns string, match func(value []byte) bool) ([]M, error) {
	type pair struct{ key, value []byte }
	var found []pair
	for key, value := range tx.scan(t.bucket, path(ns, "")) {
		if match(value) {
			found = append(found, pair{key, value})
		}
	}
	out := make([]M, len(found))
	decode := func(from, to int) (err error) {
		for i := from; i < to && err == nil; i++ {
			out[i] = t.make()
			if proto.Unmarshal(found[i].value, out[i]) != nil {
				_, err = t.decode(ns, string(found[i].key[len(ns)+1:]), found[i].value)
			}
		}
		return err
	}
	workers := min(1+len(found)/decodeShare, maxDecoders, runtime.GOMAXPROCS(0))
	if workers == 1 {
		return out, decode(0, len(found))
	}
	errs := make([]error, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			debug.SetPanicOnFault(true)
			defer func() {
				if p := recover(); p != nil {
					errs[w] = fmt.Errorf("decode rows: panic: %v", p)
				}
			}()
			errs[w] = decode(w*len(found)/workers, (w+1)*len(found)/workers)
		})
	}
	group.Wait()
	return out, errors.Join(errs...)
}
