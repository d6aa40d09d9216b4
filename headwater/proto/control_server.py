"""The control port of a daemon: :func:`serve`.

Mutual TLS: without a certificate of our authority the handshake fails. A certificate of ours that is not an
organiser's gets PERMISSION_DENIED, with no word more, for every path: existing or not, health and
reflection too. All that an organiser asks is answered by :class:`~headwater.protocol.control.Organiser`.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # has no stubs
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]  # has no stubs

from headwater.errors import ConfigError, HeadwaterError, Refused, StorageError
from headwater.proto import control_rows as rows
from headwater.proto.control_errors import refuse
from headwater.proto.v1 import control_pb2 as pb
from headwater.protocol.control import Organiser
from headwater.security.certificates import role

MAX_SUBMIT = 1 << 20
MAX_PIECE = 1 << 20
MOST_STREAMS = 24
"""Watches and exports at once; each holds a thread of the pool."""
THREADS = 32
MOST_CONNECTIONS = 256
DAEMON = "headwater-daemon"
"""Initial metadata of a watch: an identifier of this daemon process, whose event numbers are its own."""
SERVICE = pb.DESCRIPTOR.services_by_name["Control"]

SERVING = ("", SERVICE.full_name)
"""What a health check may ask for; the empty name is the server as a whole."""

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second daemon would share the port without a word
    ("grpc.max_receive_message_length", MAX_SUBMIT + (64 << 10)),
    # who never shows a certificate must not use up the files that agents' connections need
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
    ("grpc.keepalive_time_ms", 20_000),  # a watcher whose machine vanished is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
_log = logging.getLogger(__name__)
_Q = TypeVar("_Q")
_A = TypeVar("_A")


class ControlServer:
    """A control port that is open. ``address`` has the port that was really taken."""

    def __init__(
        self, server: grpc.Server, pool: ThreadPoolExecutor, address: str, closing: threading.Event
    ) -> None:
        self.address = address
        self._server, self._pool, self._closing = server, pool, closing

    def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, end every watch, give the others ``grace_s``; then all are cut off."""
        self._closing.set()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False)


