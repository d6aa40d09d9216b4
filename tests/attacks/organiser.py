"""The control port as an attacker finds it: methods by reflection, channels with any certificate."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


def channel(grounds, certificate: bytes | None, key: bytes | None) -> grpc.Channel:
    """To the control port, with this certificate or with none."""
    ca = grounds.network.workspace.credentials.ca()
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(f"localhost:{grounds.network.ports[1]}", credentials)


def methods(grounds) -> list[str]:
    """Every method of every service, as the running daemon lists them to the organiser."""
    certificate, key = grounds.network.workspace.credentials.organiser()
    with channel(grounds, certificate, key) as open_channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(open_channel)

        def ask(**request):
            asked = iter([reflection_pb2.ServerReflectionRequest(**request)])
            return next(stub.ServerReflectionInfo(asked, timeout=10))

        found = []
        for service in ask(list_services="").list_services_response.service:
            answer = ask(file_containing_symbol=service.name).file_descriptor_response
            for data in answer.file_descriptor_proto:
                file = FileDescriptorProto.FromString(data)
                for one in file.service:
                    name = f"{file.package}.{one.name}"
                    if name == service.name:
                        found += [f"{name}/{method.name}" for method in one.method]
        return sorted(set(found))
