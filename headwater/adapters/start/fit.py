"""What a model takes from the adapter that it starts from: :func:`values_of`. Exact, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headwater.adapters.base import Base
from headwater.adapters.head import last_layer
from headwater.adapters.initial import initial_value
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.network import Network
from headwater.adapters.start.agreement import require_same_config
from headwater.adapters.start.source import Source
from headwater.adapters.trained_tensors import unit_of
from headwater.errors import DecodeError, ModelError
from headwater.merging.offline.tensor_file import Tensors
from headwater.seeds.keys import Key
from headwater.state import StateSpec, TensorSpec

Named = Mapping[str, tuple[TensorSpec, Tensor]]
_OF_TRAINING = frozenset(
    {
        "start", "start_sha256", "start_head", "dropout", "d_initial", "strength", "head_bits", "head",
        "target_modules", "layers", "feedforward_modules", "target_parameters",
    }
)  # fmt: skip
"""Keys of ``[adapter]`` that say how it began and was trained, or what a spec says too."""
_EMBEDDINGS = tuple(f".{name}." for name in EMBEDDING_LAYER_NAMES)
_RESIZED = "PEFT saved whole embeddings beside it. Save the resized base (model.path), and the adapter on it."


@dataclass(frozen=True)
class Target:
    """The model that is to start from an adapter, with its own attached.

    Args:
        base: its base.
        network: base, adapter and head.
        kind: of the adapter.
        spec: what of it travels.
    """

    base: Base
    network: Network
    kind: AdapterKind[Any]
    spec: StateSpec


@dataclass(frozen=True)
class Fitted:
    """What a model starts from instead of its seed.

    Args:
        values: by the tensor's name, float32 in the unit of a state.
        notices: what the user should know, one sentence each.
    """

    values: dict[str, Tensor]
    notices: tuple[str, ...] = ()


def values_of(source: Source, model: Target, named: Named) -> Fitted:
    """The values of ``source`` for ``model``.

    Args:
        source: the adapter to start from.
        model: what takes them.
        named: all tensors of its adapter, those that stay at home too.

    Raises:
        ModelError: of another base, task, kind, rank, place or label: says which.
        DecodeError: values that no float32 is.
    """
    _require_base(source, model)
    if source.config is None:
        return _of_state(source, model, named)
    _require_task(source, model)
    require_same_config(source.who, model.network.peft.active_peft_config, source.config)
    heads = {name for name, (spec, _) in named.items() if spec.role == "head"}
    notices = _unsaid(source, model)
    found, wanted = source.tensors, set(named)
    last = _last_layer(model) & heads
    if model.kind.adapter.start_head == "fresh":
        wanted -= last
        found = {name: place for name, place in found.items() if name not in last}
        order: list[int] | None = None
    else:
        order = _order(source, model)
        if model.base.labels and source.labels is None and last & found.keys():
            ours = ", ".join(model.base.labels)
            notices.append(
                f"{source.who} names no labels: its outputs are taken for data.labels' in order, {ours}"
            )
    if not heads & found.keys() and heads & wanted:
        notices.append(f"{source.who} brings no head: it starts as without it")
        wanted -= heads
    values = {name: _read(source, name, named[name][0]) for name in sorted(wanted & found.keys())}
    _require_names(source, model, wanted, set(found) - _copies(source, model, named, values))
    if order is not None:
        values |= {name: values[name][order] for name in last & values.keys()}
    return Fitted({name: v / unit_of(named[name][0]) for name, v in values.items()}, tuple(notices))


def _copies(source: Source, model: Target, named: Named, values: Mapping[str, Tensor]) -> set[str]:
    """What is in the folder twice, as the kind saves it, under names that training does not know."""
    if source.tensors.keys() <= named.keys() or values.keys() != named.keys():
        return set()
    saved = model.kind.saved(model.network.peft, values)
    return {
        name
        for name in saved.keys() & source.tensors.keys() - named.keys()
        if torch.equal(saved[name], torch.from_numpy(source.tensors[name][0].read(source.tensors[name][1])))
    }


def _of_state(source: Source, model: Target, named: Named) -> Fitted:
    """A state under the names of a spec: a version, or what a server sent."""
    if source.spec != model.spec.fingerprint():
        raise ModelError(
            source.who,
            expected=f"a state of this adapter and base, spec {model.spec.fingerprint()[:12]}",
            got=f"spec {source.spec[:12]}",
            hint="Leave all but start out of [adapter]; keep [model], data.labels and strategy.space.",
        )
    _require_same_settings(source, model)
    if (order := _order(source, model)) is not None:
        raise ModelError(
            source.who, expected=f"labels in the version's order: {', '.join(source.labels or ())}",
            got=f"others at {order}", hint="Give data.labels in its order, or start from its export.",
        )  # fmt: skip
    values = {}
    for name in model.spec.by_name if source.run is not None else named:
        if name not in source.tensors:
            raise DecodeError(source.who, expected=f"tensor {name}", got="none", hint="Copy the file again.")
        values[name] = _read(source, name, named[name][0])
    if source.run is not None:
        values |= _drawn(source, model, {n: p for n, p in named.items() if n not in model.spec.by_name})
    return Fitted(values)


def _require_same_settings(source: Source, model: Target) -> None:
    """Refuse a version whose values mean something else here: a spec says nothing of most kinds' scales."""
    if source.run is None or source.run.settings.adapter is None:
        return
    theirs = source.run.settings.adapter.model_dump(mode="json")
    ours = model.kind.adapter.model_dump(mode="json")
    for key in ("kind", *sorted((theirs.keys() | ours.keys()) - _OF_TRAINING - {"kind"})):
        if ours.get(key) != theirs.get(key):
            raise ModelError(
                f"{source.who}: {key} of its run",
                expected=f"{ours.get(key)!r}, as [adapter] has it",
                got=f"{theirs.get(key)!r}"[:200],
                hint=f"Leave adapter.{key} out: what the file does not say is read from the run.",
            )


