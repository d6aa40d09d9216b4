"""base_weights(): single weights of a base model, read from its files; the model is never built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headwater.errors import ModelError
from headwater.merging.offline.tensor_file import Array, TensorFile


def base_weights(folder: Path) -> Callable[[str], Array | None]:
    """A function that reads a weight of the base by its name, and gives None for a name that it lacks.

    Args:
        folder: with ``model.safetensors``, or with its parts.

    Raises:
        ModelError: there is no such file in it.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"--base {folder}",
            expected="a folder with the base's *.safetensors",
            got="a folder without" if folder.is_dir() else "no such folder",
        )
    opened = [TensorFile(file) for file in files]

    def read(name: str) -> Array | None:
        for file in opened:
            if name in file.tensors:
                return file.read(name)
        return None

    return read
