#!/usr/bin/env bash
# Boots Debian's cloud kernel in qemu, with version 2 of control groups alone, and
# runs the tests of tasks there, with runc and with crun, and those of storage, with
# file systems that not every machine has. Says for each test how it went, and ends
# with 0 if none failed.
#
#	RUN=REGEXP     only tests whose names match, as go test -run has it
#	SUITES=REGEXP  only suites whose names match (test/vm/suites)
#	LIMIT=SECONDS  for all of the guest's time (3600)
#	ACCEL=kvm      with the processor's help; without it qemu emulates one
#	SCRIPT=FILE    run this script in the guest instead of the tests
#	SHELL_IN=1     a shell in the guest instead of the tests
#
# The suite power is run ahead of the others, by scripts/power.sh: with SUITES=power
# it is the only one.
#
# What is built and what the guest said stays in .tools/vm.
set -euo pipefail
cd "$(dirname "$0")/.."

LIMIT=${LIMIT:-3600}
MEMORY=${MEMORY:-2048}
top=$PWD
work=.tools/vm
root=$work/root
console=$work/console.log

say() { echo "vm: $*"; }
fail() { echo "vm: $*" >&2; exit 1; }

# copy brings files of this machine into the guest, with the libraries that
# programs among them need.
copy() {
	local path lib
	for path in "$@"; do
		[ -e "$path" ] || fail "$path is missing; run scripts/deps.sh vm"
		mkdir -p "$root$(dirname "$path")"
		cp -L --preserve=mode "$path" "$root$path"
		for lib in $(ldd "$path" 2>/dev/null | grep -oE '/[^ ]+' | sort -u); do
			[ -e "$root$lib" ] && continue
			mkdir -p "$root$(dirname "$lib")"
			cp -L --preserve=mode "$lib" "$root$lib"
		done
	done
}

