"""Write an adapter that PEFT alone loads: :func:`export`, :func:`export_vector`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from headwater.adapters.trained_tensors import unit_of
from headwater.config.data import InstructionData
from headwater.errors import StorageError
from headwater.files import whole_folder
from headwater.state import AdapterState

if TYPE_CHECKING:  # not to load Transformers, which takes seconds, for a vector
    from headwater.adapters.model import AdaptedModel

FORMAT = "headwater.adapter.v1"
WEIGHTS, HEAD, NOTES = "adapter_model.safetensors", "head.safetensors", "headwater.json"


def export(
    model: AdaptedModel,
    state: AdapterState,
    folder: Path,
    *,
    card: Mapping[str, object],
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write ``state`` as a folder for ``PeftModel.from_pretrained(base, folder)``.

    ``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's own format and hold the frozen
    tensors too. The mean-pooled head of an encoder, which PEFT has no place for, lies beside them as
    ``head.safetensors`` (``weight``, ``bias``); ``README.md`` shows the five lines that apply it.
    ``headwater.json`` has labels, pooling, hashes, and how rows are read.

    Args:
        model: the model that ``state`` belongs to; it is not changed.
        state: what to write.
        folder: is made, or replaced as a whole; it is never half written.
        card: what the README should tell about the run (JSON values).
        beside: other files of the folder, by name.

    Raises:
        SpecMismatch: ``state`` is of another model.
        StorageError: the folder cannot be written.
    """
    from headwater.adapters.card import readme

    state.require_spec(model.spec, "state to export")
    tensors = model.saved_tensors(state)
    values = _values(model, state, tensors)
    head = {n.removeprefix("head."): tensors.pop(n) for n in sorted(tensors) if n.startswith("head.")}
    config = copy.copy(model.network.peft.active_peft_config)
    config.base_model_name_or_path = model.base.settings.path
    config.revision = model.base.settings.revision
    config.inference_mode = True
    for name, value in vars(config).items():
        if isinstance(value, set):  # PEFT would write it in the order of this process's hashes
            setattr(config, name, sorted(value))
    notes = {**_notes(model, state, card), "values": values}

    def write(folder: Path) -> None:
        config.save_pretrained(folder)
        _save(tensors, folder / WEIGHTS)
        if head:
            _save(head, folder / HEAD)
        _write_json(folder / NOTES, notes)
        (folder / "README.md").write_text(readme(notes), encoding="utf-8")
        _write_beside(beside, folder)

    _replace_folder(folder, write)


def export_vector(
    state: AdapterState,
    folder: Path,
    *,
    card: Mapping[str, object],
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write the state of a federation without a base model: values and ``headwater.json``.

    Raises:
        StorageError: the folder cannot be written.
    """
    notes = {
        "format": FORMAT,
        "kind": "vector",
        "adapter_sha256": state.sha256(),
        "spec": state.spec.fingerprint(),
        "values": {"tensors": state.spec.described()},
        "card": dict(card),
    }

    def write(folder: Path) -> None:
        _save(dict(state), folder / WEIGHTS)
        _write_json(folder / NOTES, notes)
        _write_beside(beside, folder)

    _replace_folder(folder, write)


def _notes(model: AdaptedModel, state: AdapterState, card: Mapping[str, object]) -> dict[str, Any]:
    from headwater.adapters.reading.settings import ends_of

    data = None if model.reading is None else model.reading.data
    chat = data if isinstance(data, InstructionData) else None
    decoder = hasattr(model.network.peft.get_base_model(), "score")
    return {
        "format": FORMAT,
        "kind": model.base.settings.kind,
        "labels": None if model.labels is None else list(model.labels),
        "pooling": None if model.network.head is None else "none" if model.network.each_token else "mean",
        "base": {**model.base.settings.model_dump(mode="json"), "sha256": model.base_sha256},
        "pad_token_id": model.base.tokenizer.pad,
        "adapter": model.adapter.model_dump(mode="json", exclude={"start", "start_sha256", "start_head"}),
        "adapter_sha256": state.sha256(),
        "spec": model.spec.fingerprint(),
        "chat": chat is not None,
        "system": chat.system if chat is not None else None,
        "rows": None if model.reading is None else model.reading.notes(model.base.tokenizer),
        "ends": ends_of(model.base.model, model.base.tokenizer, model.reading)
        if model.base.settings.writes
        else None,
        "token_types": model.network.separator is not None,
        "read_at_last_token": model.network.model.own_head and decoder,
        "card": dict(card),
    }


def _values(model: AdaptedModel, state: AdapterState, saved: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """How the state's hash follows from the saved tensors; None where they are computed from its values.

    ``tensors``: what the spec's fingerprint, which every receipt has, is of. A head's are in its unit.
    """
    for tensor in state.spec:
        name, unit = tensor.name, unit_of(tensor)
        if name not in saved or not torch.equal(saved[name], state[name] * unit):
            return None
    return {"tensors": state.spec.described()}


def _write_beside(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder that then takes the place of ``folder``."""
    try:
        with whole_folder(folder) as temporary:
            write(temporary)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own
        raise StorageError(
            f"export to {folder}",
            expected="room in a folder that can be written",
            got=getattr(error, "strerror", None) or str(error),
            hint="What was there before is intact; free space or fix the rights, then resume.",
        ) from error
