"""A client's control variate (SCAFFOLD, arXiv 1910.06378): c_i, kept between rounds in two steps.

Whether an update was accepted is known only when the server speaks again: until then the client keeps c_i as
it was before that round, and as it is if the update counts. So c stays the mean of what clients go on with. A
client that misses rounds keeps its c_i.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError

from headwater.errors import SpecMismatch, StorageError
from headwater.merging.control_variates import mean_gradient
from headwater.state import AdapterState, StateSpec
from headwater.tensor_bytes import load, pieces

_MAGIC = b"HWCV1\n"
_HEAD = len(_MAGIC) + 32
_ENTRY = "headwater"


@dataclass(frozen=True, slots=True)
class ControlVariate:
    """What a client keeps.

    Args:
        value: c_i that is settled; None is all zero, as a new client's is.
        round: of the last update, whose fate is not known yet; 0 without one.
        if_accepted: c_i⁺, should that update have been accepted; given with ``round``.
    """

    value: AdapterState | None = None
    round: int = 0
    if_accepted: AdapterState | None = None

    def settled(self, accepted_round: int) -> AdapterState | None:
        """c_i once the server has said which update of this client it accepted last; None is all zero.

        Args:
            accepted_round: of the request. Earlier than the kept round: that update does not count.
        """
        if self.if_accepted is None or self.round > accepted_round:
            return self.value
        return self.if_accepted


def correction(mine: AdapterState | None, control: AdapterState) -> AdapterState:
    """The correction c − c_i, which is added to every gradient of a round."""
    return control if mine is None else control - mine


def after_training(
    mine: AdapterState | None, control: AdapterState, delta: AdapterState, rates: dict[str, float], steps: int
) -> AdapterState:
    """c_i⁺ = c_i − c + (x − y)/(Kη).

    Args:
        mine: c_i; None is all zero.
        control: c.
        delta: y − x, as the server decodes it.
        rates: η of each tensor, by name.
        steps: K.
    """
    gradient = mean_gradient(delta, rates, steps)
    return AdapterState.from_vector(
        delta.spec, (gradient - correction(mine, control).vector().double()).float()
    )


def to_bytes(kept: ControlVariate) -> list[bytes | memoryview]:
    """A file's content, piece by piece: a magic, the SHA-256 of the rest, and a safetensors container."""
    states = {"value": kept.value, "if_accepted": kept.if_accepted}
    present = {part: state for part, state in states.items() if state is not None}
    arrays = {f"{part}/{n}": v.contiguous().numpy() for part, s in present.items() for n, v in s.items()}
    spec = next((s.spec.fingerprint() for s in present.values()), "")
    entry = {"spec": spec, "round": kept.round, "parts": sorted(present)}
    content = pieces(arrays, metadata={_ENTRY: json.dumps(entry, sort_keys=True)})
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return [_MAGIC + digest.digest(), *content]


def from_bytes(data: bytes, spec: StateSpec, what: str = "control variate") -> ControlVariate:
    """The inverse of :func:`to_bytes`.

    Args:
        data: of a file.
        spec: of the values.
        what: the file has, for messages; its kind is the first word.

    Raises:
        StorageError: torn, altered or foreign bytes.
        SpecMismatch: intact, but of another adapter than ``spec``.
    """
    content = data[_HEAD:]
    if data[:_HEAD] != _MAGIC + hashlib.sha256(content).digest():
        raise _torn(what, "a file that carries its own SHA-256", f"{len(data)} bytes that do not")
    try:
        size = int.from_bytes(content[:8], "little")
        entry = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_ENTRY])
        arrays = load(content)
        if entry["spec"] not in ("", spec.fingerprint()):
            raise SpecMismatch(
                what,
                expected=f"values of spec {spec.fingerprint()[:12]}",
                got=str(entry["spec"])[:12],
                hint=f"The adapter changed: remove the client's .{what.split()[0]} file, and it starts anew.",
            )
        states = {
            part: AdapterState(spec, {t.name: torch.from_numpy(arrays[f"{part}/{t.name}"]) for t in spec})
            for part in entry["parts"]
        }
        return ControlVariate(states.get("value"), int(entry["round"]), states.get("if_accepted"))
    except (SafetensorError, ValueError, OverflowError, KeyError, TypeError, IndexError) as error:
        # the checksum held, so another program or version wrote this
        raise _torn(what, f"a {what} of this version", repr(error)[:80]) from None


def _torn(what: str, expected: str, got: str) -> StorageError:
    return StorageError(
        what,
        expected=expected,
        got=got,
        hint=f"Put back a copy of the client's .{what.split()[0]} file, or remove it: the client then starts "
        "anew.",
    )
