#!/usr/bin/env bash
# Installs what is missing on a Debian machine: "run" is what berth needs to run
# containers and show itself, "test" is what the tests need beyond that.
# Says what it does; does nothing when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

CTR_VERSION=v2.3.4
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

# Debian's ctr comes in one package with a daemon that would be started on
# installation, so it is taken out of the package instead.
debian_ctr() {
	local dir=.tools/debian
	[ -x $dir/usr/bin/ctr ] && return
	if have ctr; then
		mkdir -p $dir/usr/bin
		ln -sf "$(command -v ctr)" $dir/usr/bin/ctr
		return
	fi
	[ -n "$updated" ] || { apt-get -qq update; updated=1; }
	say "taking ctr out of the package containerd"
	mkdir -p $dir
	(cd $dir && rm -f ./*.deb && apt-get -qq download containerd && dpkg-deb -x containerd_*.deb . && rm -f ./*.deb)
}

tests() {
	have gcc || apt gcc libc6-dev
	have crun || apt crun
	have skopeo || apt skopeo
	have umoci || apt umoci
	have ip || apt iproute2
	debian_ctr
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

for set in "$@"; do
	case $set in
	run) run ;;
	test) tests ;;
	*) echo "deps: unknown set $set" >&2; exit 2 ;;
	esac
done
