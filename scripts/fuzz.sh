#!/usr/bin/env bash
# Runs every fuzz test of the module for the time given, one after another.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}

grep -rlE --include=*_test.go '^func Fuzz' . | grep -vE '^\./(test|bench)/' | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | awk '{print $2}' | sort -u | while read -r name; do
		echo "== $dir $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 20x "$dir" </dev/null
	done
done
