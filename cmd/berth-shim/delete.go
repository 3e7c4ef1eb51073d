package main

import (
	"context"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/berthd/berth/shim"
)

// deleteTime bounds delete. Daemons give it 5 s; a runtime that hangs must not
// use it all.
const deleteTime = 30 * time.Second

// remove cleans up after a dead shim and prints how init ended.
func remove(a arguments) error {
	ctx, cancel := context.WithTimeout(context.Background(), deleteTime)
	defer cancel()
	log, _ := newLog(a.debug)
	if err := dropSocket(a.bundle); err != nil {
		log.Warn("socket of a dead shim not removed", "error", err)
	}
	answer, err := shim.Cleanup(ctx, a.namespace, a.id, a.bundle, shim.Config{Namespace: a.namespace, Log: log})
	if err != nil {
		return err
	}
	data, err := proto.Marshal(answer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}
