package main

import (
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	task "github.com/berthd/berth/api/runtime/task/v3"
	"github.com/berthd/berth/api/types/runc"
	"github.com/berthd/berth/protobuf"
)

// bySystemd has the tests' containers in scopes that systemd makes, where it runs;
// see test/vm/suites.
var bySystemd = os.Getenv("BERTH_TEST_SYSTEMD") != ""

// cgroupsPath is what a test's spec has as such.
func cgroupsPath(id string) string {
	if bySystemd {
		return "system.slice:berth-shim-test:" + id
	}
	return "/berth-shim-test/" + id
}

// driver adds the option for systemd to a request, unless its options are not ours.
func driver(r *task.CreateTaskRequest) error {
	var options runc.Options
	name := string(options.ProtoReflect().Descriptor().FullName())
	switch {
	case !bySystemd, r.Options != nil && !strings.HasSuffix(r.Options.TypeUrl, name):
		return nil
	case r.Options != nil:
		if err := proto.Unmarshal(r.Options.Value, &options); err != nil {
			return err
		}
	}
	options.SystemdCgroup = true
	packed, err := protobuf.MarshalAny(&options)
	if err != nil {
		return err
	}
	r.Options = packed
	return nil
}

// groupsLeft finds the control groups of a test's container.
func groupsLeft(id string) []string {
	var left []string
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/berth-shim-test/" + id, "/sys/fs/cgroup/berth-shim-test/" + id,
		"/sys/fs/cgroup/system.slice/berth-shim-test-" + id + ".scope",
	} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	return left
}
