#!/bin/sh
# Writes the Python stubs of protos/ to client/towerbridge/v1/ (or to the folder given), deterministically.
# Stubs refuse a runtime older than their generator, so the generator is the oldest supported one: see constraints.txt.
set -eu
cd "$(dirname "$0")"
out=${1:-../client}
python=${PYTHON:-python3}
mkdir -p "$out"
# The type stubs' generators are found beside the interpreter, whether or not its environment is activated.
bin=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc --proto_path=. \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  towerbridge/v1/*.proto
