package protobuf_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	apievents "github.com/berthd/berth/api/events"
	_ "github.com/berthd/berth/api/runtime/bootstrap/v1"
	_ "github.com/berthd/berth/api/runtime/task/v3"
	forward "github.com/berthd/berth/api/services/events/ttrpc/v1"
	images "github.com/berthd/berth/api/services/images/v1"
	_ "github.com/berthd/berth/api/services/streaming/v1"
	_ "github.com/berthd/berth/api/types"
	"github.com/berthd/berth/api/types/runc"
	_ "github.com/berthd/berth/api/types/runtimeoptions/v1"
	_ "github.com/berthd/berth/api/types/transfer"
	"github.com/berthd/berth/protobuf"
)

type vectors struct {
	Events, Others []struct {
		Name       string
		Encoding   string
		AnyHex     string `json:"any_hex"`
		TypeURL    string `json:"type_url"`
		ValueHex   string `json:"value_hex"`
		ValueJSON  any    `json:"value_json"`
		Filterable map[string]string
	}
	Messages []struct{ Name, Message, Hex string }
}

func load(t *testing.T) vectors {
	data, err := os.ReadFile("testdata/any-encodings.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Events) < 20 || len(v.Others) < 20 || len(v.Messages) == 0 {
		t.Fatalf("vectors: only %d, %d, %d", len(v.Events), len(v.Others), len(v.Messages))
	}
	return v
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestAnyVectors unpacks and packs every example: type name and bytes must come
// out as they went in, and as an Any as the vector has it.
func TestAnyVectors(t *testing.T) {
	v := load(t)
	for _, c := range append(v.Events, v.Others...) {
		t.Run(c.Name, func(t *testing.T) {
			var outer anypb.Any
			if err := proto.Unmarshal(unhex(t, c.AnyHex), &outer); err != nil {
				t.Fatal(err)
			}
			if outer.TypeUrl != c.TypeURL {
				t.Errorf("type %q, want %q", outer.TypeUrl, c.TypeURL)
			}
			if c.Encoding == "json" {
				if _, err := protobuf.UnmarshalAny(&outer); !errdefs.IsNotFound(err) {
					t.Errorf("JSON unpacks as protobuf: %v", err)
				}
				return
			}
			m, err := protobuf.UnmarshalAny(&outer)
			if err != nil {
				t.Fatal(err)
			}
			packed, err := protobuf.MarshalAny(m)
			if err != nil {
				t.Fatal(err)
			}
			if packed.TypeUrl != c.TypeURL || !bytes.Equal(packed.Value, unhex(t, c.ValueHex)) {
				t.Errorf("packed %s %x, want %s %s", packed.TypeUrl, packed.Value, c.TypeURL, c.ValueHex)
			}
			prefixed := &anypb.Any{TypeUrl: "type.googleapis.com/" + c.TypeURL, Value: packed.Value}
			again, err := protobuf.UnmarshalAny(prefixed)
			if err != nil || !proto.Equal(again, m) {
				t.Errorf("with a prefix: %v, %v", again, err)
			}
			if !protobuf.Is(packed, m) || !protobuf.Is(prefixed, m) || protobuf.Is(packed, &runc.Options{}) != (c.Name == "runc Options") {
				t.Error("Is does not know the type")
			}
		})
	}
}

func TestMessageVectors(t *testing.T) {
	for _, c := range load(t).Messages {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(c.Message))
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		m, data := kind.New().Interface(), unhex(t, c.Hex)
		if err := proto.Unmarshal(data, m); err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%s: %x, %v, want %x", c.Name, again, err, data)
		}
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%s: unknown fields", c.Name)
		}
	}
}

// TestFieldVectors: exactly the listed paths can be read, of every event.
func TestFieldVectors(t *testing.T) {
	for _, c := range load(t).Events {
		m, err := protobuf.UnmarshalAny(&anypb.Any{TypeUrl: c.TypeURL, Value: unhex(t, c.ValueHex)})
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range c.Filterable {
			if got, ok := protobuf.Field(m, strings.Split(path, ".")); !ok || got != want {
				t.Errorf("%s: %s is %q, %v, want %q", c.Name, path, got, ok, want)
			}
		}
		for _, path := range paths(m.ProtoReflect().Descriptor(), "") {
			if _, ok := protobuf.Field(m, strings.Split(path, ".")); ok != (c.Filterable[path] != "") {
				t.Errorf("%s: %s can be read: %v", c.Name, path, ok)
			}
		}
	}
}

// paths lists the fields of a message and of the messages in it.
func paths(d protoreflect.MessageDescriptor, prefix string) []string {
	var list []string
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		name := prefix + string(f.Name())
		list = append(list, name)
		if f.Message() != nil {
			list = append(list, paths(f.Message(), name+".")...)
		}
	}
	return list
}

