#!/usr/bin/env bash
# Measures berth beside the OCI runtime alone, and beside containerd where it is
# installed, and holds it to the golden numbers of bench/budgets.toml. Builds
# the benchmark, not berth: make does that. More arguments go to the benchmark:
#
#   scripts/bench.sh                          what the golden numbers need, and restarts: some minutes
#   scripts/bench.sh -quick                   the same in half a minute, as a check that it works
#   scripts/bench.sh -scenarios all           everything
#   scripts/bench.sh -md report.md -json report.json
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/bin

[ "$(id -u)" = 0 ] || { echo "bench: needs root" >&2; exit 1; }
scripts/deps.sh run bench
PATH=$PATH:$PWD/.tools/debian/usr/bin
for program in berthd berth-shim; do
	[ -x "$bin/$program" ] || { echo "bench: $bin/$program is missing: make build" >&2; exit 1; }
done
(cd bench && CGO_ENABLED=0 go build -trimpath -o "$bin/" ./cmd/bench ./cmd/payload)

args=(-a bench/configs/berth.toml -set "berthd=$bin/berthd" -set "shim=$bin/berth-shim"
	-work /var/tmp -limit -budgets bench/budgets.toml
	-scenarios static,lifecycle,lifecycle-parallel,exec,shim,pod,many-execs,stdio,flushes,density,restart,content,metadata,gc,pull)
if command -v containerd >/dev/null && command -v containerd-shim-runc-v2 >/dev/null; then
	args+=(-b bench/configs/containerd.toml)
else
	echo "bench: containerd is not installed; berth is measured alone"
fi
command -v strace >/dev/null || echo "bench: strace is not installed; flushes are not counted"
exec "$bin/bench" "${args[@]}" "$@"