def serve(
    organiser: Organiser, address: str, *, server_cert: bytes, server_key: bytes, ca: bytes
) -> ControlServer:
    """Open the control port.

    Args:
        organiser: answers, from up to 32 threads at once.
        address: ``HOST:PORT``; port 0 takes a free one.
        server_cert: PEM, with its chain if it has one.
        server_key: PEM, not encrypted.
        ca: PEM of the authority that clients' certificates must be of.

    Raises:
        StorageError: the port is taken, or a key does not fit.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="control")
    server = grpc.server(pool, interceptors=[_OrganisersOnly()], options=_OPTIONS)
    closing = threading.Event()
    server.add_generic_rpc_handlers((_Control(organiser, closing).handlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(_Health(), server)
    services = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"])
    reflection.enable_server_reflection(
        (*(service.full_name for service in services), reflection.SERVICE_NAME), server
    )
    credentials = grpc.ssl_server_credentials(
        [(server_key, server_cert)], root_certificates=ca, require_client_auth=True
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StorageError(
            f"control port {address}",
            expected="a free port and a certificate that fits its key",
            got=str(error),
            hint="Stop what uses it, or choose another in server.toml: [listen] control.",
        ) from None
    server.start()
    return ControlServer(server, pool, f"{address.rpartition(':')[0]}:{port}", closing)


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its base has no stubs
    """What is served is served until the daemon ends: nothing changes, so nobody is remembered.

    grpcio-health-checking 1.81.1 has a servicer of its own. It holds one lock while it sends, and waits for
    the same lock where a watcher has left, on the thread that would tell it of the sending: the port stands
    still for good.
    """

    def Check(  # noqa: N802 - the protocol's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in SERVING:
            context.abort(grpc.StatusCode.NOT_FOUND, "")
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def Watch(  # noqa: N802 - the protocol's name
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send_response_callback: Callable[[health_pb2.HealthCheckResponse], None],
    ) -> None:
        known = request.service in SERVING
        states = health_pb2.HealthCheckResponse
        send_response_callback(states(status=states.SERVING if known else states.SERVICE_UNKNOWN))

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # how a method asks gRPC to hold no thread


class _Control:
    """From messages to an organiser and back."""

    def __init__(self, organiser: Organiser, closing: threading.Event) -> None:
        self._organiser, self._closing = organiser, closing
        self._daemon = secrets.token_hex(8)
        self._streams = threading.BoundedSemaphore(MOST_STREAMS)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Every method of the .proto."""
        organiser = self._organiser
        behaviours: dict[str, Callable[..., Any]] = {
            "GetStatus": lambda request: rows.status_to_message(organiser.status()),
            "Watch": self._watch,
            "Submit": self._submit,
            "Pause": lambda request: rows.run_to_message(organiser.pause(request.run)),
            "Resume": self._resume,
            "Stop": lambda request: rows.run_to_message(organiser.stop(request.run)),
            "Change": lambda request: rows.run_to_message(
                organiser.change(request.run, dict(sorted(request.changes.items())))
            ),
            "Accept": lambda request: rows.client_to_message(organiser.accept(request.request)),
            "Revoke": lambda request: rows.client_to_message(organiser.revoke(request.client)),
            "ListAdapters": self._list_adapters,
            "Export": self._export,
            "Rollback": lambda request: rows.adapter_to_message(
                organiser.rollback(request.run, request.version)
            ),
            "Forget": lambda request: rows.adapter_to_message(organiser.forget(request.run, request.client)),
            "Unpin": lambda request: rows.adapter_to_message(organiser.unpin(request.run, request.version)),
        }
        handlers = {}
        for method in SERVICE.methods:
            behaviour = behaviours[method.name]
            types = getattr(pb, method.input_type.name), getattr(pb, method.output_type.name)
            serializers = types[0].FromString, types[1].SerializeToString
            if method.server_streaming:
                answer = self._answer_many(behaviour)
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(answer, *serializers)
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                    _answer_once(behaviour), *serializers
                )
        return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)

    def _watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchEvent]:
        # event numbers are a daemon process's own: another one sends all that it remembers
        after = request.after if request.daemon in ("", self._daemon) else -1

        def ended() -> bool:
            return self._closing.is_set() or not context.is_active()

        context.send_initial_metadata(((DAEMON, self._daemon),))
        for event in self._organiser.watch(after, ended):
            yield rows.event_to_message(event)
            if ended():
                return

    def _submit(self, request: pb.SubmitRequest) -> pb.RunRow:
        return rows.run_to_message(self._organiser.submit(request.toml, _absolute("submit", request.folder)))

    def _resume(self, request: pb.ResumeRequest) -> pb.RunRow:
        folder = _absolute("resume", request.folder) if request.folder else None
        return rows.run_to_message(self._organiser.resume(request.run, folder))

    def _list_adapters(
        self, request: pb.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.AdapterRow]:
        """A stream, as there may be thousands with large cohorts."""
        return map(rows.adapter_to_message, self._organiser.adapters(request.run))

    def _export(self, request: pb.ExportRequest, context: grpc.ServicerContext) -> Iterator[pb.Piece]:
        for data in self._organiser.export(request.run, request.version):
            for start in range(0, len(data), MAX_PIECE):
                yield pb.Piece(data=data[start : start + MAX_PIECE])

    def _answer_many(
        self, behaviour: Callable[[_Q, grpc.ServicerContext], Iterator[_A]]
    ) -> Callable[[_Q, grpc.ServicerContext], Iterator[_A]]:
        """Hold one of the streams as long as it lasts; the other threads stay free for short calls."""

        def answer(request: _Q, context: grpc.ServicerContext) -> Iterator[_A]:
            with _refusing(context):
                if not self._streams.acquire(blocking=False):
                    most = f"at most {MOST_STREAMS} watches and exports at the same time"
                    raise Refused("control port", expected=most, got="one more", hint="End one of them.")
                try:
                    yield from behaviour(request, context)
                finally:
                    self._streams.release()

        return answer


def _absolute(call: str, folder: str) -> Path:
    if not Path(folder).is_absolute():
        raise ConfigError(
            f"{call}: folder", expected="an absolute path on the daemon's machine", got=repr(folder)
        )
    return Path(folder)


def _answer_once(behaviour: Callable[[_Q], _A]) -> Callable[[_Q, grpc.ServicerContext], _A]:
    def answer(request: _Q, context: grpc.ServicerContext) -> _A:
        with _refusing(context):
            return behaviour(request)

    return answer


@contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """An error as a status: in full if it is ours, without a word if it is not."""
    try:
        yield
    except HeadwaterError as error:
        refuse(context, error)
    except Exception:
        _log.exception("control call failed")
        context.abort(grpc.StatusCode.INTERNAL, "")


class _OrganisersOnly(grpc.ServerInterceptor):
    """Checks the role before any handler, also where there is none."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = continuation(handler_call_details)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(_guarded(_nothing_there))
        kinds = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }
        behaviour, make = kinds[handler.request_streaming, handler.response_streaming]
        assert behaviour is not None
        return make(_guarded(behaviour), handler.request_deserializer, handler.response_serializer)


def _guarded(behaviour: Callable[..., _A]) -> Callable[..., _A]:
    @wraps(behaviour)  # also its attributes, by which the health service asks not to hold a thread
    def call(request: object, context: grpc.ServicerContext, *rest: object) -> _A:
        if not _is_organiser(context):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "")
        return behaviour(request, context, *rest)

    return call


def _nothing_there(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")


def _is_organiser(context: grpc.ServicerContext) -> bool:
    """Whether the certificate, which TLS has already traced to our authority, is of role organiser."""
    certificates = context.auth_context().get("x509_pem_cert", ())
    try:
        return any(role(bytes(pem)) == "organiser" for pem in certificates)
    except HeadwaterError:  # no role of ours
        return False
