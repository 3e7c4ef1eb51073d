// Package rows owns the messages that meta.db stores where the wire has none
// of its own. Only package metadata reads and writes them.
package rows

//go:generate sh -c "cd ../.. && protoc -I . -I api/include --plugin=protoc-gen-go=.tools/proto/protoc-gen-go@v1.36.11 --go_out=. --go_opt=module=github.com/berthd/berth metadata/rows/rows.proto"
