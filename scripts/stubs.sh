#!/usr/bin/env bash
# Regenerate headwater/proto/v1/*_pb2.py. flwr pins protobuf < 7 and new grpcio-tools want protobuf 7,
# so protoc comes from an older grpcio-tools in an environment that is thrown away.
set -euo pipefail
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$1" -m venv "$environment"
"$environment/bin/pip" install --quiet grpcio-tools==1.71.2
# no --grpc_python_out: the control service's methods are read from its descriptor, where they have types
"$environment/bin/python" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. headwater/proto/v1/*.proto
