"""ClientRuntime: what a process needs to work for clients: the model, their data, the root key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from headwater import __version__
from headwater.client.device.costs import device_profile
from headwater.client.execution.seed_replay import Replay
from headwater.client.execution.store import ClientStore
from headwater.client.policy import Policy
from headwater.compression.codec import Codec
from headwater.compression.dense import DenseCodec
from headwater.compression.seed_state import SEEDS
from headwater.compression.since import SINCE, add_up, name_of, read_since
from headwater.compression.table import codec_by_id, codec_for, readable
from headwater.config import LoadedFederation
from headwater.config.assignment import simulated_memory_mb
from headwater.config.codec import DENSITY_OVER
from headwater.config.strategy import OwnPart
from headwater.data.federated import FederatedData
from headwater.errors import DecodeError
from headwater.protocol.failures import FailureCode, coded
from headwater.protocol.messages import ClientProfile, EvaluateRequest, Payload, TrainRequest
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.tasks.batches import Example, by_row
from headwater.tasks.table import task_of
from headwater.training.context import TrainingContext


def run_id(loaded: LoadedFederation) -> str:
    """The id of a run of this federation with its seed: 32 hex digits."""
    return loaded.run_id()


@dataclass
class ClientRuntime:
    """One per process, for any number of clients.

    Args:
        run: id of the run.
        context: model and trainers.
        data: of the clients.
        root: the federation's root key.
        metrics: what every update of this process says besides; nothing in a simulation.
        simulated_memory_mb: of each client whose device is a simulated one.
        policy: what the owner allows; everything without.
        simulated: whether the run's clients share this process and its disk. Then an exception of one is its
            failure, and a full disk ends the run: :mod:`headwater.client.execution.faults`.
        cohort: how many clients may be trained as one batch; 1 on a device.
        own_part: what of the adapter each client keeps to itself (:mod:`.own_part`).
    """

    run: str
    context: TrainingContext
    data: FederatedData
    root: Key
    metrics: Mapping[str, float] = field(default_factory=dict)
    simulated_memory_mb: Mapping[str, int] = field(default_factory=dict)
    policy: Policy | None = None
    simulated: bool = False
    cohort: int = 1
    own_part: OwnPart = "nothing"

    def __post_init__(self) -> None:
        self._last: tuple[str, bytes, AdapterState] | None = None
        self._replay: Replay | None = None
        self._reads: tuple[str, ...] | None = None
        self._origin_sha256 = ""
        self.short_of_memory = False

    @staticmethod
    def open(
        loaded: LoadedFederation,
        context: TrainingContext | None = None,
        data: FederatedData | None = None,
        *,
        check: bool = True,
        cohort: int | None = None,
    ) -> ClientRuntime:
        """For a simulation: load the base model (unless ``context`` has it) and the data of all clients.

        Args:
            loaded: the federation.
            context: its base model, if this process has it.
            data: its clients' data, if this process has them.
            check: tokenise every row now; False in a worker, whose parent has done so.
            cohort: most clients of a batch, where the file leaves that to a measurement.
        """
        context = context or TrainingContext.open(loaded)
        root = Key.root(loaded.settings.federation.seed)
        if data is None:
            data = FederatedData.open(loaded, context.tokenizer, root, check=check)
        settings = loaded.settings
        memory = simulated_memory_mb(settings.assignment, data.clients, settings.federation.seed)
        runtime = ClientRuntime(
            run_id(loaded),
            context,
            data,
            root,
            simulated_memory_mb=memory,
            simulated=True,
            own_part=settings.own_part,
        )
        runtime.set_cohort(context.cohort if cohort is None else cohort)
        return runtime

    def set_cohort(self, clients: int) -> None:
        """Train so many clients as one batch, at most."""
        self.cohort = clients
        self.context = replace(self.context, cohort=clients)

    @property
    def measures_devices(self) -> bool:
        """Whether the federation assigns methods by what devices say of themselves."""
        assignment = self.context.loaded.settings.assignment
        return assignment is not None and assignment.by_device

    @property
    def hides_rows(self) -> bool:
        """Whether trainings add noise by which no row is told: then no number of a row's parts is, either."""
        trainings = self.context.loaded.settings.trainings.values()
        return any(training.example_privacy() for training in trainings)

    def profile(self, client: str) -> ClientProfile:
        """What the server may know about ``client`` before the first round."""
        data, settings = self.data.client(client), self.context.loaded.settings

        def allowed(method: str, batch_size: int) -> bool:
            return self.policy is None or self.policy.allows(settings, method, len(data.train), batch_size)

        return ClientProfile(
            client=client,
            train_examples=self._rows(data.train),
            validation_examples=len(data.validation),
            model_sha256=self.context.base_sha256,
            spec=self.context.spec.fingerprint(),
            run=self.run,
            version=__version__,
            device=device_profile(
                self.context, simulated_memory_mb=self.simulated_memory_mb.get(client), allowed=allowed
            ),
            reads=self.reads,
            train_targets=self._targets(data.train) if self._by_targets else 0,
        )

    def counted(self, client: str) -> int:
        """What :meth:`profile` says that ``client`` weighs by, where not all weigh alike."""
        train = self.data.client(client).train
        return self._targets(train) if self._by_targets else self._rows(train)

    @property
    def _by_targets(self) -> bool:
        return self.context.loaded.settings.strategy.weighting == "targets"

    def _rows(self, examples: Sequence[Example]) -> int:
        return len(by_row(examples) if self.hides_rows else examples)

    def _targets(self, examples: Sequence[Example]) -> int:
        task = task_of(self.context.loaded.settings.data)
        return sum(task.target_count(example) for example in examples)

    @property
    def reads(self) -> tuple[str, ...]:
        """Ids of codecs that it knows, among them that of a package in ``codec.down``, and of a setting."""
        if self._reads is None:
            down = codec_for(self.context.loaded.settings.codec.down)
            self._reads = tuple(sorted({*readable(), SINCE, SEEDS, DENSITY_OVER, down.id}))
        return self._reads

    def check(self, request: TrainRequest | EvaluateRequest) -> None:
        """Raise ``DecodeError`` unless the request is of this run, this adapter and a known client."""
        if request.run != self.run:
            raise DecodeError(f"client {request.client}", expected=f"run {self.run}", got=request.run)
        if request.spec != self.context.spec.fingerprint():
            raise DecodeError(
                f"client {request.client}",
                expected=f"adapter spec {self.context.spec.fingerprint()[:12]}",
                got=request.spec[:12],
                hint="Server and client must use the same model and [adapter] table.",
            )
        if not self.data.has(request.client):
            raise DecodeError(
                f"client {request.client}", expected="a client with data here", got="an unknown name"
            )

    def state(self, request: TrainRequest | EvaluateRequest, store: ClientStore) -> AdapterState:
        """The request's global state, checked against its hash. The last one is kept decoded.

        What it is made of next time, coefficients of seeds or the state itself, is in ``store`` before this
        returns, so that nothing the client answers is more than it has.

        Raises:
            DecodeError: bytes that are no state, or not the one that they claim to be; with the code
                NEEDS_FULL_STATE where what the state was made from is not here.
            StorageError: the state or its coefficients cannot be kept.
        """
        if request.state.codec == SEEDS:
            return self._rebuilt(request, store)
        body = request.state.body[: len(request.state.body) - _control_bytes(request)]
        payload = Payload(request.state.codec, body)
        if payload.codec == SINCE:
            return self._continued(payload, request, store)
        last = self._last
        if last is None or last[0] != request.state_sha256 or last[1] != body:
            state = self._codec_of(payload.codec).decode(payload, self.context.spec)
            _require_hash(state, request)
            last = self._last = (request.state_sha256, body, state)
        self._hold(last[2], request, store)
        return last[2]

    def _continued(
        self, payload: Payload, request: TrainRequest | EvaluateRequest, store: ClientStore
    ) -> AdapterState:
        """The state that a ``since.v1`` makes of one that is here. The last one is kept decoded."""
        base_name, increments = read_since(payload, self.context.spec)
        if self._last is None or self._last[0] != request.state_sha256:
            base = self._base(base_name, store)
            if base is None:
                raise _needs_full(request, f"to have state {base_name}", "none")
            state = add_up(base, increments, self._codec_of)
            if (sha256 := state.sha256()) != request.state_sha256:
                raise _needs_full(request, f"sha256 {request.state_sha256[:12]}", sha256[:12])
            self._last = request.state_sha256, b"", state
        self._hold(self._last[2], request, store, base_name)
        return self._last[2]

    def _base(self, name: str, store: ClientStore) -> AdapterState | None:
        """The state of this name: the last one here, the initial one, or one that is kept."""
        if self._last is not None and name_of(self._last[0]) == name:
            return self._last[2]
        if name_of(self._origin()) == name:
            return self.context.initial_state()
        return store.states.get(name, self.context.spec)

    def _hold(
        self, state: AdapterState, request: TrainRequest | EvaluateRequest, store: ClientStore, base: str = ""
    ) -> None:
        """Keep it, unless it is the initial one, which can be made again."""
        if request.state_sha256 != self._origin():
            store.states.put(state, request.state_sha256, base)

    def _origin(self) -> str:
        """The hash of the initial state."""
        self._origin_sha256 = self._origin_sha256 or self.context.initial_state().sha256()
        return self._origin_sha256

    def _codec_of(self, id: str) -> Codec:
        """What reads payloads of this id: headwater's own, or that of a package in ``codec.down``.

        Raises:
            DecodeError: nothing here does.
        """
        if id in readable():
            return codec_by_id(id)
        down = codec_for(self.context.loaded.settings.codec.down)
        return down if down.id == id else codec_by_id(id)

    def control(self, request: TrainRequest) -> AdapterState | None:
        """The server's control variate, which stands behind the request's state; None without one.

        Raises:
            DecodeError: bytes that are none.
        """
        if not (size := _control_bytes(request)):
            return None
        codec = DenseCodec("fp32")
        return codec.decode(Payload(codec.id, request.state.body[-size:]), self.context.spec)

    def _rebuilt(self, request: TrainRequest | EvaluateRequest, store: ClientStore) -> AdapterState:
        self._replay = self._replay or Replay(self.context.initial_state(), self.root)
        rebuilt = self._replay.rebuild(request.state, request.client, store)
        if not (self._last and self._last[0] == request.state_sha256 and self._last[2] is rebuilt.state):
            _require_hash(rebuilt.state, request)
            self._last = request.state_sha256, request.state.body, rebuilt.state
        version = request.round - 1 if isinstance(request, TrainRequest) else request.round
        if version >= 1:
            store.save_sums(request.client, version, rebuilt.sums, rebuilt.base)
        return rebuilt.state


def _control_bytes(request: TrainRequest | EvaluateRequest) -> int:
    """How much of the request's state is the control variate.

    Raises:
        DecodeError: more than there is.
    """
    size = request.plan.control_bytes if isinstance(request, TrainRequest) else 0
    if size > len(request.state.body):
        raise DecodeError(
            f"client {request.client}: control variate",
            expected=f"{size} bytes behind the state",
            got=f"{len(request.state.body)} bytes in all",
        )
    return size


def _needs_full(request: TrainRequest | EvaluateRequest, expected: str, got: str) -> DecodeError:
    """The error of a client that lacks what its state was made from: it is sent all of it."""
    version = request.round - 1 if isinstance(request, TrainRequest) else request.round
    error = DecodeError(
        f"client {request.client}: global state",
        expected=expected,
        got=got,
        hint="The server sends the whole state.",
    )
    return coded(error, FailureCode.NEEDS_FULL_STATE, version)


def _require_hash(state: AdapterState, request: TrainRequest | EvaluateRequest) -> None:
    if state.sha256() != request.state_sha256:
        raise DecodeError(
            f"client {request.client}: global state",
            expected=f"sha256 {request.state_sha256[:12]}",
            got=state.sha256()[:12],
        )
