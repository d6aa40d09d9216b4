"""Source: the adapter that ``adapter.start`` names, opened: :func:`open_source`.

It is a folder that PEFT or Headwater wrote, a run folder (whose result is meant), a version's file of a
server, a ``.hw`` file, or what a server has sent a device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from headwater.config.load import LoadedFederation, load_federation
from headwater.config.start import CONFIG, NOTES, RUN_ADAPTER, folder_of, run_of_version
from headwater.errors import DecodeError, HeadwaterError, ModelError
from headwater.experts.expert_file import open_adapter
from headwater.merging.offline.peft_config import LORA, WEIGHTS, read_json, require_additive
from headwater.merging.offline.tensor_file import TensorFile, Tensors
from headwater.receipts.bundle import receipt_hash
from headwater.tasks.table import task_of

HEAD = "head.safetensors"
SENT, VERSION = "headwater.start", "headwater"
"""Keys of the metadata of what a server sends, and of a version."""


@dataclass(frozen=True)
class Source:
    """An adapter to start from.

    Args:
        who: it is, for messages.
        what: ``folder``, ``run``, ``version``, ``compressed`` or ``sent``.
        files: where its tensors are, each with what stands before their names here.
        config: ``adapter_config.json``; None where the values are a state under the names of a spec.
        notes: ``headwater.json``; empty where nobody wrote one.
        spec: of which spec the state is: a fingerprint; empty of folders.
        run: of a version, the federation that made it.
        labels: names of its head's outputs; None of what does not say.
        base_sha256: of the base that it was trained on; empty where it does not say.
        receipt: hash of its receipt; None where it came without.
    """

    who: str
    what: str
    files: tuple[tuple[str, Tensors], ...]
    config: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""
    run: LoadedFederation | None = None
    labels: tuple[str, ...] | None = None
    base_sha256: str = ""
    receipt: str | None = None

    @property
    def tensors(self) -> dict[str, tuple[Tensors, str]]:
        """For each tensor's name here, the file that has it and its name there."""
        return {f"{before}{name}": (file, name) for before, file in self.files for name in file.tensors}

    def lineage(self, path: str) -> dict[str, Any]:
        """What a run folder remembers of it: which adapter, and which run made it, as far as it says.

        Args:
            path: ``adapter.start`` as it stands in the federation file.
        """
        if isinstance(kept := self.notes.get("lineage"), dict):
            return kept
        card = self.notes.get("card")
        card = card if isinstance(card, dict) else {}
        run = self.run
        found = {
            "path": path,
            "from": self.what,
            "adapter_sha256": self.notes.get("adapter_sha256"),
            "base_sha256": self.base_sha256 or None,
            "federation": card.get("name") if run is None else run.settings.federation.name,
            "federation_sha256": card.get("federation_sha256") if run is None else run.sha256(),
            "seed": card.get("seed") if run is None else run.settings.federation.seed,
            "round": card.get("adapter_round"),
            "version": self.notes.get("version"),
            "before": card.get("start"),
            "receipt": self.receipt,
        }
        return {key: value for key, value in found.items() if value is not None}


def open_source(path: Path, named: str) -> Source:
    """Open the adapter at ``path``; its values are read later.

    Args:
        path: of it.
        named: how the federation file calls it.

    Raises:
        ModelError: there is none, or none that training can go on with.
        DecodeError, StorageError: a file that is not what its name says.
    """
    who = f"adapter.start {named}"
    if not path.exists():
        raise ModelError(
            who, expected=f"an adapter at {path}", got="nothing there",
            hint="Relative paths start at the federation file's folder.",
        )  # fmt: skip
    if path.is_dir():
        return _of_folder(path, who)
    if path.suffix != ".safetensors":
        return _of_compressed(path, who)
    if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return _of_folder(path.parent, who)
    return _of_state(path, who)


