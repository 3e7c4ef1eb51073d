package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
)

// Programs is where the programs under test lie.
type Programs struct {
	Dir    string // holds berthd, berth-shim, berth
	Image  string // OCI layout tar of busybox, named Image
	Module string // top directory of berth's module
}

// ImageName is the name of the image in Programs.Image.
const ImageName = "berth.test/busybox:latest"

// Build builds the programs and the test image into dir. The daemon and the
// command are built with the race detector, whose reports end up in the
// daemon's log, where Daemon.Stop looks for them. The shim is built as it is
// shipped. Where BERTH_TEST_PROGRAMS names a directory, what is there is used.
func Build(dir string) (*Programs, error) { return build(dir, true) }

// BuildShipped builds all programs as they are shipped, for tests that measure.
func BuildShipped(dir string) (*Programs, error) { return build(dir, false) }

// BuildFaults is Build with fault points in daemon and shim, which the
// environment variable BERTH_FAULTS arms.
func BuildFaults(dir string) (*Programs, error) { return build(dir, true, "-tags", "faults") }

func build(dir string, race bool, flags ...string) (*Programs, error) {
	if built := os.Getenv("BERTH_TEST_PROGRAMS"); built != "" && len(flags) == 0 { // on a machine without Go
		return &Programs{Dir: built, Image: filepath.Join(built, "image.tar"), Module: filepath.Dir(built)}, nil
	}
	_, here, _, _ := runtime.Caller(0)
	p := &Programs{Dir: dir, Image: filepath.Join(dir, "image.tar"), Module: filepath.Dir(filepath.Dir(filepath.Dir(here)))}
	type step struct {
		env  []string
		args []string
	}
	shipped := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}
	daemon := step{[]string{"CGO_ENABLED=0"}, append(slices.Clone(shipped), "-tags", "grpcnotrace", "./cmd/berthd", "./cmd/berth")}
	if race {
		daemon = step{[]string{"CGO_ENABLED=1"}, []string{"build", "-race", "-o", dir + "/", "./cmd/berthd", "./cmd/berth"}}
	}
	steps := []step{
		daemon,
		{[]string{"CGO_ENABLED=0"}, append(slices.Clone(shipped), "./cmd/berth-shim")},
		{nil, []string{"run", "./internal/testimage/mkimage", "-o", p.Image, "-name", ImageName}},
	}
	for _, step := range steps {
		args := append([]string{step.args[0]}, flags...)
		cmd := exec.Command("go", append(args, step.args[1:]...)...)
		cmd.Dir = p.Module
		cmd.Env = append(os.Environ(), step.env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %v: %w\n%s", step.args, err, out)
		}
	}
	return p, nil
}

// Path is the path of one of the programs.
func (p *Programs) Path(name string) string { return filepath.Join(p.Dir, name) }

// Tool is the path of a program that scripts/deps.sh put into .tools, such as
// "bin/ctr".
func (p *Programs) Tool(name string) string { return filepath.Join(p.Module, ".tools", name) }
