#!/usr/bin/env bash
# Generates the Go code of api/ from its .proto files. Messages go into one
# package per directory; gRPC and ttrpc stubs go into packages of their own
# below it, so that a program links only the transport it uses. Nothing in api/
# changes before all of it could be generated, and then only what differs.
set -euo pipefail
cd "$(dirname "$0")/.."

GEN_GO=google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
GEN_GRPC=google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
GEN_TTRPC=github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc@v1.2.10

tools=$PWD/.tools/proto
mkdir -p "$tools"
for tool in "$GEN_GO" "$GEN_GRPC" "$GEN_TTRPC"; do
	name=${tool##*/}
	[ -x "$tools/$name" ] && continue
	GOBIN=$tools GOFLAGS= go install "$tool"
	mv "$tools/${name%@*}" "$tools/$name"
done
command -v protoc >/dev/null || { echo "protoc is missing: apt-get install protobuf-compiler" >&2; exit 1; }

module=github.com/berthd/berth
out=$(mktemp -d "$PWD/.tools/generated.XXXXXX")
trap 'rm -rf "$out"' EXIT

protoc_run() {
	protoc -I . -I api/include \
		--plugin=protoc-gen-go="$tools/${GEN_GO##*/}" \
		--plugin=protoc-gen-go-grpc="$tools/${GEN_GRPC##*/}" \
		--plugin=protoc-gen-go-ttrpc="$tools/${GEN_TTRPC##*/}" "$@"
}

mapfile -t all < <(find api -name '*.proto' -not -path 'api/include/*' | LC_ALL=C sort)
mapfile -t services < <(printf '%s\n' "${all[@]}" | grep '_service\.proto$')
mapfile -t shim < <(printf '%s\n' "${services[@]}" | grep -E 'runtime/|/ttrpc/|berth/shim/')
mapfile -t daemon < <(printf '%s\n' "${services[@]}" | grep -vE 'runtime/|/ttrpc/|berth/shim/')

protoc_run --go_out="$out" --go_opt=module=$module "${all[@]}"
protoc_run --go-ttrpc_out="$out" --go-ttrpc_opt=module=$module "${shim[@]}"
protoc_run --go-grpc_out="$out" --go-grpc_opt=module=$module,require_unimplemented_servers=true "${daemon[@]}"
# A shim may serve the task API v3 on gRPC too, and that of sandboxes.
v3=api/runtime/task/v3/task_service.proto
protoc_run --go-grpc_out="$out" \
	--go-grpc_opt=module=$module,M$v3=$module/api/runtime/task/v3/taskgrpc "$v3"
box=api/runtime/sandbox/v1/sandbox_service.proto
protoc_run --go-grpc_out="$out" \
	"--go-grpc_opt=module=$module,M$box=$module/api/runtime/sandbox/v1/sandboxgrpc;sandboxgrpc" "$box"

for new in $(cd "$out" && find api -name '*.pb.go'); do
	cmp -s "$out/$new" "$new" || install -D -m 0644 "$out/$new" "$new"
done
for old in $(find api -name '*.pb.go'); do
	[ -e "$out/$old" ] || rm "$old"
done