def _drawn(source: Source, model: Target, fixed: Named) -> dict[str, Tensor]:
    """What stayed at home in a version's run: its seed has made it."""
    run = source.run
    assert run is not None
    settings = run.settings
    if fixed and (settings.adapter is None or settings.adapter.start is not None):
        raise ModelError(
            source.who, expected="a version whose fixed tensors its run's seed made", got="another start's",
            hint="Export the version (headwater server adapters export) and start from that folder.",
        )  # fmt: skip
    key, peft = Key.root(settings.federation.seed).child("adapter"), model.network.peft
    return {
        name: initial_value(spec, kind=model.kind, peft=peft, key=key, loaded=None)
        for name, (spec, _) in fixed.items()
    }


def _require_base(source: Source, model: Target) -> None:
    if source.base_sha256 and source.base_sha256 != model.base.sha256:
        raise ModelError(
            source.who,
            expected=f"an adapter of this base model, sha256 {model.base.sha256[:12]}",
            got=f"one of a base model with sha256 {source.base_sha256[:12]}",
            hint="An adapter is a change of one base's weights: set model.path to that base.",
        )


def _require_task(source: Source, model: Target) -> None:
    kind = source.notes.get("kind")
    if kind is not None and kind != model.base.settings.kind:
        raise ModelError(
            source.who,
            expected=f"an adapter of model.kind {model.base.settings.kind!r}",
            got=f"one of {kind!r}",
            hint="Set model.kind to that.",
        )


def _unsaid(source: Source, model: Target) -> list[str]:
    """What the adapter does not say, and its user must know."""
    if source.base_sha256 or source.config is None:
        return []
    theirs = str(source.config.get("base_model_name_or_path") or "none")
    ours = model.base.settings.path
    if theirs.rstrip("/").rpartition("/")[2] == ours.rstrip("/").rpartition("/")[2]:
        return []
    return [
        f"{source.who} names base model {theirs}, and model.path is {ours}: its weights cannot be compared"
    ]


