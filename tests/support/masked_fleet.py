"""A server under masks and its devices in one process: real messages, signatures and files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message

from headwater.client.agent.device_runtime import DeviceRuntimes
from headwater.client.agent.task_handler import TaskHandler
from headwater.client.execution.answer import answer
from headwater.client.execution.store import DirectoryStore
from headwater.client.masking.masked_sums import MASKS, MaskedSums
from headwater.config import load_federation
from headwater.flower import as_array, assume_task_identity, pack, unpack
from headwater.flower.one_run import OneRunGrid
from headwater.proto.wire import decode_request, decode_signed
from headwater.protocol.messages import MaskRequest, Request
from headwater.security.receipt_keys import ReceiptKey
from headwater.security.signing import Identity, verify_reply
from headwater.server.clients.discovery import DiscoveredClients, EnrolledClients
from headwater.server.clients.exchange import Exchange
from headwater.server.clients.run_control import RunControl
from headwater.server.rounds.federation_server import FederationServer, RunResult
from headwater.server.storage.adapter_versions import Versions
from headwater.server.storage.durability import Durability
from headwater.server.storage.run_folder import RunFolder
from headwater.server.storage.update_spool import Spool
from headwater.training.context import TrainingContext
from tests.client.agent.devices import agent_file


class HereWorker:
    """What a worker process does, in this one."""

    notice, rows = "", None

    def __init__(self, name: str, data: Path) -> None:
        self._name, self._devices = name, DeviceRuntimes(name, data)
        self.trained = 0

    def answer(self, joined, model, envelope, state, tick=lambda: None) -> bytes:
        runtime = self._devices.open(joined, model)
        self.trained += "TrainRequest" in type(decode_request(envelope, state)).__name__
        return answer(envelope, state, self._name, DirectoryStore(joined.folder), runtime)

    def close(self) -> None:
        """Nothing."""


class Device:
    """One owner's device; :meth:`start` again is a new process on the same files."""

    def __init__(self, name: str, home: Path, policy: dict[str, Any] | None = None) -> None:
        home.mkdir(parents=True)
        self.name, self.identity = name, Identity.create(name)
        self.settings = agent_file(home, policy, name=name)
        self.log: list[str] = []
        self.online, self.session = True, 0
        self.start()

    def start(self) -> None:
        self.worker = HereWorker(self.name, self.settings.data)
        public, folder = self.identity.public.signing_key, self.settings.state / MASKS
        self.masks = MaskedSums(self.name, public, self.identity.sign_sum, folder)
        self.handler = TaskHandler(
            self.settings, self.worker, self.identity.sign_reply, self.log.append, masks=self.masks
        )
        self.session += 1
        self.online = True


class Fleet(OneRunGrid):
    """The devices of a federation, and the lives of its server.

    Args:
        folder: for all files.
        file: the federation.
        names: of its clients.
        policy: of all devices.

    Attributes:
        before: called with a device and a request before it answers; may raise, or set it offline.
        sent: every signed reply that reached the server, with its request.
        receipt_key: of the server; one of the run's own if None.
    """

    def __init__(
        self, folder: Path, file: Path, names: Iterable[str], policy: dict[str, Any] | None = None
    ) -> None:
        assume_task_identity(run_id=1, node_id=1)
        self.loaded, self.names = load_federation(file), sorted(names)
        self.devices = {name: Device(name, folder / "devices" / name, policy) for name in self.names}
        self.folder = RunFolder.create(folder / "server", self.loaded, {"engine": "test"})
        self.before: Callable[[Device, Request], None] = lambda device, request: None
        self.sent: list[tuple[str, Request, bytes]] = []
        self.receipt_key: Callable[[], ReceiptKey] | None = None
        self.events: list[Any] = []
        self._queued: dict[str, Message] = {}
        self._count = 0

    @property
    def state(self) -> Path:
        """The server's folder of what an open round needs."""
        return self.folder.path / "state"

    def serve(self) -> RunResult:
        """One life of the server, to the end of the run."""
        self._queued.clear()
        context = TrainingContext.open(self.loaded)
        control = RunControl(self.events.append)
        durability = Durability(
            spool=Spool(self.state / "spool", notice=self.events.append),
            versions=Versions(self.folder.path / "versions", keep=64),
            open_round=self.state / "open_round.json",
            settings=lambda: self.loaded.settings,
            rollback=lambda: None,
            rolled_back=lambda: None,
            wire_run_id="run",
            receipt_key=self.receipt_key,
        )
        server = FederationServer(
            self.loaded, "run", context, self.folder, test=None, control=control, durability=durability
        )
        exchange = Exchange(self, {name: i for i, name in enumerate(self.names, 2)}, self._open)
        enrolled = EnrolledClients(
            lambda: {n: d.session for n, d in self.devices.items() if d.online},
            lambda name: name in self.devices,
            lambda: self.names,
            keys=lambda: {n: d.identity.public.signing_key for n, d in self.devices.items()},
        )
        profiles = self.state / "profiles.json"
        pool = DiscoveredClients(
            exchange, "run", self.loaded.settings, context, enrolled, profiles, server.control
        )
        return server.serve(pool)

    def _open(self, name: str, raw: bytes) -> bytes:
        reply, signature = decode_signed(raw, max_bytes=2**24)
        verify_reply(self.devices[name].identity.public, reply, signature)
        return reply

    # --- Flower's grid ----------------------------------------------------------------------------

    def get_node_ids(self) -> Iterable[int]:
        return range(2, 2 + len(self.names))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            self._queued[f"m{self._count}"] = message
            ids.append(f"m{self._count}")
        return ids

    def cancel(self, message_ids: Iterable[str]) -> None:
        for message_id in message_ids:
            self._queued.pop(message_id, None)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message_id in [i for i in message_ids if i in self._queued]:
            message = self._queued[message_id]
            device = self.devices[self.names[message.metadata.dst_node_id - 2]]
            envelope, state = unpack(message.content, "envelope", "state")
            request = decode_request(envelope, state)
            if device.online:
                self.before(device, request)
            if not device.online:  # it is delivered when it comes back, if it is still waited for
                continue
            del self._queued[message_id]
            data = device.handler.answer({"envelope": envelope, "state": state})
            self.sent.append((device.name, request, data))
            found.append(Message(pack(reply=as_array(data)), reply_to=message))
        return found

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def steps(self, name: str) -> list[MaskRequest]:
        """The steps of masked sums that a device has answered."""
        return [r for n, r, _ in self.sent if n == name and isinstance(r, MaskRequest)]
