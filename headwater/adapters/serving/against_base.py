"""against_base(): what of an adapter does not go with its base model, by the base's files; no values."""

from __future__ import annotations

from collections.abc import Iterator

from headwater.adapters.serving.base_files import BaseFiles
from headwater.adapters.serving.traits import PREFIX, Subject
from headwater.merging.offline.peft_folder import module_name
from headwater.merging.offline.tensor_file import TensorFile

OUTPUTS = ("lm_head", "embed_out", "output_projection")
"""Last names of a model's output, which may be its embeddings once more."""
INPUTS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "shared")
"""Last names of a model's embeddings."""
_TOLD = 3
"""Names that one sentence has at most."""


def against_base(subject: Subject, base: BaseFiles) -> list[str]:
    """What would go wrong with an adapter on a base, a sentence each; empty where it fits.

    Args:
        subject: the adapter.
        base: its base model.

    Raises:
        ModelError, DecodeError, StorageError: files of the base that cannot be read.
    """
    if subject.adapter is None:
        return []
    return [
        *_shapes(subject, base, base.files()),
        *_vocabulary(subject, base),
        *_ends(subject, base),
        *_quantised(base),
    ]


def tied_end(subject: Subject, base: BaseFiles) -> str | None:
    """The one end that is adapted of a model whose output is its embeddings; None where both or none are."""
    adapter = subject.adapter
    together = subject.config.get("ensure_weight_tying")
    if adapter is None or together or not base.config.get("tie_word_embeddings"):
        return None
    adapted = {module_name(module) for module in adapter.modules}
    adapted |= {name.removeprefix(PREFIX).rpartition(".")[0] for name in adapter.plain}
    ends = [name for name in sorted(adapted) if name.rpartition(".")[2] in (*OUTPUTS, *INPUTS)]
    return ends[0] if ends else None


def _ends(subject: Subject, base: BaseFiles) -> Iterator[str]:
    if (end := tied_end(subject, base)) is not None:
        yield (
            f"{end} is adapted, and the base's output is its embeddings (tie_word_embeddings): PEFT changes "
            "one of them. --for merged is refused, and a runtime that keeps one weight for both changes both."
        )


def _shapes(subject: Subject, base: BaseFiles, files: list[TensorFile]) -> Iterator[str]:
    """Weights that the base lacks, or has with other sides: another model, or another size of it."""
    assert subject.adapter is not None
    there = {name: place for file in files for name, place in file.tensors.items()}
    parts = {
        module_name(m): p
        for m, p in subject.adapter.modules.items()
        if p.experts == 1 and len(p.shape_a) == 2 and not p.embedding
    }
    lacks, other = [], []
    tied = base.config.get("tie_word_embeddings")
    for module, part in sorted(parts.items()):
        names = base.names([module], files)
        if names is None:
            if not (tied and module.rpartition(".")[2] in OUTPUTS):  # said below
                lacks.append(module)
            continue
        shape = there[next(iter(names))].shape
        if shape not in ((part.rows, part.columns), (part.columns, part.rows)):
            other.append(f"{module} of {part.rows} x {part.columns}, there {' x '.join(map(str, shape))}")
    if lacks:
        yield f"The base's files lack {_some(lacks)}: another model, or other names (a tied or fused weight)."
    if other:
        yield f"The base has other sides: {_some(other)}. It is another base: no runtime can serve this."


def _vocabulary(subject: Subject, base: BaseFiles) -> Iterator[str]:
    """Embeddings or an output that were saved with other tokens than the base has."""
    assert subject.adapter is not None
    size = base.config.get("vocab_size")
    if not isinstance(size, int):
        return
    shapes = {n.removeprefix(PREFIX): s[0] for n, s in subject.adapter.plain.items() if len(s) == 2}
    shapes |= {
        f"{module_name(m)}.": p.columns if p.embedding else p.rows for m, p in subject.adapter.modules.items()
    }
    for name, rows in sorted(shapes.items()):
        module = name.rpartition(".")[0]
        if module.rpartition(".")[2] in (*OUTPUTS, *INPUTS) and rows != size:
            yield (
                f"{module} has {rows} tokens, the base {size}: resize the base's embeddings "
                f"(model.resize_token_embeddings({rows})) and save it, before anything serves this."
            )


def _quantised(base: BaseFiles) -> Iterator[str]:
    if base.config.get("quantization_config"):
        yield (
            "The base is quantised: unmerged a small change drowns in 4 bits; merge into the base as it was "
            "before."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
