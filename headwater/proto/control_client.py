"""The organiser's side of the control port: :class:`ControlClient`, an ``Organiser`` that is elsewhere."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from headwater.errors import ConfigError, ConnectionLost, HeadwaterError, Refused
from headwater.proto import control_rows as rows
from headwater.proto.control_errors import rebuild
from headwater.proto.v1 import control_pb2 as pb
from headwater.protocol.control import AdapterRow, ClientRow, RunRow, Status, WatchEvent

TIMEOUT_S = 30.0
"""For a call that answers once; every such call of a daemon is short."""
MAX_ANSWER = 64 << 20
MAX_TOML = 1 << 20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
POLL_S = 0.5

_M = TypeVar("_M", bound=Message)
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment has no business with a control port
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class ControlClient:
    """Thread-safe. Every method may raise what the daemon's organiser raises, rebuilt as the same class.

    Args:
        address: ``HOST:PORT``; the server's certificate must be for that host.
        ca: PEM of the federation's authority; nothing else is trusted.
        cert: PEM of an organiser's certificate.
        key: PEM of its key.
        start: the command that starts the daemon, for the message where there is none.

    Raises:
        ConnectionLost: of every method: no daemon at that address, or one of another authority.
        Refused: of every method: this is not an organiser's certificate, or a failure the daemon logged.
    """

    def __init__(
        self, address: str, ca: bytes, cert: bytes, key: bytes, *, start: str = "headwater server run DIR"
    ) -> None:
        self.address, self._start = address, start
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        self._channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        self._calls: dict[str, Callable[..., Any]] = {}
        service = pb.DESCRIPTOR.services_by_name["Control"]
        for method in service.methods:
            types = getattr(pb, method.input_type.name), getattr(pb, method.output_type.name)
            call = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
            path = f"/{service.full_name}/{method.name}"
            self._calls[method.name] = call(path, types[0].SerializeToString, types[1].FromString)

    def close(self) -> None:
        """Close the connection; calls under way end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def status(self) -> Status:
        """The state of the daemon, its runs and clients."""
        return rows.status_from_message(self._ask("GetStatus", _message(pb.GetStatusRequest), pb.Status))

    def watch(
        self,
        after: int = 0,
        ended: Callable[[], bool] = lambda: False,
        *,
        on_gap: Callable[[HeadwaterError, float], None] | None = None,
    ) -> Iterator[WatchEvent]:
        """Events one by one. A lost connection is taken up again, for ever, after the last event.

        Args:
            after: 0: from now on; -1: all that the daemon remembers; else an event's ``seq``.
            ended: asked twice a second, from a thread of its own.
            on_gap: told why the connection is lost and how many seconds later it is tried again.

        Raises:
            ConnectionLost: there was no daemon to begin with.
        """
        daemon, wait_s = "", FIRST_WAIT_S
        while not ended():
            call = self._calls["Watch"](_message(pb.WatchRequest, after=after, daemon=daemon))
            try:
                with self._explained(), _cancelled_when(ended, call):
                    told = dict(call.initial_metadata() or ()).get("headwater-daemon", "")
                    if told:
                        daemon, wait_s = str(told), FIRST_WAIT_S
                    for message in call:
                        after = message.seq
                        yield rows.event_from_message(message)
                        if ended():
                            return
                    raise self._lost("it is stopping")
            except ConnectionLost as error:
                if ended():
                    return
                if not daemon:
                    raise
                wait_s = min(wait_s * random.uniform(1.5, 2.5), LONGEST_WAIT_S)
                if on_gap is not None:
                    on_gap(error, wait_s)
            finally:
                call.cancel()
            until = time.monotonic() + wait_s
            while not ended() and (left := until - time.monotonic()) > 0:
                time.sleep(min(left, POLL_S))

    def submit(self, toml: str, folder: Path) -> RunRow:
        """Queue a federation; paths in ``toml`` are relative to ``folder`` on the daemon's machine."""
        if len(toml.encode("utf-8", "replace")) > MAX_TOML:
            raise ConfigError("federation file", expected="at most 1 MiB", got=f"{len(toml):,} characters")
        return rows.run_from_message(
            self._ask("Submit", _message(pb.SubmitRequest, toml=toml, folder=str(folder)), pb.RunRow)
        )

    def pause(self, run: str) -> RunRow:
        """End the open round, then wait for :meth:`resume`."""
        return rows.run_from_message(self._ask("Pause", _message(pb.RunRequest, run=run), pb.RunRow))

    def resume(self, run: str, folder: Path | None = None) -> RunRow:
        """Go on; from now on relative paths start at ``folder``, if one is given."""
        request = _message(pb.ResumeRequest, run=run, folder="" if folder is None else str(folder))
        return rows.run_from_message(self._ask("Resume", request, pb.RunRow))

    def stop(self, run: str) -> RunRow:
        """End the open round, write the result, and do not go on."""
        return rows.run_from_message(self._ask("Stop", _message(pb.RunRequest, run=run), pb.RunRow))

    def change(self, run: str, changes: Mapping[str, str]) -> RunRow:
        """Change settings: times at once, others from the next round on."""
        return rows.run_from_message(
            self._ask("Change", _message(pb.ChangeRequest, run=run, changes=dict(changes)), pb.RunRow)
        )

    def accept(self, request: str) -> ClientRow:
        """Enrol the device that made this enrolment request."""
        return rows.client_from_message(
            self._ask("Accept", _message(pb.AcceptRequest, request=request), pb.ClientRow)
        )

    def revoke(self, client: str) -> ClientRow:
        """Revoke both of the client's keys, at once."""
        return rows.client_from_message(
            self._ask("Revoke", _message(pb.RevokeRequest, client=client), pb.ClientRow)
        )

    def adapters(self, run: str = "") -> tuple[AdapterRow, ...]:
        """All versions of a run (of the latest run, if empty)."""
        request = _message(pb.ListAdaptersRequest, run=run)
        with self._explained():
            found = self._calls["ListAdapters"](request, timeout=TIMEOUT_S)
            return tuple(rows.adapter_from_message(m) for m in found)

    def export(self, run: str = "", version: int = 0) -> Iterator[bytes]:
        """A tar of the adapter's folder (the best version, if 0), in pieces of at most 1 MiB."""
        call = self._calls["Export"](_message(pb.ExportRequest, run=run, version=version))
        try:
            with self._explained():
                for piece in call:
                    yield piece.data
        finally:
            call.cancel()

    def rollback(self, run: str, version: int) -> AdapterRow:
        """Go on from an earlier version's values, as a new version."""
        return rows.adapter_from_message(
            self._ask("Rollback", _message(pb.RollbackRequest, run=run, version=version), pb.AdapterRow)
        )

    def forget(self, run: str, client: str) -> AdapterRow:
        """End a client's keys, and go on from the newest version that nothing of it is in."""
        return rows.adapter_from_message(
            self._ask("Forget", _message(pb.ForgetRequest, run=run, client=client), pb.AdapterRow)
        )

    def unpin(self, run: str, version: int) -> AdapterRow:
        """No longer keep a version's values for ever."""
        return rows.adapter_from_message(
            self._ask("Unpin", _message(pb.UnpinRequest, run=run, version=version), pb.AdapterRow)
        )

    def _ask(self, method: str, request: Message, kind: type[_M]) -> _M:
        with self._explained():
            answer = self._calls[method](request, timeout=TIMEOUT_S)
        return cast(_M, answer)  # by the descriptor that both sides read

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A failed call as one of our errors."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._explain(error) from None
        except ValueError as error:  # what grpc raises on a closed channel
            raise self._lost(str(error)) from None

    def _explain(self, error: grpc.RpcError) -> HeadwaterError:
        if (told := rebuild(error)) is not None:
            return told
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        details = (error.details() or "") if isinstance(error, grpc.Call) else str(error)
        who = f"control port {self.address}"
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return Refused(
                who, expected="an organiser's certificate", got="one of another role",
                hint="Use secrets/organiser.pem and organiser.key of the daemon's folder.",
            )  # fmt: skip
        if code is grpc.StatusCode.INTERNAL and not details:
            return Refused(
                who, got="a failure within the daemon", hint="Its logs/daemon.log says what happened."
            )
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return self._lost(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._lost(f"no answer within {TIMEOUT_S:.0f} s")
        return Refused(who, got=f"{code.name}: {details}", hint="Are client and daemon of one version?")

    def _lost(self, details: str) -> ConnectionLost:
        who = f"control port {self.address}"
        if "handshake failed" in details.lower() or "verify" in details.lower():
            return ConnectionLost(
                who, expected="the server of this federation", got="one whose certificate does not fit",
                hint="Check the address, and that ca.pem is this federation's.",
            )  # fmt: skip
        for known, shown in (("refused", "nobody there"), ("Socket closed", "the connection was closed")):
            if known in details:
                details = shown
        hint = f"Start it: {self._start}. If it runs, check that this certificate is an organiser's of it."
        return ConnectionLost(who, expected="a daemon that answers", got=details, hint=hint)


@contextmanager
def _cancelled_when(ended: Callable[[], bool], call: grpc.Future[Any]) -> Iterator[None]:
    """Cancel ``call`` once ``ended`` says so: a thread that waits for a message cannot look itself."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(POLL_S):
            if ended():
                call.cancel()
                return

    threading.Thread(target=look, name="control watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _message(kind: Callable[..., _M], **fields: object) -> _M:
    try:
        return kind(**fields)
    except (UnicodeError, ValueError, TypeError) as error:
        shown = ", ".join(f"{k}={ascii(v)[:80]}" for k, v in fields.items())
        raise ConfigError(
            f"request {shown}", expected="text in UTF-8, and numbers that fit 64 bits", got=str(error)
        ) from None
