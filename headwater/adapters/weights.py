"""Where a base model's files are, and what they hash to.

:func:`resolve_base` finds the folder, :func:`hash_base` hashes it, :func:`hashed_files` shows transformers
those files alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from headwater.errors import ModelError, StorageError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = [
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.spm",
    "*.tiktoken",
    "*.bpe",
    "*.codes",
]
_TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model", "*.spm", "*.tiktoken",
    "bpe.codes", "dict.txt", "emoji.json", "tekken.json", "vocab.bpe", "additional_chat_templates/*.jinja",
)  # fmt: skip
_VOLATILE_KEYS = {
    "config.json": ("_name_or_path", "transformers_version"),
    # how the tokenizer was last called; a call says it anew
    "tokenizer.json": ("padding", "truncation"),
    "tokenizer_config.json": (
        "_name_or_path", "is_local", "local_files_only", "name_or_path", "special_tokens_map_file",
        "tokenizer_file", "transformers_version",
    ),
}  # fmt: skip
"""JSON files that are hashed in canonical form, and their keys that name a place, a version or a call."""


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
    if not HUB_NAME.fullmatch(path):
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
        ModelError: there are none, or the list of them is no list of files beside it; pickled weights are
            refused because loading them runs code.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        files = [folder / name for name in _listed(index)]
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


def _listed(index: Path) -> list[str]:
    """Names of the files that an index of shards lists, sorted.

    Raises:
        ModelError: it is damaged, or names files elsewhere: a folder's hash is that of its own files.
    """
    who = f"base model {index.parent}"
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(
            who, expected=f"a {index.name} with a weight_map of tensors to files", got=got,
            hint="Get it again from where the weights came.",
        ) from None  # fmt: skip
    elsewhere = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if elsewhere or not names:
        got = f"{elsewhere[0]!r:.80}" if elsewhere else "none"
        raise ModelError(who, expected=f"names of files beside {index.name}", got=got)
    return names


def hash_base(folder: Path) -> str:
    """SHA-256 (hex) of a base model: what every member of a federation must share.

    Over config.json, then name, size and bytes of each weight file in order of name, then the same of
    each tokenizer file. config.json, tokenizer.json and tokenizer_config.json count as canonical JSON,
    without the keys of ``_VOLATILE_KEYS``. Where the folder lies and its other files do not matter. The
    same weights cut into other shards hash differently, and so does one tokenizer written in other files.

    Raises:
        ModelError: no config.json, a damaged JSON file, or no safetensors weights.
    """
    digest = hashlib.sha256(_canonical(folder / "config.json"))
    for file in weight_files(folder):
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    for file in _tokenizer_files(folder):
        content = _canonical(file) if file.name in _VOLATILE_KEYS else file.read_bytes()
        digest.update(f"\n{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def hashed_files(folder: Path) -> Iterator[Path]:
    """A folder of links to the files that :func:`hash_base` reads, and to no others.

    transformers looks at more than the weights: an adapter that lies beside them is loaded and applied, one
    that names another base has that one loaded instead. Files of such names are thus out of its sight.

    Raises:
        ModelError: as :func:`weight_files`.
        StorageError: there is no room for the links.
    """
    index = folder / "model.safetensors.index.json"
    weights = weight_files(folder)
    shown = [folder / "config.json", *weights, *_tokenizer_files(folder)]
    if weights != [folder / "model.safetensors"]:
        shown.append(index)
    with contextlib.ExitStack() as stack:
        with temporary_storage():
            view = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-base-")))
            for file in shown:
                if file.is_file():
                    link = view / file.relative_to(folder)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.resolve())
        yield view


@contextlib.contextmanager
def temporary_storage() -> Iterator[None]:
    """Inside, a full or read-only folder for temporary files is an error that says so.

    Raises:
        StorageError: names the folder.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"temporary folder {tempfile.gettempdir()}",
            expected="room for a few small files",
            got=error.strerror or str(error),
            hint="Free space there, or name another folder in the environment variable TMPDIR.",
        ) from error


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})


def _canonical(file: Path) -> bytes:
    """A JSON object: keys sorted, no white space, without its volatile keys."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"base model {file.parent}", expected=f"a {file.name} that holds a JSON object", got=str(error)
        ) from error
    kept = {key: value for key, value in content.items() if key not in _VOLATILE_KEYS[file.name]}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