def _of_folder(path: Path, who: str) -> Source:
    place = folder_of(path)
    if not (place / CONFIG).is_file() and (path / "state" / "origin.json").is_file():
        raise ModelError(
            who, expected="a run that has an adapter", got=f"{path}, whose run has not ended",
            hint="Go on with it (headwater simulate --resume), or start from a version of it.",
        )  # fmt: skip
    config = read_json(place / CONFIG, place)
    if config.get("peft_type") in LORA:
        require_additive(place, config)
    if not (place / WEIGHTS).is_file():
        pickle = place / "adapter_model.bin"
        raise ModelError(
            who, expected=f"{WEIGHTS} in {place}", got="a pickle" if pickle.exists() else "none",
            hint="Save the adapter again with PEFT's save_pretrained.",
        )  # fmt: skip
    notes = read_json(place / NOTES, place) if (place / NOTES).is_file() else {}
    files: list[tuple[str, Tensors]] = [("", TensorFile(place / WEIGHTS))]
    if (place / HEAD).is_file():
        files.append(("head.", TensorFile(place / HEAD)))
    what = (
        "run"
        if place.name == RUN_ADAPTER and (place.parent / "state" / "origin.json").is_file()
        else "folder"
    )
    receipt = receipt_hash(place, notes.get("adapter_sha256"))
    return _described(Source(who, what, tuple(files), config, notes, receipt=receipt))


def _of_compressed(path: Path, who: str) -> Source:
    try:
        adapter = open_adapter(path)
    except HeadwaterError as error:
        raise ModelError(
            who,
            expected="a folder of an adapter, a version's .safetensors file, or a file of headwater compress",
            got=str(error),
            hint="A file with an origin must be unpacked first: headwater decompress FILE --origin ADAPTER.",
        ) from error
    files: list[tuple[str, Tensors]] = [("", adapter.file)]
    if adapter.head is not None:
        files.append(("head.", adapter.head))
    return _described(Source(who, "compressed", tuple(files), adapter.config, adapter.notes))


def _described(source: Source) -> Source:
    """With what the notes say of labels and base."""
    labels, base = source.notes.get("labels"), source.notes.get("base")
    return Source(
        source.who, source.what, source.files, source.config, source.notes,
        labels=tuple(map(str, labels)) if isinstance(labels, list) else None,
        base_sha256=str(base.get("sha256") or "") if isinstance(base, dict) else "",
        receipt=source.receipt,
    )  # fmt: skip


def _of_state(path: Path, who: str) -> Source:
    """A version's file, or what a server sent."""
    file = TensorFile(path)
    try:
        with safe_open(path, framework="numpy") as opened:
            said = opened.metadata() or {}
        sent = json.loads(said[SENT]) if SENT in said else None
        note = json.loads(said[VERSION]) if VERSION in said else None
        if sent is not None:
            notes = {"lineage": sent.get("lineage")}
            return Source(who, "sent", (("", file),), notes=notes, spec=str(sent["spec"]))
        run = run_of_version(path)
        if note is None or run is None:
            raise KeyError("no version of a run folder, nor anything that a server sent")
        spec, sha256, number = str(note["spec"]), str(note["sha256"]), int(note["version"])
        origin = json.loads((run / "state" / "origin.json").read_text(encoding="utf-8"))
        base_sha256 = str(origin.get("inputs", {}).get("base", ""))
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DecodeError(
            who, expected="a version's file in the versions folder of its run, as a server wrote it",
            got=f"{path.name}: {error}",
            hint="Give the folder of the adapter, or export the version: headwater server adapters export.",
        ) from error  # fmt: skip
    loaded = load_federation(run / "federation.toml", folder=run, trackers=False)
    labels = task_of(loaded.settings.data).outputs if loaded.settings.data.has_rows else None
    notes = {"adapter_sha256": sha256, "version": number}
    return Source(who, "version", (("", file),), None, notes, spec, loaded, labels, base_sha256)
