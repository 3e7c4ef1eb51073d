package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berthd/berth/client"
	"github.com/berthd/berth/protobuf"
)

// containerDetail is a container in the output of inspect.
type containerDetail struct {
	containerState
	UpdatedAt      time.Time         `json:"updated_at"`
	RuntimeOptions *typed            `json:"runtime_options,omitempty"`
	Snapshotter    string            `json:"snapshotter"`
	SnapshotKey    string            `json:"snapshot_key"`
	Sandbox        string            `json:"sandbox,omitempty"`
	Extensions     map[string]*typed `json:"extensions,omitempty"`
	Spec           *specs.Spec       `json:"spec"`
}

// typed is an Any in JSON: its value decoded where its type is known, else as
// base64.
type typed struct {
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Tell everything about containers, as JSON",
		Long: "Print a JSON list of objects: those of ps, and updated_at, runtime_options, snapshotter, snapshot_key,\n" +
			"sandbox, extensions, and spec, the OCI runtime spec.",
		Args:              minArgs(1, "container"),
		ValidArgsFunction: a.completeContainers(),
		RunE: func(_ *cobra.Command, refs []string) error {
			return a.withClient(func(ctx context.Context, c *client.Client) error { return a.inspect(ctx, c, refs) })
		},
	}
}

func (a *app) inspect(ctx context.Context, c *client.Client, refs []string) error {
	details := []containerDetail{}
	var failed []error
	for _, ref := range refs {
		detail, err := inspectOne(ctx, c, ref)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		details = append(details, *detail)
	}
	return errors.Join(writeJSON(a.out, details), errors.Join(failed...))
}

func inspectOne(ctx context.Context, c *client.Client, ref string) (*containerDetail, error) {
	container, err := findContainer(ctx, c, ref)
	if err != nil {
		return nil, err
	}
	t, err := taskState(ctx, c, container.ID())
	if err != nil {
		return nil, err
	}
	record := container.Record
	detail := &containerDetail{
		containerState: stateOf(record, t),
		UpdatedAt:      protobuf.Time(record.GetUpdatedAt()),
		RuntimeOptions: decodeAny(record.GetRuntime().GetOptions()),
		Snapshotter:    record.GetSnapshotter(),
		SnapshotKey:    record.GetSnapshotKey(),
		Sandbox:        record.GetSandbox(),
	}
	detail.ended(endings(ctx, c, t)[container.ID()])
	detail.Spec = detail.spec
	for key, value := range record.GetExtensions() {
		if detail.Extensions == nil {
			detail.Extensions = map[string]*typed{}
		}
		detail.Extensions[key] = decodeAny(value)
	}
	return detail, nil
}

// decodeAny turns an Any into JSON; nil stays nil.
func decodeAny(packed *anypb.Any) *typed {
	if packed == nil {
		return nil
	}
	t := &typed{Type: packed.GetTypeUrl()}
	if m, err := protobuf.UnmarshalAny(packed); err == nil {
		// protojson's spaces differ from build to build, on purpose.
		var compact bytes.Buffer
		text, err := (protojson.MarshalOptions{UseProtoNames: true}).Marshal(m)
		if err == nil && json.Compact(&compact, text) == nil {
			t.Value = compact.Bytes()
			return t
		}
	}
	if json.Valid(packed.GetValue()) {
		t.Value = packed.GetValue()
		return t
	}
	t.Value, _ = json.Marshal(base64.StdEncoding.EncodeToString(packed.GetValue())) // a text always encodes
	return t
}