# copy_as brings one program to another place.
copy_as() {
	mkdir -p "$root$(dirname "$2")"
	cp -L --preserve=mode "$1" "$root$2"
	local lib
	for lib in $(ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' | sort -u); do
		[ -e "$root$lib" ] || copy "$lib"
	done
}

programs() {
	say "build the programs and the tests"
	local dir=$root/opt/berth/bin suite package binary
	mkdir -p "$dir" "$root/opt/berth/tests"
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags "-s -w" -o "$dir/" ./cmd/berthd ./cmd/berth-shim ./cmd/berth
	go run ./internal/testimage/mkimage -o "$dir/image.tar" -name berth.test/busybox:latest
	while read -r suite package _; do
		[[ $suite == "#"* || -z $suite ]] && continue
		# Named for the whole path: packages may have the same last name.
		binary=${package#./}
		binary=$top/$root/opt/berth/tests/${binary//\//-}.test
		[ -x "$binary" ] && continue
		(
			[[ $package == ./test/* ]] && cd test && package=./${package#./test/}
			CGO_ENABLED=0 go test -c -ldflags "-s -w" -o "$binary" "$package"
		)
		# Tests run where their package is, beside what they read.
		mkdir -p "$root/src/$package"
		[ ! -d "$package/testdata" ] || cp -r "$package/testdata" "$root/src/$package/"
	done <test/vm/suites
	cp -r go.mod docs "$root/src/"
}

userland() {
	local busybox
	busybox=$(command -v busybox) || fail "busybox is missing; run scripts/deps.sh vm"
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev,run,tmp,var/lib,root,etc,lib/modules,mnt,opt}
	ln -sf ../run "$root/var/run"
	chmod 1777 "$root/tmp"
	cp "$busybox" "$root/bin/busybox"
	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || ln -sf /bin/busybox "$root/bin/$applet"
	done
	# Where busybox behaves in its own way, tests want what machines have.
	rm -f "$root"/bin/{sh,yes,tar,gzip,ip,modprobe,cp,mount,blkid}
	copy /bin/dash /usr/bin/yes /sbin/modprobe /bin/cp /bin/mount /usr/bin/du
	ln -s dash "$root/bin/sh"
	copy "$(command -v runc)" "$(command -v crun)" "$(command -v criu)"
	local program
	for program in ctr containerd-shim-runc-v2; do
		copy_as .tools/debian/usr/bin/$program /usr/bin/$program
	done
	copy_as "$(command -v docker-registry || echo .tools/debian/usr/bin/docker-registry)" /usr/bin/docker-registry
	# What criu runs: for a tmpfs, the network's state, and to close the network.
	copy /bin/tar /bin/gzip "$(command -v ip)" /usr/sbin/{ip,ip6}tables-{save,restore} /usr/lib/x86_64-linux-gnu/xtables/*.so
	# What makes file systems.
	copy /sbin/mkfs.ext{2,3,4} /etc/mke2fs.conf /sbin/blkid "$(command -v mkfs.erofs)" "$(command -v mkfs.xfs)"
	printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
	printf 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\n' >"$root/etc/group"
	echo vm >"$root/etc/hostname"
	printf '127.0.0.1 localhost vm\n' >"$root/etc/hosts"
	cp test/vm/guest "$root/sbin/guest"
	cp test/vm/suites "$root/etc/suites"
	chmod 755 "$root/sbin/guest"
	[ -z "${SCRIPT:-}" ] || cp "$SCRIPT" "$root/etc/script"
	{
		printf 'RUN=%q\nSUITES=%q\nSHELL_IN=%q\n' "${RUN:-}" "${SUITES:-.}" "${SHELL_IN:-}"
	} >"$root/etc/vm.env"
}

# systemd brings systemd with a message bus, berthd as its service, and the tests as
# another, which begins once the guest has made systemd its first process.
systemd() {
	local units=$root/etc/systemd/system
	copy /lib/systemd/systemd /lib/systemd/systemd-shutdown /bin/systemctl /usr/bin/dbus-daemon
	mkdir -p "$units/multi-user.target.wants" "$root/lib/systemd/system" "$root/usr/share/dbus-1/system.d"
	cp /lib/systemd/system/*.target /lib/systemd/system/dbus.{service,socket} "$root/lib/systemd/system/"
	cp /usr/share/dbus-1/system.conf "$root/usr/share/dbus-1/"
	cp /usr/share/dbus-1/system.d/org.freedesktop.systemd1.conf "$root/usr/share/dbus-1/system.d/"
	echo 'messagebus:x:100:100::/:/bin/false' >>"$root/etc/passwd"
	echo 'messagebus:x:100:' >>"$root/etc/group"
	echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
	ln -s /lib/systemd/system/multi-user.target "$units/default.target"
	sed 's|@PREFIX@|/opt/berth|' dist/berth.service >"$units/berth.service"
	mkdir "$units/berth.service.d"
	printf '[Service]\nStandardError=append:/run/berthd.log\n' >"$units/berth.service.d/log.conf" # no journal here
	cat >"$units/guest.service" <<-'END'
		[Unit]
		Requires=dbus.socket
		After=dbus.socket
		[Service]
		ExecStart=/sbin/guest systemd
		StandardOutput=tty
		StandardError=tty
		TTYPath=/dev/ttyS0
	END
	ln -s ../guest.service "$units/multi-user.target.wants/guest.service"
}

# initramfs makes what the kernel starts with: the modules for the disk, and the
# way there.
initramfs() {
	local dir=$work/initramfs module
	rm -rf "$dir"
	mkdir -p "$dir"/{bin,proc,dev,sys,disk,modules}
	cp "$root/bin/busybox" "$dir/bin/"
	local n=0
	for module in $(modprobe -d "$PWD/$root" -S "$release" --show-depends virtio_blk 2>/dev/null | awk '{print $2}') \
		$(modprobe -d "$PWD/$root" -S "$release" --show-depends virtio_pci | awk '{print $2}'); do
		n=$((n + 1))
		cp "$module" "$dir/modules/$(printf %02d $n)-$(basename "$module")"
	done
	cp test/vm/init "$dir/init"
	chmod 755 "$dir/init"
	(cd "$dir" && find . | cpio --quiet -o -H newc) >"$work/initramfs.cpio"
}

scripts/deps.sh vm
rm -rf "$root"
mkdir -p "$root"
kernel=$(ls $work/linux/boot/vmlinuz-*)
release=${kernel#*vmlinuz-}
userland
systemd
programs
mkdir -p "$root/lib/modules"
cp -r "$work/linux/lib/modules/$release" "$root/lib/modules/"
depmod -b "$root" "$release"
initramfs
say "make the disk"
rm -f $work/disk.img
mke2fs -q -t ext4 -d "$root" -E root_owner=0:0 $work/disk.img 3G >/dev/null

# The suite power is many machines, whose power is cut.
if [ -z "${SHELL_IN:-}${SCRIPT:-}" ] && [[ power =~ ${SUITES:-.} ]]; then
	scripts/power.sh
	[ "${SUITES:-.}" != power ] || exit 0
fi
say "boot $release; console in $console"
[ -n "${SHELL_IN:-}" ] && serial=mon:stdio || serial=file:$console
rm -f $console
: >$console
if [ -z "${SHELL_IN:-}" ]; then
	tail -n +1 -s 0.5 -f $console 2>/dev/null | sed -un 's/^vm: //p' &
	tail=$!
	trap 'kill $tail 2>/dev/null || true' EXIT
fi
status=0
timeout --foreground -k 5 "$LIMIT" qemu-system-x86_64 \
	-machine pc -accel "${ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m "$MEMORY" \
	-display none -no-reboot -nodefaults -serial "$serial" \
	-kernel "$kernel" -initrd $work/initramfs.cpio \
	-append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all psi=1 random.trust_cpu=on" \
	-drive file=$work/disk.img,if=virtio,format=raw,cache=unsafe || status=$?
[ -z "${SHELL_IN:-}" ] || exit 0
sleep 1 # what tail has yet to say
[ $status = 124 ] && fail "the guest was not done after $LIMIT s; see $console"
[ $status = 0 ] || fail "qemu ended with status $status"
result=$(tr -d '\r' <$console | sed -n 's/^vm: exit //p' | tail -1)
[ -n "$result" ] || { tail -20 $console; fail "the guest ended without a result; see $console"; }
exit "$result"
