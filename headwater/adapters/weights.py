"""Where a base model's files are and what they hash to: :func:`resolve_base`, :func:`hash_base`."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from headwater.errors import ModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version")


def resolve_base(path: str, revision: str | None, folder: Path) -> Path:
    """The folder that holds the base model.

    Args:
        path: a folder, relative to ``folder``; else a hub name, taken from the local cache or the hub.
        revision: of a hub name.
        folder: the federation file's folder.

    Raises:
        ModelError: neither a folder nor a hub name that can be had.
    """
    local = (folder / Path(path).expanduser()).resolve()
    if local.is_dir():
        return local
    if not _HUB_NAME.fullmatch(path):
        raise ModelError(
            f"model.path {path!r}",
            expected=f"a folder at {local} or a hub name",
            got="neither",
            hint="Check the path; it is relative to the federation file.",
        )
    from huggingface_hub import snapshot_download

    try:
        # nested folders hold exports for other runtimes (onnx/, openvino/): never needed here
        found = snapshot_download(path, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"])
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path {path!r}",
            expected=f"a folder at {local} or a model on the hub",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="Check the name and the network, or download the model once and give its folder.",
        ) from error
    return Path(found)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that ``from_pretrained`` reads, sorted by name.

    Raises:
        ModelError: there are none; pickled weights are refused because loading them runs code.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise ModelError(f"base model {folder}", expected=f"file {missing[0]}", got="nothing there")
        return files
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    raise ModelError(
        f"base model {folder}",
        expected="model.safetensors",
        got=f"only pickled weights: {pickled[0]}" if pickled else "no weights",
        hint="Pickled weights can run code and are refused: convert them with save_pretrained."
        if pickled
        else "Give a folder written by save_pretrained.",
    )


def hash_base(folder: Path) -> str:
    """SHA-256 (hex) of a base model: what every member of a federation must share.

    Over config.json as canonical JSON, without the keys that name a place or a library version
    (``_name_or_path``, ``transformers_version``), then over name, size and bytes of each weight file
    in order of name. Where the folder lies, its tokenizer and its other files do not matter; the
    same weights cut into other shards hash differently.

    Raises:
        ModelError: no config.json, or no safetensors weights.
    """
    files = weight_files(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"base model {folder}", expected="a config.json", got=str(error)) from error
    for key in _VOLATILE_CONFIG_KEYS:
        config.pop(key, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for file in files:
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
