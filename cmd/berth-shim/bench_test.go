package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	task "github.com/berthd/berth/api/runtime/task/v3"
)

// BenchmarkLife compares a container's life through a running shim with what
// the OCI runtime alone takes for create, start and delete.
func BenchmarkLife(b *testing.B) {
	b.Run("shim", func(b *testing.B) {
		f := container(b, "true")
		for b.Loop() {
			f.run(&task.CreateTaskRequest{})
			f.wait("", 0)
			f.delete("")
		}
		f.shutdown()
	})
	b.Run("runc", func(b *testing.B) {
		f := container(b, "true")
		target := filepath.Join(f.bundle, "rootfs")
		if err := unix.Mount(rootfs, target, "", unix.MS_BIND, ""); err != nil {
			b.Fatal(err)
		}
		run := func(args ...string) {
			if out, err := exec.Command("runc", append([]string{"--root", f.ociRoot}, args...)...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		for b.Loop() {
			cmd := exec.Command("runc", "--root", f.ociRoot, "create", "--bundle", f.bundle, "--pid-file", filepath.Join(f.bundle, "pid"), f.id)
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			run("start", f.id)
			run("delete", "--force", f.id)
		}
		if err := unix.Unmount(target, 0); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkExec compares an exec through the shim with runc exec.
func BenchmarkExec(b *testing.B) {
	f := container(b, "sleep", "1000")
	f.run(&task.CreateTaskRequest{})
	b.Run("shim", func(b *testing.B) {
		i := 0
		for b.Loop() {
			id := fmt.Sprintf("e%d", i)
			i++
			f.exec(id, &task.ExecProcessRequest{}, "true")
			f.startTask(id)
			f.wait(id, 0)
			f.delete(id)
		}
	})
	b.Run("runc", func(b *testing.B) {
		for b.Loop() {
			if out, err := exec.Command("runc", "--root", filepath.Join(f.ociRoot, namespace), "exec", f.id, "true").CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	f.kill("", 9)
	f.wait("", 137)
	f.delete("")
	f.shutdown()
}
