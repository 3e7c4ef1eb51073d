package testimage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BusyboxPath is where Debian's package busybox-static has it.
const BusyboxPath = "/bin/busybox"

// applets are the names under which busybox can be called in the image.
const applets = `[ [[ ash awk base64 basename cat chgrp chmod chown chroot clear cmp cp cut date dd df diff dirname dmesg du echo egrep
env expr factor false fgrep find fold free grep groups gunzip gzip head hexdump hostname id ifconfig ip kill killall
less link ln logger ls md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nproc nslookup od paste pidof ping
printf ps pwd readlink realpath reset rev rm rmdir route sed seq setsid sh sha256sum sha512sum shuf sleep sort stat stty
sync tac tail tar tee test time timeout top touch tr true truncate tty umount uname uniq unlink unzip uptime usleep vi
watch wc wget which whoami xargs xxd yes zcat`

// Busybox is the image of a static busybox: two layers, the program with its
// links, and what else a root file system has.
func Busybox(name, path string) (Image, error) {
	program, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{}, fmt.Errorf("%w: install the package busybox-static, or name a static busybox", err)
	}
	if err != nil {
		return Image{}, err
	}
	files := []File{{Name: "bin/"}, {Name: "bin/busybox", Body: string(program), Mode: 0o755}}
	for _, applet := range strings.Fields(applets) {
		files = append(files, File{Name: "bin/" + applet, Hard: "bin/busybox", Mode: 0o755})
	}
	files = append(files, File{Name: "usr/"}, File{Name: "usr/bin/"}, File{Name: "usr/bin/env", Link: "../../bin/env"})
	base, err := Layer(files...)
	if err != nil {
		return Image{}, err
	}
	rest, err := Layer(
		File{Name: "dev/"},
		File{Name: "etc/"},
		File{Name: "etc/group", Body: "root:x:0:\ndaemon:x:1:\nusers:x:100:user\nuser:x:1000:\nnogroup:x:65534:\n"},
		File{Name: "etc/hosts", Body: "127.0.0.1\tlocalhost\n::1\tlocalhost\n"},
		File{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n" +
			"user:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		File{Name: "home/"},
		File{Name: "home/user/", Uid: 1000},
		File{Name: "proc/", Mode: 0o555},
		File{Name: "root/", Mode: 0o700},
		File{Name: "sys/", Mode: 0o555},
		File{Name: "tmp/", Mode: 0o1777},
		File{Name: "var/"},
		File{Name: "var/tmp/", Mode: 0o1777},
	)
	if err != nil {
		return Image{}, err
	}
	return Image{
		Name: name,
		Config: ocispec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"sh"},
		},
		Layers: [][]byte{base, rest},
	}, nil
}
