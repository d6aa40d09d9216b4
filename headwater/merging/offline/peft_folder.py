"""PeftFolder: one adapter on disk, as PEFT saves it, and what its tensors are.

``adapter_config.json`` and the header of ``adapter_model.safetensors`` are read at once, values by tensor.
A LoRA module's change of its weight is s·B·A (arXiv 2106.09685), with s = α/r, or α/√r for rsLoRA
(arXiv 2312.03732); ``rank_pattern`` and ``alpha_pattern`` give modules their own r and α. AdaLoRA's B·E·A
(arXiv 2303.10512) is the same with E in B. Everything else in the file is *plain*: a tensor of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from headwater.errors import DecodeError, ModelError
from headwater.merging.offline.peft_config import (
    ATTENTION_OUT,
    CONFIG,
    LONGEST_NAME,
    LORA,
    PLAIN,
    WEIGHTS,
    rank_of,
    read_json,
    require_additive,
    scaling_of,
)
from headwater.merging.offline.tensor_file import Array, TensorFile, Tensors

HEAD, NOTES = "head.safetensors", "headwater.json"
COPIED = ".base_layer.weight"
"""The end of names of tensors that PEFT saves beside an adapter and that are the base's."""
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
"""The ends of names of DoRA's magnitudes (arXiv 2402.09353)."""
LORA_BIAS = ".lora_B.bias"
_KEPT_WITH_LORA = (*MAGNITUDES, LORA_BIAS)
"""Tensors that PEFT calls LoRA's and that are plain here: they are in no product."""
_EXPERT = "#"
"""Between a module's name and an expert's number."""
_LONGEST_SIDE = 1 << 24
"""Of a weight of which AdaLoRA took all directions out: its file has no values that would bound it."""
_LORA_A = re.compile(r"(?P<module>.+)\.(?:lora_A(?:\.weight)?|lora_embedding_A)")


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One weight that LoRA changes, by s·B·A.

    Args:
        a, b: the names of the factors' tensors.
        rank: r.
        scaling: s.
        rows, columns: of the weight's change as a matrix; a convolution's is [out, in·kernel].
        e: AdaLoRA's diagonal, or empty.
        shape_a, shape_b: of the tensors.
        expert, experts: which of how many weights in one parameter it is. PEFT keeps the factors of all in
            two tensors: A has the experts' rows one after the other, B their columns in turn.
    """

    a: str
    b: str
    rank: int
    scaling: float
    rows: int
    columns: int
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    e: str = ""
    expert: int = 0
    experts: int = 1

    @property
    def embedding(self) -> bool:
        """Whether the weight is an embedding, stored [columns, rows]; PEFT's names of the factors differ."""
        return "lora_embedding_" in self.a


