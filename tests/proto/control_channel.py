"""A gRPC channel to a control port, and what its reflection tells."""

from __future__ import annotations

import grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.control_certificates import certificates


def channel(address, pair=None, ca=None):
    known = certificates()
    pair = (pair.key, pair.cert) if pair else ()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca or known.authority.pem, *pair))


def services(open_channel):
    call = open_channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60)
    return [s.name for s in next(answers).list_services_response.service]
