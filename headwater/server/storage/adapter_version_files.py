"""The two files of an adapter version: its row as a line, its values as safetensors."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from headwater.errors import SpecMismatch, StorageError
from headwater.files import write_atomically
from headwater.protocol.control import AdapterRow
from headwater.tensor_bytes import save

if TYPE_CHECKING:  # torch: who only lists versions needs none
    from headwater.state import AdapterState, StateSpec


def save_values(path: Path, row: AdapterRow, state: AdapterState) -> None:
    """Write the values of a row's version; the same ones give the same bytes.

    Raises:
        StorageError: the disk is full or not writable.
    """
    arrays = {name: value.contiguous().numpy() for name, value in state.items()}
    # one entry only: safetensors writes its metadata map in no fixed order
    note = _note(row.version, row.sha256, state.spec.fingerprint())
    write_atomically(path, save(arrays, metadata={"headwater": note}))


def load_values(path: Path, row: AdapterRow, spec: StateSpec) -> AdapterState:
    """The values of a row's version.

    Raises:
        FileNotFoundError: they are not kept.
        StorageError: they are damaged, or another version's.
        SpecMismatch: they are of another adapter.
    """
    from headwater.state import AdapterState

    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata()["headwater"]
            made_of = str(json.loads(note)["spec"])
            if note != _note(row.version, row.sha256, made_of):
                raise ValueError("values of another version")
            if made_of == spec.fingerprint():
                state = AdapterState(spec, {name: file.get_tensor(name) for name in spec.by_name})
                if state.sha256() != row.sha256:
                    raise ValueError("values that do not match the sha256 of the row")
                return state
    except FileNotFoundError:
        raise
    except (SafetensorError, SpecMismatch, ValueError, KeyError, TypeError, OSError) as error:
        raise StorageError(
            f"adapter version {row.version} in {path}",
            expected="the values as they were written",
            got=f"a damaged file ({error})",
            hint="Choose another version, or restore the file from a backup.",
        ) from error
    raise SpecMismatch(
        f"adapter version {row.version}", expected=f"spec {spec.fingerprint()[:12]}", got=made_of[:12]
    )


def _note(version: int, sha256: str, spec: str) -> str:
    return json.dumps({"version": version, "sha256": sha256, "spec": spec})


def row_line(row: AdapterRow) -> bytes:
    """A row as it is written, without a line feed."""
    content = asdict(row)
    del content["kept"]  # what is on disk says so
    content["value"] = row.value if math.isfinite(row.value) else None
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def row_of(line: bytes) -> AdapterRow:
    """The row that :func:`row_line` wrote; ``kept`` is false.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    content = json.loads(line)
    value = content["value"]
    return AdapterRow(
        **{
            **content,
            "cohort": tuple(content["cohort"]),
            "value": math.nan if value is None else float(value),
            "kept": False,
        }
    )
