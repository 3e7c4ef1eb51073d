package clients

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// ctr is one ctr program on one daemon.
type ctr struct {
	t      *testing.T
	binary string
	daemon *harness.Daemon
}

// run runs ctr and gives its standard output; a failure ends the test.
func (c ctr) run(args ...string) string {
	c.t.Helper()
	out, errText, code := c.try(args...)
	if code != 0 {
		c.t.Fatalf("ctr %q: exit code %d\n%s%s", args, code, out, errText)
	}
	return out
}

// try runs ctr and gives its output and exit code.
func (c ctr) try(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, append([]string{"--address", c.daemon.Address, "--namespace", namespace}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("ctr %q: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// want checks that a text matches an expression.
func (c ctr) want(text, expression string) {
	c.t.Helper()
	if !regexp.MustCompile(expression).MatchString(text) {
		c.t.Fatalf("got\n%s\nwhich does not match %q", text, expression)
	}
}

// eventually runs ctr until its output matches.
func (c ctr) eventually(expression string, args ...string) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		out := c.run(args...)
		if regexp.MustCompile(expression).MatchString(out) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("ctr %q: got\n%s\nwhich never matched %q", args, out, expression)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestCtr(t *testing.T) {
	for name, tool := range map[string]string{"debian": "debian/usr/bin/ctr", "current": "bin/ctr"} {
		t.Run(name, func(t *testing.T) {
			binary := programs.Tool(tool)
			if _, err := os.Stat(binary); err != nil {
				t.Fatalf("%v: run scripts/deps.sh test", err)
			}
			c := ctr{t, binary, start(t)}
			c.version()
			c.images(name == "current")
			c.content()
			c.leases()
			c.namespaces()
			c.snapshots()
			c.foreground()
			c.background()
			c.events()
			c.cleanUp()
		})
	}
}

func (c ctr) version() {
	c.want(c.run("version"), `(?s)Client:.*Server:.*Version: +\S+.*UUID: +[0-9a-f-]{36}`)
	c.want(c.run("plugins", "ls"), `io.containerd.snapshotter.v1 +overlayfs .*ok`)
}

func (c ctr) images(transfers bool) {
	want := `unpacking`
	if transfers { // its last words, which it may drop, are of no interest
		want = `Importing`
	}
	c.want(c.run("images", "import", programs.Image), want)
	c.want(c.run("images", "ls"), regexp.QuoteMeta(harness.ImageName)+` +application/vnd\.oci`)
	c.want(c.run("images", "check"), regexp.QuoteMeta(harness.ImageName)+`.*complete.*true`)
	c.run("images", "tag", harness.ImageName, "berth.test/other:1")
	c.want(c.run("images", "ls", "-q"), `(?m)^berth.test/other:1$`)
	c.run("images", "rm", "berth.test/other:1")
}

func (c ctr) content() {
	digests := strings.Fields(c.run("content", "ls", "-q"))
	if len(digests) < 3 {
		c.t.Fatalf("content: %v", digests)
	}
	if out := c.run("content", "get", digests[0]); out == "" {
		c.t.Fatal("empty blob")
	}
	blob := filepath.Join(c.t.TempDir(), "blob")
	if err := os.WriteFile(blob, []byte("hello"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	c.run("content", "label", digests[0], "berth.test/seen=yes")
	c.want(c.run("content", "ls"), `berth.test/seen=yes`)
	if _, errs, code := c.try("content", "get", "sha256:"+strings.Repeat("0", 64)); code == 0 || !strings.Contains(errs, "not found") {
		c.t.Fatalf("unknown blob: code %d, %s", code, errs)
	}
}

func (c ctr) leases() {
	c.want(c.run("leases", "create", "--id", "held", "a=b"), `held`)
	c.want(c.run("leases", "ls"), `held.*a=b`)
	c.run("leases", "rm", "--sync", "held")
	if out := c.run("leases", "ls", "-q"); strings.Contains(out, "held") {
		c.t.Fatalf("still there: %s", out)
	}
}

func (c ctr) namespaces() {
	c.run("namespaces", "create", "spare", "k=v")
	c.want(c.run("namespaces", "ls"), `(?m)^spare +k=v`)
	c.run("namespaces", "label", "spare", "k=w")
	c.want(c.run("namespaces", "ls"), `(?m)^spare +k=w`)
	c.run("namespaces", "rm", "spare")
	if _, errs, code := c.try("namespaces", "rm", namespace); code == 0 || !strings.Contains(errs, "must be empty") && !strings.Contains(errs, "failed precondition") {
		c.t.Fatalf("a namespace in use was removed: %d %s", code, errs)
	}
}

func (c ctr) snapshots() {
	out := c.run("snapshots", "ls")
	found := regexp.MustCompile(`(?m)^(sha256:[0-9a-f]{64}) .*Committed`).FindStringSubmatch(out)
	if found == nil {
		c.t.Fatalf("no committed snapshot in\n%s", out)
	}
	out = c.run("snapshots", "prepare", "--mounts", "work", found[1])
	c.want(out, `overlay`)
	upper := regexp.MustCompile(`upperdir=([^,"\s]+)`).FindStringSubmatch(out)
	if upper == nil {
		c.t.Fatalf("no upper directory in\n%s", out)
	}
	if err := os.WriteFile(filepath.Join(upper[1], "made-by-hand"), []byte("and packed"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	// Compared with its parent, and with a snapshot that is named.
	c.want(c.run("snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "work"), `(?s)made-by-hand\x00.*and packed`)
	if packed := c.run("snapshots", "diff", found[1], "work"); !strings.HasPrefix(packed, "\x1f\x8b") {
		c.t.Fatalf("not compressed with gzip: %q", packed)
	}
	c.want(c.run("snapshots", "info", "work"), `"Kind": +"Active"`)
	c.run("snapshots", "usage", "work")
	c.run("snapshots", "commit", "done", "work")
	c.want(c.run("snapshots", "ls"), `(?m)^done .*Committed`)
	c.run("snapshots", "rm", "done")
	if _, errs, code := c.try("snapshots", "info", "done"); code == 0 || !strings.Contains(errs, "not found") {
		c.t.Fatalf("removed snapshot: code %d, %s", code, errs)
	}
}

func (c ctr) foreground() {
	id := mark(c.t) + "-fg"
	out, errs, code := c.try("run", "--rm", harness.ImageName, id, "sh", "-c", "echo hello; echo oops >&2; exit 5")
	if out != "hello\n" || !strings.Contains(errs, "oops") || code != 5 {
		c.t.Fatalf("run: %q, %q, code %d", out, errs, code)
	}
}

func (c ctr) background() {
	id := mark(c.t) + "-bg"
	c.run("run", "-d", harness.ImageName, id, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done")
	c.want(c.run("tasks", "ls"), regexp.QuoteMeta(id)+` +\d+ +RUNNING`)
	c.want(c.run("containers", "ls"), regexp.QuoteMeta(id)+` +`+regexp.QuoteMeta(harness.ImageName)+` +io.containerd.runc.v2`)
	c.want(c.run("tasks", "exec", "--exec-id", "e1", id, "echo", "from exec"), `^from exec\n$`)
	if _, _, code := c.try("tasks", "exec", "--exec-id", "e2", id, "sh", "-c", "exit 4"); code != 4 {
		c.t.Fatalf("exec: code %d", code)
	}
	c.want(c.run("tasks", "ps", id), `(?m)^\d+`)
	c.want(c.run("tasks", "metrics", id), `(?i)memory`)
	c.run("tasks", "pause", id)
	c.want(c.run("tasks", "ls"), regexp.QuoteMeta(id)+` +\d+ +PAUSED`)
	c.run("tasks", "resume", id)
	if _, errs, code := c.try("tasks", "delete", id); code == 0 || errs == "" {
		c.t.Fatal("a running task was deleted")
	}
	c.run("tasks", "kill", "--signal", "SIGTERM", id)
	c.eventually(regexp.QuoteMeta(id)+` +\d+ +STOPPED`, "tasks", "ls")
	// It warns of a status that is not 0; the current one makes it its own too.
	if out, errs, code := c.try("tasks", "delete", id); code != 9 && !strings.Contains(errs, "exit code 9") {
		c.t.Fatalf("delete tells %q, %q, exit code %d", out, errs, code)
	}
	c.run("containers", "delete", id)
}

// events runs a container while ctr subscribes, and looks for its life.
func (c ctr) events() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, "--address", c.daemon.Address, "events")
	log := &output{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	// The subscription stands when something of it is seen.
	until := func(topic string, do func()) {
		c.t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for !strings.Contains(log.String(), topic) {
			if time.Now().After(deadline) {
				c.t.Fatalf("no %s in\n%s", topic, log.String())
			}
			do()
			time.Sleep(50 * time.Millisecond)
		}
	}
	until("/namespaces/update", func() { c.run("namespaces", "label", namespace, "seen=yes") })
	id := mark(c.t) + "-ev"
	c.run("run", "--rm", harness.ImageName, id, "true")
	for _, topic := range []string{"/snapshot/prepare", "/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete"} {
		until(topic, func() {})
	}
}

func (c ctr) cleanUp() {
	c.run("images", "rm", "--sync", harness.ImageName)
	if out := c.run("content", "ls", "-q"); out != "" {
		c.t.Fatalf("content outlives its image:\n%s", out)
	}
	if out := c.run("snapshots", "ls"); strings.Contains(out, "sha256") {
		c.t.Fatalf("snapshots outlive their image:\n%s", out)
	}
}
