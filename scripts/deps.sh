#!/usr/bin/env bash
# Installs what is missing on a Debian machine: "run" is what berth needs to run
# containers and show itself, "test" is what the tests need beyond that, "vm" what
# the tests in a virtual machine need, "bench" what the benchmark needs beyond "run",
# "clients" what takes long to build for tests of other clients.
# Says what it does; does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

CTR_VERSION=v2.3.4
BUILDKIT_VERSION=v0.29.0
STATICCHECK_VERSION=v0.8.2

say() { echo "deps: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }

if ! have go; then
	echo "deps: go is missing; berth needs Go $(sed -n 's/^go //p' go.mod) or newer" >&2
	exit 1
fi

updated=
apt() {
	[ "$(id -u)" = 0 ] || { echo "deps: $* missing, and only root can install it" >&2; exit 1; }
	have apt-get || { echo "deps: $* missing; install it with this system's package manager" >&2; exit 1; }
	if [ -z "$updated" ]; then
		say "apt-get update"
		apt-get -qq update
		updated=1
	fi
	say "apt-get install $*"
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null
}

# The images of demo and tests hold busybox alone, so it has to be a static one.
static_busybox() {
	have busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1
}

run() {
	have runc || apt runc
	static_busybox || apt busybox-static
}

# Debian's containerd, its ctr and its shim come in one package, whose daemon would
# be started on installation. So what is not installed is taken out of the package.
debian_containerd() {
	local dir=$PWD/.tools/debian program missing=
	mkdir -p "$dir/usr/bin"
	for program in ctr containerd containerd-shim-runc-v2; do
		[ -x "$dir/usr/bin/$program" ] && continue
		if have "$program"; then
			ln -sf "$(command -v "$program")" "$dir/usr/bin/$program"
		else
			missing="$missing $program"
		fi
	done
	[ -n "$missing" ] || return 0
	[ -n "$updated" ] || { apt-get -qq update; updated=1; }
	say "taking$missing out of the package containerd"
	local from
	from=$(mktemp -d "$dir/package.XXXXXX")
	(cd "$from" && apt-get -qq download containerd && dpkg-deb -x containerd_*.deb .)
	for program in $missing; do
		install -m 0755 "$from/usr/bin/$program" "$dir/usr/bin/$program"
	done
	rm -rf "$from"
}

# So with Debian's docker-registry: its package would start one for all to reach.
debian_registry() {
	local dir=$PWD/.tools/debian from
	mkdir -p "$dir/usr/bin"
	have docker-registry || [ -x "$dir/usr/bin/docker-registry" ] && return
	[ -n "$updated" ] || { apt-get -qq update; updated=1; }
	say "taking docker-registry out of its package"
	from=$(mktemp -d "$dir/package.XXXXXX")
	(cd "$from" && apt-get -qq download docker-registry && dpkg-deb -x docker-registry_*.deb .)
	install -m 0755 "$from/usr/bin/docker-registry" "$dir/usr/bin/docker-registry"
	rm -rf "$from"
}

# And with docker, whose daemon runs its containers by ours in a test.
debian_docker() {
	local dir=$PWD/.tools/debian from
	mkdir -p "$dir/usr/bin"
	ldconfig -p | grep -q 'libdevmapper\.so\.1\.02\.1' || apt libdevmapper1.02.1
	[ -x "$dir/usr/bin/dockerd" ] && [ -x "$dir/usr/bin/docker" ] && return
	[ -n "$updated" ] || { apt-get -qq update; updated=1; }
	say "taking dockerd and docker out of the package docker.io"
	from=$(mktemp -d "$dir/package.XXXXXX")
	(cd "$from" && apt-get -qq download docker.io && dpkg-deb -x docker.io_*.deb .)
	install -m 0755 "$from/usr/sbin/dockerd" "$from/usr/bin/docker" "$dir/usr/bin/"
	rm -rf "$from"
}

bench() {
	debian_registry
}

tests() {
	have gcc || apt gcc libc6-dev
	have crun || apt crun
	have skopeo || apt skopeo
	have umoci || apt umoci
	have ip || apt iproute2
	have mkfs.erofs || apt erofs-utils
	debian_containerd
	debian_registry
	debian_docker
	mkdir -p .tools/bin
	if [ ! -x .tools/bin/ctr ]; then
		say "go install ctr $CTR_VERSION"
		GOFLAGS= CGO_ENABLED=0 GOBIN=$PWD/.tools/bin go install github.com/containerd/containerd/v2/cmd/ctr@$CTR_VERSION
	fi
	if [ ! -x .tools/bin/staticcheck ]; then
		say "go install staticcheck $STATICCHECK_VERSION"
		GOFLAGS= GOBIN=$PWD/.tools/bin go install honnef.co/go/tools/cmd/staticcheck@$STATICCHECK_VERSION
	fi
}

# buildkitd takes minutes to build, so its test is only run where it is there. Its
# module can't be installed as it is, because of what it replaces.
clients() {
	tests
	[ -x .tools/bin/buildkitd ] && [ -x .tools/bin/buildctl ] && return
	local from bin=$PWD/.tools/bin
	say "building buildkitd $BUILDKIT_VERSION"
	from=$(mktemp -d "$PWD/.tools/buildkit.XXXXXX")
	cp -r "$(go mod download -json github.com/moby/buildkit@$BUILDKIT_VERSION | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/." "$from"
	chmod -R u+w "$from"
	(cd "$from" && GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o "$bin/" ./cmd/buildkitd ./cmd/buildctl)
	rm -rf "$from"
}

# The kernel is taken out of its package: this machine is not to boot it.
debian_kernel() {
	local dir=.tools/vm/linux package
	compgen -G "$dir/boot/vmlinuz-*" >/dev/null && return
	[ -n "$updated" ] || { apt-get -qq update; updated=1; }
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -1)
	[ -n "$package" ] || { echo "deps: no package linux-image-cloud-amd64 here" >&2; exit 1; }
	say "taking the kernel out of the package $package"
	mkdir -p $dir
	(cd $dir && apt-get -qq download "$package" && dpkg-deb -x "$package"_*.deb . && rm -f ./*.deb)
}

vm() {
	run
	have crun || apt crun
	have criu || apt criu
	have ip || apt iproute2
	have iptables-restore || apt iptables
	have qemu-system-x86_64 || apt qemu-system-x86
	have mke2fs || apt e2fsprogs
	have mkfs.xfs || apt xfsprogs
	have mkfs.erofs || apt erofs-utils
	have depmod || apt kmod
	have cpio || apt cpio
	have systemctl || apt systemd
	have dbus-daemon || apt dbus
	debian_containerd
	debian_registry
	debian_kernel
}

for set in "$@"; do
	case $set in
	run) run ;;
	test) tests ;;
	bench) bench ;;
	vm) vm ;;
	clients) clients ;;
	*) echo "deps: unknown set $set" >&2; exit 2 ;;
	esac
done
