#!/bin/sh
# Rebuilds emoji-32.zip from its pinned source; the result is the same file, byte for byte.
# Needs npm, tar and cargo, and the network for the first.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent emoji-datasource-google@16.0.0
tar xzf emoji-datasource-google-16.0.0.tgz package/img/google/64
cd "$here"
cargo run --release -p p2 --example pack_emoji -- "$work/package/img/google/64" "$here/emoji-32.zip"
