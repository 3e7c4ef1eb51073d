#!/usr/bin/env bash
# Cuts the power of a machine again and again while it pulls, imports and removes
# images: qemu is killed at a random instant, and with it goes all that the guest has
# not flushed. The next boot looks whether the store is whole (test/vm/power_test.go).
# scripts/vm.sh calls it, for the suite power, with the disk that it has made.
#
#	ROUNDS=N       how often the power is cut (20)
#	BUSY=SECONDS   longest time that a machine works before it (12)
#	SEED=N         of the instants; printed
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-20}
BUSY=${BUSY:-12}
SEED=${SEED:-$RANDOM}
RANDOM=$SEED
LIMIT=${LIMIT:-600} # seconds of a round
work=.tools/vm
kernel=$(ls $work/linux/boot/vmlinuz-*)
console=$work/power.log
data=$work/data.img

say() { echo "power: $*"; }
fail() { echo "power: $*; see $console" >&2; exit 1; }

rm -f $data
mke2fs -q -t ext4 $data 3G >/dev/null
say "seed $SEED"
begin=$(date +%s)
for ((round = 1; round <= ROUNDS + 1; round++)); do
	last=
	[ $round -le $ROUNDS ] || last=1
	: >$console
	# What is on the first disk is the same in every round; the second one stays.
	qemu-system-x86_64 -machine pc -accel "${ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m "${MEMORY:-2048}" \
		-display none -no-reboot -nodefaults -serial file:$console \
		-kernel "$kernel" -initrd $work/initramfs.cpio \
		-append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all random.trust_cpu=on berth.power=$round berth.last=$last" \
		-drive file=$work/disk.img,if=virtio,format=raw,snapshot=on \
		-drive file=$data,if=virtio,format=raw,cache=writeback &
	machine=$!
	trap 'kill -9 $machine 2>/dev/null || true' EXIT
	for ((waited = 0; waited < LIMIT * 10; waited++)); do
		grep -q -e '^vm: busy' -e '^vm: exit' $console && break
		kill -0 $machine 2>/dev/null || break
		sleep 0.1
	done
	grep -q -e '^vm: exit [^0]' -e '^vm: failed' -e '--- FAIL' $console && { cat $console; fail "round $round: the cut before has done damage"; }
	grep -q '^vm: busy' $console || { tail -40 $console; fail "round $round: the machine did not come up"; }
	if [ -n "$last" ]; then
		wait $machine || fail "the last machine ended with an error"
		break
	fi
	tenths=$((RANDOM % (BUSY * 10)))
	sleep $((tenths / 10)).$((tenths % 10))
	kill -9 $machine
	wait $machine 2>/dev/null || true
	grep -q '^vm: failed' $console && { cat $console; fail "round $round: what was begun after the cut before failed"; }
	say "round $round: $(sed -n 's/^vm: \(.* images were there\).*/\1/p' $console), power cut after $((tenths / 10)).$((tenths % 10)) s and $(grep -c '^vm: done' $console || true) pulls, imports and removals"
done
trap - EXIT
grep -q '^vm: exit 0' $console || { cat $console; fail "the last machine found damage"; }
say "$ROUNDS power cuts in $(($(date +%s) - begin)) s, no damage"
