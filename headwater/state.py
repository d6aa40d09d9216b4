"""AdapterState: the named tensors that travel, and the spec that says what each of them is.

Entry points: :class:`AdapterState` (values) and :class:`StateSpec` (their description).
Both are immutable. Arithmetic needs equal specs; nothing is broadcast, cast or skipped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headwater.errors import SpecMismatch

Role = str
"""What a tensor does in its adapter. Its kind (``headwater.adapters.kinds``) names the roles of its tensors;
rules and exports know ``lora_a``, ``lora_b``, ``head`` and ``vector`` and take any other as plain values."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one tensor of an adapter is.

    Args:
        name: its key; unique, and the order of everything that iterates.
        shape: its shape.
        dtype: always ``float32`` for values that are trained and merged.
        role: what it does in the adapter.
        pair: for ``lora_b`` the name of its ``lora_a``; empty otherwise. Set even where A is frozen
            and does not travel.
        scaling: of ``lora_b``: s in ΔW = s·B·A (alpha/r, or alpha/√r with rsLoRA); of ``head``: what a
            value of 1 is in the model (2^head_bits); 1.0 otherwise.
        transposed: the base stores the weight as d_in × d_out (GPT-2's Conv1D).
        experts: of ``lora_a`` and ``lora_b``: how many experts' factors of rank r they hold. Expert e has of
            A the rows e·r … (e+1)·r − 1, and of B the columns e, e + experts, e + 2·experts, …
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    dtype: str = "float32"
    pair: str = ""
    scaling: float = 1.0
    transposed: bool = False
    experts: int = 1

    @property
    def numel(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class StateSpec:
    """The sorted tensor specs of an adapter state."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [t.name for t in self.tensors]
        if names != sorted(set(names)):
            raise SpecMismatch("state spec", expected="unique names in sorted order", got=f"{names[:4]}…")

    @staticmethod
    def of(tensors: Iterable[TensorSpec]) -> StateSpec:
        """A spec from tensor specs in any order."""
        return StateSpec(tuple(sorted(tensors, key=lambda t: t.name)))

    def only(self, names: Iterable[str]) -> StateSpec:
        """Of these tensors."""
        return StateSpec.of(self.by_name[name] for name in names)

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """Tensor specs by name."""
        return {t.name: t for t in self.tensors}

    @cached_property
    def numel(self) -> int:
        """Number of values over all tensors."""
        return sum(self.sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of values of each tensor, in name order."""
        return [t.numel for t in self.tensors]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the values as fp32: what a dense message carries."""
        return 4 * self.numel

    def described(self) -> list[dict[str, Any]]:
        """What the fingerprint is of: each tensor's facts, for JSON."""
        tensors = [asdict(t) for t in self.tensors]
        for tensor in tensors:
            if tensor["experts"] == 1:  # as fingerprints were before there were experts
                del tensor["experts"]
        return tensors

    @cached_property
    def _fingerprint(self) -> str:
        text = json.dumps(self.described(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the spec; rides in every message."""
        return self._fingerprint

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class AdapterState(Mapping[str, Tensor]):
    """An immutable, sorted mapping from tensor name to fp32 tensor, with its spec.

    The tensors are owned by the state: callers must not write into them.
    """

    __slots__ = ("_flat", "_tensors", "spec")

    def __init__(self, spec: StateSpec, tensors: Mapping[str, Tensor]) -> None:
        """Check ``tensors`` against ``spec`` and take them over.

        Raises:
            SpecMismatch: a tensor is missing, unexpected, or of another shape or dtype.
        """
        if tensors.keys() != spec.by_name.keys():
            missing = sorted(spec.by_name.keys() - tensors.keys())[:3]
            extra = sorted(tensors.keys() - spec.by_name.keys())[:3]
            raise SpecMismatch("adapter state", expected=f"tensors {missing} too", got=f"unknown {extra}")
        for t in spec:
            value = tensors[t.name]
            if tuple(value.shape) != t.shape or value.dtype != getattr(torch, t.dtype):
                raise SpecMismatch(
                    f"tensor {t.name}",
                    expected=f"{t.dtype} {t.shape}",
                    got=f"{value.dtype} {tuple(value.shape)}",
                )
        self.spec = spec
        self._tensors: Mapping[str, Tensor] | None = {t.name: tensors[t.name].detach() for t in spec}
        self._flat: Tensor | None = None

    def _held(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            parts = self.flat().split_with_sizes(self.spec.sizes)
            self._tensors = {t.name: p.reshape(t.shape) for t, p in zip(self.spec, parts, strict=True)}
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._held()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.spec.by_name)

    def __len__(self) -> int:
        return len(self.spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterState):
            return NotImplemented
        return self.spec == other.spec and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]  # as for every mapping; sha256() names a state

    def __reduce__(self) -> tuple[object, ...]:
        """The values once: pickled by themselves, tensors that share memory would each bring all of it."""
        return _unpickled, (self.spec, self.flat().numpy().tobytes())

    def __repr__(self) -> str:
        return f"AdapterState({len(self)} tensors, {self.spec.numel} values, {self.sha256()[:12]})"

    @staticmethod
    def zeros(spec: StateSpec) -> AdapterState:
        """All zeros."""
        return AdapterState(spec, {t.name: torch.zeros(t.shape) for t in spec})

    @staticmethod
    def from_vector(spec: StateSpec, vector: Tensor) -> AdapterState:
        """The inverse of :meth:`vector`: split ``vector`` (float32 [numel]) in name order."""
        if vector.dtype != torch.float32 or tuple(vector.shape) != (spec.numel,):
            raise SpecMismatch(
                "flat vector",
                expected=f"float32 ({spec.numel},)",
                got=f"{vector.dtype} {tuple(vector.shape)}",
            )
        state = AdapterState.__new__(AdapterState)  # whoever does not ask for a tensor has none made
        state.spec, state._tensors, state._flat = spec, None, vector.detach().contiguous()
        return state

    def vector(self) -> Tensor:
        """All values, concatenated in name order, row-major: float32 [numel]. A copy."""
        if self._flat is not None:
            return self._flat.clone()
        if not len(self):
            return torch.zeros(0)
        return torch.cat([value.reshape(-1) for value in self._held().values()])

    def flat(self) -> Tensor:
        """The same to read only: no copy where the tensors lie one behind the other, as after from_vector."""
        if self._flat is not None:
            return self._flat
        tensors = list(self._held().values())
        if not tensors:
            return torch.zeros(0)
        memory, at = tensors[0].untyped_storage().data_ptr(), tensors[0].storage_offset()
        for tensor in tensors:
            behind = tensor.untyped_storage().data_ptr() == memory and tensor.storage_offset() == at
            if not (behind and tensor.is_contiguous()):
                return self.vector()
            at += tensor.numel()
        return tensors[0].as_strided((self.spec.numel,), (1,))

    def require_spec(self, spec: StateSpec, who: str) -> None:
        """Raise :class:`SpecMismatch` for ``who`` unless this state has ``spec``."""
        if self.spec is not spec and self.spec != spec:
            raise SpecMismatch(
                who, expected=f"spec {spec.fingerprint()[:12]}", got=self.spec.fingerprint()[:12]
            )

    def map(self, function: Callable[[Tensor], Tensor]) -> AdapterState:
        """Apply ``function`` to every tensor."""
        return AdapterState(self.spec, {name: function(value) for name, value in self.items()})

    def __add__(self, other: AdapterState) -> AdapterState:
        other.require_spec(self.spec, "sum of states")
        return AdapterState(self.spec, {name: self[name] + other[name] for name in self})

    def __sub__(self, other: AdapterState) -> AdapterState:
        other.require_spec(self.spec, "difference of states")
        return AdapterState(self.spec, {name: self[name] - other[name] for name in self})

    def __mul__(self, factor: float) -> AdapterState:
        return self.map(lambda value: value * factor)

    def isfinite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(bool(torch.isfinite(value).all()) for value in self.values())

    def max_abs(self) -> float:
        """The largest magnitude; 0.0 for an empty state."""
        return max((float(value.abs().max()) for value in self.values() if value.numel()), default=0.0)

    def norm(self) -> float:
        """The L2 norm over all values, in float64, in an order that no number of threads changes."""
        return math.sqrt(math.fsum(float(np.square(v.double().numpy()).sum()) for v in self.values()))

    def tobytes(self) -> bytes:
        """All values in name order, little-endian fp32."""
        return b"".join(
            value.contiguous().numpy().astype("<f4", copy=False).tobytes() for value in self.values()
        )

    def sha256(self) -> str:
        """SHA-256 (hex) over the spec's fingerprint and the values: ``adapter_sha256``."""
        digest = hashlib.sha256(self.spec.fingerprint().encode())
        for value in self.values():
            digest.update(value.contiguous().numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()


class SparseState(AdapterState):
    """A state that is +0 at most places. Whoever does not ask for a tensor pays for the others alone.

    Args:
        spec: of the state.
        places: int64 [n], ascending: where in the flat vector a value stands.
        entries: float32 [n], those values.
    """

    __slots__ = ("entries", "places")

    def __init__(
        self, spec: StateSpec, places: npt.NDArray[np.int64], entries: npt.NDArray[np.float32]
    ) -> None:
        """Take places and values over, which the caller vouches for."""
        self.spec, self.places, self.entries = spec, places, entries
        self._tensors = self._flat = None

    def __reduce__(self) -> tuple[object, ...]:
        return SparseState, (self.spec, self.places, self.entries)

    def vector(self) -> Tensor:
        """As :meth:`AdapterState.vector`."""
        return self.flat().clone()

    def flat(self) -> Tensor:
        """As :meth:`AdapterState.flat`; made once."""
        if self._flat is None:
            values = np.zeros(self.spec.numel, np.float32)
            values[self.places] = self.entries
            self._flat = torch.from_numpy(values)
        return self._flat


def _unpickled(spec: StateSpec, values: bytes) -> AdapterState:
    return AdapterState.from_vector(spec, torch.from_numpy(np.frombuffer(bytearray(values), np.float32)))


def sparse_where_few(state: AdapterState) -> AdapterState:
    """The same values, bit for bit, by place where at most a quarter of them is other than +0."""
    if isinstance(state, SparseState):
        return state
    flat = state.flat().numpy()
    places = np.flatnonzero(flat.view(np.int32) != 0)  # −0 is a value
    return SparseState(state.spec, places, flat[places]) if 4 * places.size <= flat.size else state


def sparse_state(
    spec: StateSpec,
    places: Sequence[npt.NDArray[np.int64]],
    entries: Sequence[npt.NDArray[np.float32]],
) -> AdapterState:
    """The state that has, of each tensor in name order, these values at these places and +0 elsewhere.

    Args:
        spec: of the state.
        places: of each tensor, ascending, in row-major order of the tensor.
        entries: the values there, float32.

    Returns:
        A :class:`SparseState` where at most a quarter of the values is given.
    """
    starts = np.cumsum([0, *spec.sizes]).tolist()[:-1]
    flat = [own + start for own, start in zip(places, starts, strict=True)]
    where = np.concatenate(flat) if flat else np.zeros(0, np.int64)
    what = np.concatenate(entries) if len(entries) else np.zeros(0, np.float32)
    if 4 * where.size <= spec.numel:
        return SparseState(spec, where, what)
    vector = np.zeros(spec.numel, np.float32)
    vector[where] = what
    return AdapterState.from_vector(spec, torch.from_numpy(vector))
