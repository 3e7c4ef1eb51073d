package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/internal/version"
	"github.com/berthd/berth/runtime/oci"
	"github.com/berthd/berth/shim"
)

// infoTime bounds -info.
const infoTime = 5 * time.Second

// runtimeName is the name under which other daemons find this shim, installed as
// containerd-shim-berth-v2.
const runtimeName = "io.containerd.berth.v2"

// typeFeatures is the type of a runtime-spec Features as JSON.
const typeFeatures = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// info tells about the shim and the OCI runtime that the options on standard
// input choose. It prints a containerd.types.RuntimeInfo.
func info() error {
	data, err := io.ReadAll(io.LimitReader(os.Stdin, maxInput))
	if err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	build := version.Build()
	answer := &types.RuntimeInfo{
		Name:    runtimeName,
		Version: &types.RuntimeVersion{Version: version.String(), Revision: build.Revision},
	}
	var options runc.Options
	if len(data) > 0 {
		var given anypb.Any
		if err := proto.Unmarshal(data, &given); err != nil {
			return fmt.Errorf("standard input is no google.protobuf.Any: %w", err)
		}
		url := given.GetTypeUrl()
		if name := url[strings.LastIndexByte(url, '/')+1:]; name != string(options.ProtoReflect().Descriptor().FullName()) {
			return fmt.Errorf("runtime options are a %q, not a %s", name, options.ProtoReflect().Descriptor().FullName())
		}
		if err := proto.Unmarshal(given.GetValue(), &options); err != nil {
			return fmt.Errorf("runtime options: %w", err)
		}
		answer.Options = &given
	}
	binary := options.GetBinaryName()
	if binary == "" {
		binary = os.Getenv(shim.BinaryVariable)
	}
	ctx, cancel := context.WithTimeout(context.Background(), infoTime)
	defer cancel()
	features, err := (&oci.CLI{Binary: binary}).Features(ctx)
	if err != nil {
		return err
	}
	if features != nil {
		answer.Features = &anypb.Any{TypeUrl: typeFeatures, Value: features}
	}
	if data, err = proto.Marshal(answer); err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}
