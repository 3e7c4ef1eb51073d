package archtest

// module is what our own import paths start with.
const module = "github.com/berthd/berth"

// A pattern is an import path; with "/..." it also means all below it. Those of
// this module are written without the module's name, as "./events".

// floors are the storeys of the house, from the ground up. A package may import
// what is below it, and what is beside it only if it is part of the same thing
// or if sideways says so.
var floors = [][]string{
	{"./api/...", "./metadata/rows", "./internal/fault"},
	{"./internal/...", "./protobuf"},
	{"./content/...", "./snapshots/...", "./events", "./remotes/...", "./diff", "./runtime/oci", "./runtime/spec", "./runtime/cdi", "./runtime/record", "./metadata/boltfile"},
	{"./metadata", "./runtime"},
	{"./images", "./gc", "./restart", "./shim"},
	{"./services", "./cri", "./client/..."},
	{"./cmd/..."},
}

// sideways are the imports within a floor that are meant to be.
var sideways = []struct{ from, to, reason string }{
	{"./api/...", "./api/...", "stubs import messages, messages import types"},
	{"./metadata/rows", "./api/...", "rows hold wire messages"},
	{"./internal/...", "./internal/...", "tools are small and build on each other"},
	{"./protobuf", "./internal/...", "a tool among tools"},
	{"./internal/...", "./protobuf", "a tool among tools"},
	{"./snapshots/...", "./snapshots", "drivers and their suite implement what it declares"},
	{"./snapshots/proxytest", "./snapshots/...", "it stands on the suite"},
	{"./content/...", "./content", "the suite tests what it declares"},
	{"./remotes/...", "./remotes", "where credentials are kept is a part of the way to registries"},
}

// never lists what a package must not reach, by however long a chain. What is
// excepted may be reached, with what it needs itself.
var never = []struct {
	from   []string
	to     []string
	except []string
	reason string
}{
	{
		from:   []string{"./shim/...", "./cmd/berth-shim"},
		to:     []string{"google.golang.org/grpc/..."},
		except: []string{"google.golang.org/grpc/codes", "google.golang.org/grpc/status"},
		reason: "there is a shim for every container, so its size counts; ttrpc needs only codes and status",
	},
	{
		from: []string{"./shim/...", "./cmd/berth-shim"},
		to: []string{
			"go.etcd.io/bbolt/...", "net/http/...", "crypto/tls", "./metadata/...", "./services/...", "./content/...",
			"./snapshots/...", "./images/...", "./events/...", "./internal/config", "./internal/obs", "./runtime/cdi", "./remotes/...", "oras.land/...", "github.com/spf13/cobra",
			"github.com/prometheus/...", "github.com/pelletier/...",
		},
		reason: "there is a shim for every container, so its size counts, and it must not need what the daemon keeps",
	},
	{
		from:   []string{"./client/...", "./cmd/berth"},
		to:     []string{"go.etcd.io/bbolt/...", "./metadata/...", "./services/...", "./shim/...", "./runtime", "./content/...", "./snapshots/..."},
		reason: "a client sees the daemon through its API alone",
	},
	{
		from:   []string{"./cmd/berthd"},
		to:     []string{"./remotes/dockerconfig", "oras.land/oras-go/v2/registry/remote/credentials"},
		reason: "helpers that keep passwords are programs, which the daemon doesn't run on account of an image",
	},
	{
		from:   []string{"./remotes"},
		to:     []string{"oras.land/oras-go/v2/registry/remote/credentials", "./content/...", "./snapshots/...", "./events"},
		reason: "helpers that keep passwords are programs; the daemon runs none of them, and is told by its caller as whom it comes",
	},
	{
		from:   []string{"./runtime"},
		to:     []string{"./shim/...", "./metadata/...", "./services/..."},
		reason: "the daemon's side of shims knows them by their protocol, and containers by what it is given",
	},
	{
		from:   []string{"./api/berth/..."},
		to:     []string{"./api/events", "./api/runtime/...", "./api/services/...", "./api/types/..."},
		reason: "our own services can be linked beside containerd's client, which registers the same names as the rest of api",
	},
	{
		from:   []string{"./..."},
		to:     []string{"github.com/containerd/containerd/..."},
		reason: "its API registers the same protobuf names as ours, so one program can't link both",
	},
	{
		from:   []string{"./..."},
		to:     []string{"testing"},
		reason: "what only tests need is not linked into programs",
	},
}

// testOnly are packages that exist to be imported by tests. Rules on what gets
// into programs don't hold for them, and programs don't import them.
var testOnly = []string{
	"./internal/leak", "./internal/archtest", "./internal/testimage/...", "./internal/testregistry", "./internal/powercut",
	"./internal/needed",
	"./client/fakedaemon",
	"./content/contenttest", "./snapshots/snapshottest", "./snapshots/proxytest",
}

// only lists packages that few may import directly.
var only = []struct {
	what   []string
	except []string
	by     []string
	reason string
}{
	{
		what:   []string{"go.etcd.io/bbolt/...", "./metadata/rows", "./metadata/boltfile"},
		by:     []string{"./metadata"},
		reason: "one package orders rows against blobs and snapshots",
	},
	{
		what:   []string{"google.golang.org/grpc/..."},
		except: []string{"google.golang.org/grpc/codes", "google.golang.org/grpc/status"},
		by:     []string{"./api/...", "./services/...", "./client/...", "./cri/...", "./snapshots/proxy", "./snapshots/proxytest", "./cmd/..."},
		reason: "gRPC is a surface; what is below speaks Go and wire messages",
	},
	{
		what:   []string{"./snapshots/overlay", "./snapshots/native", "./snapshots/erofs", "./snapshots/proxy"},
		by:     []string{"./cmd/berthd"},
		reason: "drivers are chosen where the object graph is built; all else knows the interface",
	},
	{
		what:   testOnly,
		by:     testOnly,
		reason: "it is for tests",
	},
}
