package services

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	apievents "github.com/berthd/berth/api/events"
	"github.com/berthd/berth/api/services/containers/v1"
	"github.com/berthd/berth/api/services/containers/v1/containersgrpc"
	forwardapi "github.com/berthd/berth/api/services/events/ttrpc/v1"
	"github.com/berthd/berth/api/services/events/ttrpc/v1/forwardttrpc"
	eventsapi "github.com/berthd/berth/api/services/events/v1"
	"github.com/berthd/berth/api/services/events/v1/eventsgrpc"
	"github.com/berthd/berth/api/types"
	"github.com/berthd/berth/events"
	"github.com/berthd/berth/protobuf"
)

// subscribe opens a stream and returns once it sees what is published.
func subscribe(ctx context.Context, t *testing.T, d *daemon, filters ...string) eventsgrpc.Events_SubscribeClient {
	t.Helper()
	s, err := eventsgrpc.NewEventsClient(d).Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: filters})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSubscribeFiltersAndSeesAllNamespaces(t *testing.T) {
	d := start(t)
	c := eventsgrpc.NewEventsClient(d)
	odd := &anypb.Any{TypeUrl: "nobody.knows/This", Value: []byte{1, 2, 3}}
	if _, err := c.Publish(in(t, "a"), &eventsapi.PublishRequest{Topic: "/before", Event: odd}); err != nil {
		t.Fatal(err)
	}
	all := subscribe(t.Context(), t, d)
	some := subscribe(t.Context(), t, d, `topic=="/two"`, `namespace==b,event.id==c9`)
	began := time.Now()
	for _, e := range []struct{ ns, topic string }{{"a", "/one"}, {"b", "/two"}, {"a", "/tasks/odd"}} {
		if _, err := c.Publish(in(t, e.ns), &eventsapi.PublishRequest{Topic: e.topic, Event: odd}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := containersgrpc.NewContainersClient(d).Create(in(t, "b"), &containers.CreateContainerRequest{Container: &containers.Container{
		Id: "c9", Runtime: &containers.Container_Runtime{Name: "r"}, Spec: spec(),
	}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a /one", "b /two", "a /tasks/odd", "b /containers/create"} {
		e, err := all.Recv()
		if err != nil || e.GetNamespace()+" "+e.GetTopic() != want {
			t.Fatalf("got %v, error %v, want %s", e, err, want)
		}
		if at := e.GetTimestamp().AsTime(); at.Before(began.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: at %v", want, at)
		}
		if want == "a /one" {
			if diff := cmp.Diff(odd, e.GetEvent(), protocmp.Transform()); diff != "" {
				t.Errorf("an unknown event did not pass unchanged: %s", diff)
			}
		}
	}
	for _, want := range []string{"b /two", "b /containers/create"} {
		if e, err := some.Recv(); err != nil || e.GetNamespace()+" "+e.GetTopic() != want {
			t.Errorf("filtered: got %v, error %v, want %s", e, err, want)
		}
	}
}

func TestBadEvents(t *testing.T) {
	d := start(t)
	c := eventsgrpc.NewEventsClient(d)
	odd := &anypb.Any{TypeUrl: "x.Y"}
	for name, call := range map[string]struct {
		err  error
		code codes.Code
	}{
		"no namespace": {lastErr(c.Publish(t.Context(), &eventsapi.PublishRequest{Topic: "/x", Event: odd})), codes.FailedPrecondition},
		"bad topic":    {lastErr(c.Publish(in(t, "a"), &eventsapi.PublishRequest{Topic: "x", Event: odd})), codes.InvalidArgument},
		"no event":     {lastErr(c.Publish(in(t, "a"), &eventsapi.PublishRequest{Topic: "/x"})), codes.InvalidArgument},
		"no envelope":  {lastErr(c.Forward(t.Context(), &eventsapi.ForwardRequest{})), codes.InvalidArgument},
		"envelope without namespace": {lastErr(c.Forward(in(t, "a"), &eventsapi.ForwardRequest{Envelope: &types.Envelope{
			Topic: "/x", Event: odd}})), codes.InvalidArgument},
	} {
		if status.Code(call.err) != call.code {
			t.Errorf("%s: %v, want %v", name, call.err, call.code)
		}
	}
	s, err := c.Subscribe(t.Context(), &eventsapi.SubscribeRequest{Filters: []string{"bad=="}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("bad filter: %v", err)
	}
}

// forward sends one event over the ttrpc socket, as a shim does.
func forward(ctx context.Context, socket, topic string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	event, err := protobuf.MarshalAny(&apievents.TaskOOM{ContainerId: "c1"})
	if err != nil {
		return err
	}
	_, err = forwardttrpc.NewEventsClient(client).Forward(ctx, &forwardapi.ForwardRequest{Envelope: &types.Envelope{
		Timestamp: timestamppb.New(time.Unix(1, 0)), Namespace: "ns", Topic: topic, Event: event,
	}})
	return err
}

func TestForwardFromShims(t *testing.T) {
	d := start(t)
	s := subscribe(t.Context(), t, d)
	if err := forward(t.Context(), d.socket+".ttrpc", "/tasks/oom"); err != nil {
		t.Fatal(err)
	}
	e, err := s.Recv()
	if err != nil || e.GetTopic() != "/tasks/oom" || e.GetNamespace() != "ns" || e.GetTimestamp().GetSeconds() != 1 {
		t.Errorf("got %v, error %v: an envelope is passed on as it is", e, err)
	}
	if err := forward(t.Context(), d.socket+".ttrpc", "no topic"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad topic: %v", err)
	}
}

// forwardEnv makes this test binary a client of the socket that it names.
const forwardEnv = "BERTH_TEST_FORWARD"

func TestMain(m *testing.M) {
	if socket := os.Getenv(forwardEnv); socket != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := forward(ctx, socket, "/tasks/forged")
		cancel()
		if err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process of another user or group can connect if the socket's mode lets it,
// but not say a word.
func TestForwardFromOthersIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	d := start(t)
	socket := d.socket + ".ttrpc"
	if err := os.Chmod(socket, 0o666); err != nil { // so that only the credentials can refuse
		t.Fatal(err)
	}
	if err := os.Chmod(d.socket[:strings.LastIndex(d.socket, "/")], 0o755); err != nil {
		t.Fatal(err)
	}
	self := readable(t)
	s := subscribe(t.Context(), t, d)
	for _, who := range []struct {
		name    string
		cred    syscall.Credential
		refused bool
	}{
		{"another user", syscall.Credential{Uid: 12345, Gid: 0}, true},
		{"another group", syscall.Credential{Uid: 0, Gid: 12345}, true},
		{"the same", syscall.Credential{}, false},
	} {
		cmd := exec.Command(self)
		cmd.Dir, cmd.Env = "/", append(os.Environ(), forwardEnv+"="+socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &who.cred}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if refused := errors.As(err, &exit) && exit.ExitCode() == 3; refused != who.refused || err != nil && !refused {
			t.Errorf("%s: %v (%s), want refused %v", who.name, err, out, who.refused)
		}
	}
	if !strings.Contains(d.log.String(), "refusing connection") {
		t.Error("the log does not tell of the refusals")
	}
	if e, err := s.Recv(); err != nil || e.GetTopic() != "/tasks/forged" {
		t.Errorf("got %v, error %v", e, err)
	}
	if _, err := eventsgrpc.NewEventsClient(d).Publish(in(t, "ns"), &eventsapi.PublishRequest{Topic: "/end", Event: &anypb.Any{TypeUrl: "x"}}); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Recv(); err != nil || e.GetTopic() != "/end" {
		t.Errorf("what others sent came through: %v, error %v", e, err)
	}
}

// readable copies this test binary to where every user may run it.
func readable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "berth-services")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/test", data, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + "/test"
}

// TestSubscribersCatchUp: a daemon that follows another one tells what happened to
// tasks before anybody could subscribe, and nothing else.
func TestSubscribersCatchUp(t *testing.T) {
	dir := t.TempDir()
	odd := &apievents.TaskExit{ContainerId: "c", ExitStatus: 3}
	earlier, err := events.Open(events.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := earlier.Publish(t.Context(), "a", "/tasks/told-before", odd); err != nil {
		t.Fatal(err)
	}
	if err := earlier.Close(); err != nil {
		t.Fatal(err)
	}
	journal, err := events.Open(events.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { journal.Close() })
	d := start(t, func(c *Config) { c.Journal = journal })
	for _, topic := range []string{"/tasks/exit", "/images/create"} {
		if err := journal.Publish(t.Context(), "a", topic, odd); err != nil {
			t.Fatal(err)
		}
	}
	all := subscribe(t.Context(), t, d)
	none := subscribe(t.Context(), t, d, "namespace==b")
	if err := journal.Publish(t.Context(), "b", "/images/delete", odd); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[eventsgrpc.Events_SubscribeClient][]string{all: {"/tasks/exit", "/images/delete"}, none: {"/images/delete"}} {
		for _, topic := range want {
			if e, err := s.Recv(); err != nil || e.GetTopic() != topic {
				t.Errorf("%v, %v, want %s", e, err, topic)
			}
		}
	}
}