@dataclass(frozen=True)
class PeftFolder:
    """An adapter on disk.

    Args:
        path: the folder.
        config: ``adapter_config.json``.
        notes: ``headwater.json``, where Headwater wrote the adapter; else empty.
        file: its values.
        head: the values of the head that Headwater keeps beside PEFT's file, or None.
        modules: its LoRA parts, by module, in order of name.
        plain: the shapes of its other tensors; those of ``head`` as ``head.NAME``.
    """

    path: Path
    config: Mapping[str, Any]
    notes: Mapping[str, Any]
    file: Tensors
    head: Tensors | None
    modules: Mapping[str, LoraPart] = field(default_factory=dict)
    plain: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def open(path: Path) -> PeftFolder:
        """Read what a folder says of itself; no values.

        Raises:
            StorageError: no such folder, or a file that cannot be read.
            DecodeError: a file that is not what its name says.
            ModelError: a kind of adapter that cannot be merged here, or tensors that its config denies.
        """
        config = read_json(path / CONFIG, path)
        kind = config.get("peft_type")
        if kind not in LORA + PLAIN:
            raise ModelError(
                f"{path}",
                expected=f"an adapter of kind {', '.join(LORA + PLAIN)}",
                got=f"peft_type {kind!r}",
                hint="What such adapters change is no sum of theirs: merge them into their base one by one.",
            )
        if not (path / WEIGHTS).is_file():
            raise _no_weights(path)
        file = TensorFile(path / WEIGHTS)
        _require_names(file)
        head = TensorFile(path / HEAD) if (path / HEAD).is_file() else None
        notes = read_json(path / NOTES, path) if (path / NOTES).is_file() else {}
        return PeftFolder.of(path, config, notes, file, head)

    @staticmethod
    def of(
        path: Path,
        config: Mapping[str, Any],
        notes: Mapping[str, Any],
        file: Tensors,
        head: Tensors | None,
    ) -> PeftFolder:
        """An adapter whose files are open; raises as :meth:`open`."""
        kind = config["peft_type"]
        modules = _lora_parts(path, config, file) if kind in LORA else {}
        used = {name for part in modules.values() for name in (part.a, part.b, part.e)}
        plain = {name: place.shape for name, place in file.tensors.items() if name not in used}
        if head is not None:
            plain |= {f"head.{name}": place.shape for name, place in head.tensors.items()}
        if not modules and not plain:
            raise ModelError(f"{path}", expected="an adapter with tensors", got="none in its file")
        stray = sorted(n for n in plain if kind in LORA and ".lora_" in n and not n.endswith(_KEPT_WITH_LORA))
        if stray:
            raise ModelError(
                f"{path}, tensor {stray[0]}",
                expected="for each lora_A its lora_B",
                got=f"{len(stray)} tensors without the other",
                hint="The file is not whole; save the adapter again.",
            )
        if kind in LORA:
            _require_told(path, config, modules, plain)
        return PeftFolder(path, config, notes, file, head, modules, plain)

    @property
    def kind(self) -> str:
        """PEFT's ``peft_type``; AdaLoRA counts as LoRA, which it merges to."""
        kind = str(self.config["peft_type"])
        return "LORA" if kind in LORA else kind

    @property
    def base(self) -> str:
        """The name of its base, as it was saved."""
        return str(self.config.get("base_model_name_or_path") or "")

    @cached_property
    def one_rank(self) -> bool:
        """Whether modules must have one rank: PEFT has none by name for parameters, or in an attention."""
        named = any(module.endswith(ATTENTION_OUT) for module in self.modules)
        return named or bool(self.config.get("target_parameters"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of its config's scales and its values: merges take adapters in this order."""
        digest, block = hashlib.sha256(), memoryview(bytearray(1 << 17))
        for part in self.modules.values():
            digest.update(f"{part.a} {part.rank} {part.scaling!r}\n".encode())
        for file in (self.file, self.head):
            if file is not None:
                with file.path.open("rb", buffering=0) as content:
                    while got := content.readinto(block):
                        digest.update(block[:got])
        return digest.hexdigest()

    def read(self, name: str) -> Array:
        """The values of a plain tensor, as stored."""
        if self.head is not None and name.startswith("head.") and name not in self.file.tensors:
            return self.head.read(name.removeprefix("head."))
        return self.file.read(name)

    def factors(self, module: str) -> tuple[Array, Array]:
        """s·B as [rows, r] and A as [r, columns], float64: their product is what the adapter adds."""
        return self.left(module).astype(np.float64, copy=False), self.right(module).astype(np.float64)

    def left(self, module: str) -> Array:
        """s·B [rows, r]: as stored where s is 1, else float64."""
        part = self.modules[module]
        if part.shape_a[0] == 0:  # of AdaLoRA, which took all of its directions out
            return np.zeros((part.rows, 1))
        b = self.file.read(part.b).reshape(part.rows, part.rank, part.experts)[:, :, part.expert]
        if part.e:
            b = b.astype(np.float64) * self.file.read(part.e).reshape(1, part.rank)
        return b if part.scaling == 1 else b.astype(np.float64) * part.scaling

    def right(self, module: str) -> Array:
        """A [r, columns], as stored."""
        part = self.modules[module]
        if part.shape_a[0] == 0:
            return np.zeros((1, part.columns))
        a = self.file.read(part.a).reshape(part.experts, part.rank, part.columns)
        own: Array = a[part.expert]
        return own


def _no_weights(path: Path) -> ModelError:
    pickle = path / "adapter_model.bin"
    return ModelError(
        f"{path}",
        expected=WEIGHTS,
        got=f"{pickle.name}, a pickle" if pickle.is_file() else "no file of weights",
        hint="A pickle runs code when it is loaded: load it where you trust it, and save it as safetensors."
        if pickle.is_file()
        else "Save the adapter with PEFT's save_pretrained.",
    )


def _require_names(file: TensorFile) -> None:
    for name in file.tensors:
        if len(name) > LONGEST_NAME or not name.isprintable():  # line ends, and what terminals obey
            raise DecodeError(
                f"{file.path}, tensor {name!r:.80}",
                expected=f"a name of at most {LONGEST_NAME} characters, all of them printable",
                got=f"{len(name)}" if len(name) > LONGEST_NAME else "others",
                hint="Save the adapter again with PEFT's save_pretrained, or leave it out.",
            )


def _require_told(
    path: Path, config: Mapping[str, Any], modules: Mapping[str, LoraPart], plain: Mapping[str, object]
) -> None:
    """DoRA's magnitudes and LoRA's biases and the options that announce them: PEFT ignores them without."""
    for module in modules:
        magnitude = any(f"{module}{end}" in plain for end in MAGNITUDES)
        if magnitude != bool(config.get("use_dora")):
            name, option = f"{module}{MAGNITUDES[0]}", "use_dora"
        elif f"{module}{LORA_BIAS}" in plain and not config.get("lora_bias"):  # without one it is zero
            name, option = f"{module}{LORA_BIAS}", "lora_bias"
        else:
            continue
        raise ModelError(
            f"{path}, tensor {name}",
            expected=f"a tensor where {CONFIG} has {option}, and none elsewhere",
            got=f"{option} {config.get(option)!r}" + (", and no such tensor" if config.get(option) else ""),
            hint="Its config and its weights are of two adapters.",
        )


def _lora_parts(path: Path, config: Mapping[str, Any], file: Tensors) -> dict[str, LoraPart]:
    require_additive(path, config)
    parts = {}
    for name, place in file.tensors.items():
        found = _LORA_A.fullmatch(name)
        if found is None:
            continue
        module, b = found["module"], _other(name, "B")
        if b not in file.tensors:
            raise ModelError(
                f"{path}, tensor {name}",
                expected=f"with it {b}",
                got="no such tensor",
                hint="The file is not whole; save the adapter again.",
            )
        e = f"{module}.lora_E" if f"{module}.lora_E" in file.tensors else ""
        part = _part(path, config, module, (name, b, e), place.shape, file.tensors[b].shape)
        if e and file.tensors[e].shape not in ((place.shape[0], 1), place.shape[:1]):
            raise ModelError(
                f"{path}, tensor {e}",
                expected=f"shape {[place.shape[0], 1]}, of the rank of its factors",
                got=f"{list(file.tensors[e].shape)}",
                hint="Save the adapter again, or leave it out.",
            )
        if part.experts == 1:
            parts[module] = part
        else:
            for expert in range(part.experts):
                parts[f"{module}{_EXPERT}{expert:06d}"] = dataclasses.replace(part, expert=expert)
    return parts


def module_name(module: str) -> str:
    """A module's name without PEFT's prefix, and without the number of an expert."""
    return module.removeprefix("base_model.model.").partition(_EXPERT)[0]


def _other(name: str, letter: str) -> str:
    """The name of the factor ``letter`` beside the A called ``name``."""
    at = name.rindex("_A")
    return f"{name[:at]}_{letter}{name[at + 2 :]}"


def _part(
    path: Path,
    config: Mapping[str, Any],
    module: str,
    names: tuple[str, str, str],
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
) -> LoraPart:
    key = module.removeprefix("base_model.model.")
    # of AdaLoRA the file says what is left of the rank
    adaptive = config["peft_type"] == "ADALORA"
    rank = shape_a[0] if adaptive and shape_a else rank_of(path, config, key)
    experts = _experts(path, config, rank, shape_a)
    sides = (*shape_a[1:], *shape_b[:1])
    if 0 in sides or (shape_a[:1] == (0,) and max(sides) > _LONGEST_SIDE):
        raise ModelError(
            f"{path}, module {key}",
            expected=f"factors of a weight with 1 to {_LONGEST_SIDE} rows and columns",
            got=f"A {list(shape_a)}, B {list(shape_b)}",
            hint="Save the adapter again, or leave it out.",
        )
    if len(shape_b) > 2 and shape_a[0] == rank and 0 < shape_b[1] < rank and rank % shape_b[1] == 0:
        raise ModelError(
            f"{path}, module {key}",
            expected="LoRA on a weight whose outputs see all inputs",
            got=f"a convolution in {rank // shape_b[1]} groups: A {list(shape_a)}, B {list(shape_b)}",
            hint="What grouped factors change is not B·A: leave such modules out of target_modules, or merge "
            "each adapter into its base.",
        )
    if len(shape_a) < 2 or len(shape_b) < 2 or shape_a[0] != experts * rank or shape_b[1] != experts * rank:
        raise ModelError(
            f"{path}, module {key}",
            expected=f"factors of rank {rank}, as {CONFIG} says: A [{rank}, in], B [out, {rank}]",
            got=f"A {list(shape_a)}, B {list(shape_b)}",
            hint="Its config and its weights are of two adapters.",
        )
    if any(size != 1 for size in shape_b[2:]):
        raise ModelError(f"{path}, module {key}", expected="B of 1x1 kernels", got=f"{list(shape_b)}")
    a, b, e = names
    scaling = scaling_of(path, config, key)
    columns = math.prod(shape_a[1:])
    return LoraPart(a, b, max(1, rank), scaling, shape_b[0], columns, shape_a, shape_b, e, experts=experts)


def _experts(path: Path, config: Mapping[str, Any], rank: int, shape_a: tuple[int, ...]) -> int:
    """How many weights an A of this shape is for: of parameters with three dimensions it is as many."""
    if not config.get("target_parameters"):
        return 1
    for pattern in ("rank_pattern", "alpha_pattern"):
        if config.get(pattern):
            raise ModelError(
                f"{path}, {CONFIG}",
                expected=f"no {pattern} beside target_parameters",
                got=f"{config[pattern]!r:.80}",
                hint="PEFT matches it with names of parameters, which the file does not have.",
            )
    return shape_a[0] // rank if len(shape_a) == 2 and shape_a[0] and shape_a[0] % rank == 0 else 1