func TestField(t *testing.T) {
	options, err := protobuf.MarshalAny(&runc.Options{BinaryName: "/usr/bin/crun", SystemdCgroup: true})
	if err != nil {
		t.Fatal(err)
	}
	create := &apievents.ContainerCreate{Id: "c", Runtime: &apievents.ContainerCreate_Runtime{Name: "r", Options: options}}
	update := &apievents.ContainerUpdate{Labels: map[string]string{"a.b/c": "1", "": "empty key", "none": ""}}
	foreign := &apievents.ContainerCreate{Runtime: &apievents.ContainerCreate_Runtime{
		Options: &anypb.Any{TypeUrl: "x.y/Z", Value: []byte{0xff}},
	}}
	for _, c := range []struct {
		of    proto.Message
		path  string
		value string
		ok    bool
	}{
		{create, "runtime.options.binary_name", "/usr/bin/crun", true},
		{create, "runtime.options.systemd_cgroup", "true", true},
		{create, "runtime.options.no_pivot_root", "false", true},
		{create, "runtime.options.root", "", false},
		{create, "runtime.options", "", false},
		{create, "runtime", "", false},
		{create, "Id", "", false},
		{create, "id.x", "", false},
		{create, "", "", false},
		{foreign, "runtime.options.type_url", "", false},
		{update, "labels.a.b/c", "1", true},
		{update, "labels.", "empty key", true},
		{update, "labels.none", "", true},
		{update, "labels.a", "", false},
		{update, "labels", "", false},
		{(*apievents.TaskExit)(nil), "id", "", false},
		{nil, "id", "", false},
		{&images.ImageCreate{Name: "n"}, "name", "n", true},
		{&forward.ForwardRequest{}, "envelope.topic", "", false},
	} {
		value, ok := protobuf.Field(c.of, strings.Split(c.path, "."))
		if value != c.value || ok != c.ok {
			t.Errorf("%T %s: %q, %v; want %q, %v", c.of, c.path, value, ok, c.value, c.ok)
		}
	}
	if _, ok := protobuf.Field(create, nil); ok {
		t.Error("an empty path is present")
	}
}

func TestAnyErrors(t *testing.T) {
	for name, c := range map[string]struct {
		packed *anypb.Any
		is     func(error) bool
	}{
		"none":     {nil, errdefs.IsInvalidArgument},
		"no type":  {&anypb.Any{Value: []byte("x")}, errdefs.IsInvalidArgument},
		"foreign":  {&anypb.Any{TypeUrl: "a.b/C"}, errdefs.IsNotFound},
		"enum":     {&anypb.Any{TypeUrl: "containerd.v1.types.Status"}, errdefs.IsInvalidArgument},
		"bad data": {&anypb.Any{TypeUrl: "containerd.events.TaskExit", Value: []byte{0xff}}, errdefs.IsInvalidArgument},
	} {
		if m, err := protobuf.UnmarshalAny(c.packed); m != nil || !c.is(err) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
	for _, m := range []proto.Message{nil, (*apievents.TaskExit)(nil)} {
		if _, err := protobuf.MarshalAny(m); !errdefs.IsInvalidArgument(err) {
			t.Errorf("packing %T: %v", m, err)
		}
	}
	foreign := &anypb.Any{TypeUrl: "a.b/C", Value: []byte{0xff}}
	if same, err := protobuf.MarshalAny(foreign); err != nil || same != foreign {
		t.Errorf("an Any is packed as %v, %v", same, err)
	}
	if packed, err := protobuf.MarshalAny(&emptypb.Empty{}); err != nil || packed.TypeUrl != "google.protobuf.Empty" {
		t.Errorf("empty: %v, %v", packed, err)
	}
}

func TestJSONAny(t *testing.T) {
	for _, c := range load(t).Others {
		if c.Encoding != "json" || c.Name == "runtime-spec Spec" || c.Name == "runtime-spec Process" || c.Name == "runtime-spec Features" {
			continue // the order of their keys is that of Go structs we don't link here
		}
		packed, err := protobuf.MarshalJSONAny(c.TypeURL, c.ValueJSON)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := proto.Marshal(packed); hex.EncodeToString(got) != c.AnyHex {
			t.Errorf("%s: %x, want %s", c.Name, got, c.AnyHex)
		}
	}
	known := map[string]bool{
		protobuf.TypeSpec: true, protobuf.TypeProcess: true, protobuf.TypeLinuxResources: true,
		protobuf.TypeWindowsResources: true, protobuf.TypeFeatures: true,
	}
	for _, c := range load(t).Others {
		if known[c.TypeURL] != (c.Encoding == "json") {
			t.Errorf("%s: encoding %s", c.TypeURL, c.Encoding)
		}
	}
}

func TestTimes(t *testing.T) {
	if protobuf.Timestamp(time.Time{}) != nil || !protobuf.Time(nil).IsZero() {
		t.Error("the zero time is written")
	}
	at := time.Unix(1700000000, 123456789)
	if got := protobuf.Time(protobuf.Timestamp(at)); !got.Equal(at) || got.Location() != time.UTC {
		t.Errorf("%v, want %v", got, at)
	}
}

func FuzzUnmarshalAny(f *testing.F) {
	f.Add("containerd.events.TaskExit", []byte{0x0a, 1, 'c'}, "id")
	f.Add("containerd.events.ContainerCreate", []byte{}, "runtime.options.x")
	f.Fuzz(func(t *testing.T, url string, value []byte, path string) {
		m, err := protobuf.UnmarshalAny(&anypb.Any{TypeUrl: url, Value: value})
		if err != nil {
			return
		}
		protobuf.Field(m, strings.Split(path, "."))
	})
}