def _order(source: Source, model: Target) -> list[int] | None:
    """For each of our labels the start's row of the head; None where they are alike, or unknown."""
    ours, theirs = model.base.labels, source.labels
    if ours is None or theirs is None or ours == theirs:
        return None
    if sorted(ours) != sorted(theirs):
        raise ModelError(
            f"{source.who}: labels",
            expected=f"those of data.labels: {', '.join(ours)}"[:300],
            got=", ".join(theirs)[:300],
            hint='Name the same, in any order, or set adapter.start_head = "fresh" for a new head.',
        )
    return [theirs.index(label) for label in ours]


def _last_layer(model: Target) -> set[str]:
    """Names of the tensors whose rows are the labels."""
    if model.network.head is not None:
        return {"head.weight", "head.bias"}
    if not model.base.settings.own_head or model.base.labels is None:
        return set()
    body = model.network.peft.get_base_model()
    found = last_layer(body, len(model.base.labels))
    below = "base_model." if model.network.peft.active_peft_config.is_prompt_learning else "base_model.model."
    plain = {n.replace(".modules_to_save.default", "").replace(".original_module", "") for n in found}
    return {f"{below}{name}" for name in plain}


def _require_names(source: Source, model: Target, wanted: set[str], found: set[str]) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if not missing and not extra:
        return
    if missing and not model.kind.exports_itself:
        raise ModelError(
            source.who, expected=f"what adapter.kind '{model.kind.adapter.kind}' trains: {missing[0]}",
            got="a folder for PEFT, which has only what is computed from it",
            hint="Leave adapter.kind out, to go on with what PEFT loads, or start from a version of its run.",
        )  # fmt: skip
    shown = [f"lacks {missing[0]}" + _more(missing)] if missing else []
    shown += [f"has {extra[0]}" + _more(extra)] if extra else []
    raise ModelError(
        source.who,
        expected=f"the {len(wanted)} tensors of [adapter] on {model.base.settings.path}",
        got=f"one that {' and '.join(shown)}",
        hint=_RESIZED
        if any(layer in name for name in extra for layer in _EMBEDDINGS)
        else "Leave target_modules and layers out of [adapter]: they are read from its adapter_config.json.",
    )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if names[1:] else ""


def _read(source: Source, name: str, spec: TensorSpec) -> Tensor:
    file, own = source.tensors[name]
    whole = spec.role == "shira_places" and file.tensors[own].dtype in ("I32", "I64")  # as PEFT has them
    values: Any = _numbers(source, file, own) if whole else file.read(own)
    if values.shape != spec.shape:
        raise ModelError(
            f"{source.who}, tensor {name}",
            expected=f"shape {list(spec.shape)}, as [adapter] and data.labels say",
            got=f"{list(values.shape)}",
            hint="Leave rank, tokens and target_modules out of [adapter]: they are read from its config. "
            'A head of other labels starts anew with adapter.start_head = "fresh".',
        )
    exact = values.astype(np.float32)
    if values.dtype != np.float32 and not np.array_equal(exact, values):
        raise DecodeError(
            f"{source.who}, tensor {name}", expected="values that float32 holds", got=str(values.dtype),
            hint="What is trained is float32: save the adapter in float32 first.",
        )  # fmt: skip
    return torch.from_numpy(np.array(exact, copy=True))


def _numbers(source: Source, file: Tensors, name: str) -> Any:  # noqa: ANN401 - an array of integers
    """Whole numbers, which merges of adapters know nothing of."""
    try:
        with safe_open(file.path, framework="numpy") as opened:
            values = opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise DecodeError(
            f"{source.who}, tensor {name}", expected="whole numbers in a safetensors file", got=str(error)
        ) from error
    return values
