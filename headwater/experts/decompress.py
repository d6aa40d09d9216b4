"""decompress(): a compressed adapter as a folder that PEFT loads."""

from __future__ import annotations

from pathlib import Path

from headwater.experts.numbers import TYPES, bits_of
from headwater.merging.offline.output import place_of, whole_output, write_json
from headwater.merging.offline.peft_config import CONFIG, WEIGHTS
from headwater.merging.offline.peft_folder import HEAD, NOTES, PeftFolder
from headwater.merging.offline.tensor_file import Tensors, TensorWriter


def decompress(adapter: PeftFolder, out: Path, *, overwrite: bool = False) -> None:
    """Write an adapter as PEFT's ``save_pretrained`` does; whole or not at all.

    Args:
        adapter: that was opened from a compressed file.
        out: the folder.
        overwrite: whether it may be there.

    Raises:
        ConfigError: it is there, or where the adapter is.
        DecodeError: a part of the file is not what it should be.
        StorageError: the folder cannot be written.
    """
    with whole_output(place_of(out, [adapter], overwrite=overwrite)) as folder:
        _write(adapter.file, folder / WEIGHTS)
        if adapter.head is not None:
            _write(adapter.head, folder / HEAD)
        write_json(folder / CONFIG, adapter.config)
        if adapter.notes:
            write_json(folder / NOTES, adapter.notes)


def _write(tensors: Tensors, path: Path) -> None:
    with TensorWriter(path) as file:
        for name, place in tensors.tensors.items():
            values = tensors.read(name)
            if place.dtype == "F32":
                file.add(name, values)
            else:
                bits = bits_of(values.reshape(-1), TYPES[place.dtype])
                file.add_bits(name, bits.reshape(values.shape), place.dtype)
