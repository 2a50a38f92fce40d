#!/usr/bin/env bash
# Generates Python messages from proto/ into node/rpc/wire/. The result is committed; run it after a change.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(find proto -name '*.proto' | sort)
[ ${#files[@]} -gt 0 ] || { echo "proto: no .proto files under proto/" >&2; exit 1; }
mkdir -p node/rpc/wire
.venv/bin/python -m grpc_tools.protoc --proto_path=proto --python_out=node/rpc/wire --pyi_out=node/rpc/wire "${files[@]}"
echo "proto: generated node/rpc/wire from ${#files[@]} files"
