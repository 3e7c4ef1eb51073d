#!/usr/bin/env bash
# Runs the tests: all of them, or the parts named. Each part says what it does
# and how long it took; the first failure ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(lint build unit faults scripts bench)

# Debian's containerd and its shim, if they are not installed (deps.sh).
export PATH="$PATH:$PWD/.tools/debian/usr/bin"

# Go's cache would answer for tests that depend on the system they run on.
export GOFLAGS="${GOFLAGS:-} -count=1"

lint() {
	local unformatted
	unformatted=$(gofmt -l $(git ls-files '*.go' ':!:*.pb.go'))
	[ -z "$unformatted" ] || { echo "not gofmt-ed: $unformatted" >&2; return 1; }
	go vet ./...
	go vet -tags faults ./...
	.tools/bin/staticcheck ./...
	(cd test && go vet ./... && ../.tools/bin/staticcheck ./...)
	(cd bench && go vet ./... && ../.tools/bin/staticcheck ./...)
}
build() { make --no-print-directory build; }
unit() { go test -race -timeout 15m ./...; }
# The tests that have fault points, with them.
faults() {
	local files packages tests
	files=$(grep -rlE --include=*_test.go '^//go:build faults|fault\.Enabled' . | grep -vE '^\./(test|bench)/')
	packages=$(xargs -n1 dirname <<<"$files" | sort -u)
	tests=$(xargs grep -hoE '^func Test[A-Za-z0-9_]+' <<<"$files" | sed 's/^func //' | sort -u | paste -sd'|')
	go test -race -timeout 15m -tags faults -run "^($tests)\$" $packages
}
scripts() { (cd test && go test -timeout 20m ./...); }
bench() { (cd bench && go test ./...); }

needs_tools() { [[ " ${parts[*]} " =~ \ (lint|scripts)\  ]]; }

# With all of them there, a test that misses a program has failed.
if needs_tools; then
	scripts/deps.sh run test
	export BERTH_TEST_TOOLS=1
else
	scripts/deps.sh run
fi
[[ " ${parts[*]} " =~ \ scripts\  && ! " ${parts[*]} " =~ \ build\  ]] && build
for part in "${parts[@]}"; do
	case $part in
	lint | build | unit | faults | scripts | bench) ;;
	*) echo "test: unknown part $part" >&2; exit 2 ;;
	esac
	echo "== $part"
	start=$SECONDS
	$part
	echo "== $part: ok, $((SECONDS - start)) s"
done
