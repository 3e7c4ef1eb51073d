#!/usr/bin/env bash
# Runs a container from an OCI image, kills the daemon under it with -9, and
# shows that the container ran on, that its output is complete and that its exit
# status is told right, although nobody was there when it exited.
# Everything lives in a directory of its own and is gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$(mktemp -d /tmp/berth-demo.XXXX)
export BERTH_ADDRESS=$dir/berth.sock
daemon=

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
# show prints a command as one would type it, and runs it.
show() {
	local word line='$'
	for word; do
		[[ $word =~ ^[A-Za-z0-9_./:=,@-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
		line+=" $word"
	done
	printf '%s\n' "$line"
	"$@"
}

start_daemon() {
	bin/berthd --root "$dir/root" --state "$dir/state" --address "$BERTH_ADDRESS" >>"$dir/daemon.log" 2>&1 &
	daemon=$!
	for _ in $(seq 200); do
		bin/berth info >/dev/null 2>&1 && return
		kill -0 $daemon 2>/dev/null || break
		sleep 0.05
	done
	echo "the daemon did not start; its log:" >&2
	cat "$dir/daemon.log" >&2
	exit 1
}

finish() {
	status=$?
	[ $status = 0 ] || { echo "demo failed; the daemon's log ends so:" >&2; tail -n 30 "$dir/daemon.log" >&2 || true; }
	bin/berth rm -f demo >/dev/null 2>&1 || true
	if [ -n "$daemon" ]; then
		kill $daemon 2>/dev/null || true
		wait $daemon 2>/dev/null || true
	fi
	if grep -q " $dir/" /proc/self/mountinfo; then
		echo "demo: mounts are left under $dir:" >&2
		grep " $dir/" /proc/self/mountinfo >&2
		status=1
	else
		rm -rf "$dir"
	fi
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

say "an OCI image, made here from busybox"
go run ./internal/testimage/mkimage -o "$dir/image.tar" -name demo:latest
start_daemon
show bin/berth version
show bin/berth images import "$dir/image.tar"
show bin/berth images ls

say "a container in the foreground: its output and exit code are the command's"
code=0
show bin/berth run --rm demo:latest sh -c 'echo "hello from $(uname -s), pid $$"; exit 3' || code=$?
echo "exit code: $code"
[ $code = 3 ]

say "a container in the background that counts, and exits with code 7 after some seconds"
show bin/berth run -d --name demo demo:latest sh -c 'for i in 1 2 3 4 5 6; do echo "tick $i"; sleep 1; done; exit 7'
show bin/berth ps
pid=$(bin/berth inspect demo --format json | sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' | head -n 1)

say "kill -9 of the daemon, while the container runs"
show kill -9 $daemon
wait $daemon 2>/dev/null || true
daemon=
kill -0 "$pid" && echo "the container's process $pid is alive"

say "nobody is there when the container exits"
while kill -0 "$pid" 2>/dev/null && [ "$(sed 's/.*) \(.\).*/\1/' "/proc/$pid/stat" 2>/dev/null)" != Z ]; do sleep 0.2; done
echo "process $pid is gone"

say "a new daemon: the exit status is known, the output is complete"
start_daemon
show bin/berth ps -a
code=0
show bin/berth wait demo || code=$?
show bin/berth logs demo
lines=$(bin/berth logs demo | grep -c '^tick [1-6]$')
status=$(bin/berth wait demo || true)
[ "$lines" = 6 ] || { echo "expected 6 lines, got $lines" >&2; exit 1; }
[ "$status" = 7 ] || { echo "expected exit status 7, got $status" >&2; exit 1; }
show bin/berth rm demo
say "done: the container outlived its daemon, and nothing was lost"
