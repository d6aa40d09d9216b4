"""export_for(): an adapter as a runtime reads it rightly, or a reason why there is no such thing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from headwater.adapters.serving.base_files import BaseFiles
from headwater.adapters.serving.check import Verdict, check
from headwater.adapters.serving.commands import command_of, readme
from headwater.adapters.serving.facts import MERGED, REFUSED
from headwater.adapters.serving.gguf_adapter import FILE as GGUF
from headwater.adapters.serving.gguf_adapter import write_gguf
from headwater.adapters.serving.gguf_merged import FILE as MERGED_GGUF
from headwater.adapters.serving.gguf_merged import TYPES, merge_gguf
from headwater.adapters.serving.merged import copy_beside, in_place, merge_files
from headwater.adapters.serving.mlx import write_mlx
from headwater.adapters.serving.peft_folder import write_folder
from headwater.adapters.serving.plain import PlainLora
from headwater.adapters.serving.traits import DORA, HEAD, Subject
from headwater.adapters.serving.wish import RECORD, VLLM_RANKS, Exported, Wish
from headwater.errors import ConfigError, ModelError
from headwater.merging.offline.output import place_of, whole_output, write_json
from headwater.merging.offline.peft_config import CONFIG, WEIGHTS
from headwater.merging.offline.peft_folder import HEAD as HEAD_FILE
from headwater.merging.offline.peft_folder import NOTES
from headwater.merging.offline.tensor_file import TensorWriter


def export_for(
    subject: Subject,
    out: Path,
    wish: Wish,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write an adapter for a runtime; the folder is whole or absent.

    Args:
        subject: the adapter.
        out: the folder.
        wish: for what, and how.
        overwrite: whether ``out`` may be there.
        progress: is told what is being done.

    Raises:
        ConfigError: options that do not fit the runtime, or ``out`` is there.
        ModelError: the runtime cannot serve it, the base is not found, or a merged model does not do what
            the adapter does.
        MissingDependency: a GGUF without the package gguf.
        StorageError, DecodeError: a file that cannot be read or written.
    """
    _require_fitting(wish)
    verdict = next(v for v in check(subject) if v.runtime == wish.runtime)
    if verdict.remedy == REFUSED:
        raise ModelError(
            f"--for {wish.runtime}",
            expected="an adapter that it serves",
            got="; ".join(verdict.reasons),
            hint="headwater check says who serves it.",
        )
    done = Exported(out, wish.runtime, verdict.remedy, reasons=verdict.reasons, remarks=verdict.remarks)
    with whole_output(place_of(out, [subject], overwrite=overwrite, marks=(CONFIG, RECORD))) as folder:
        if wish.runtime == MERGED:
            _merge(subject, folder, wish, done, progress)
        elif wish.runtime == "peft":
            _copy(subject, folder)
        else:
            _write(subject, folder, wish, verdict, done)
        done.command = command_of(done, wish)
        write_json(folder / RECORD, done.record())
        if wish.runtime != "peft":
            (folder / "README.md").write_text(readme(subject, done), encoding="utf-8")
    return done


def _require_fitting(wish: Wish) -> None:
    merged = wish.runtime == MERGED
    types = TYPES if wish.gguf is not None else ("keep", "float32")
    for wrong, option, expected in (
        (wish.gguf is not None and not merged, "--gguf", "--for merged"),
        (wish.dtype != "keep" and not merged, "--dtype", "--for merged"),
        (wish.dtype not in types, f"--dtype {wish.dtype}", f"{', '.join(types)}; more with --gguf"),
        (wish.rank is not None and wish.runtime in ("peft", MERGED), "--rank", "a runtime's folder of LoRA"),
        (bool(wish.served) != (wish.runtime == "ollama"), "--from",
         "with --for ollama, and only there: the base's name in Ollama, or its GGUF"),
        (not wish.served.isprintable(), "--from", "one line"),
    ):  # fmt: skip
        if wrong:
            raise ConfigError(option, expected=expected, got=f"--for {wish.runtime}")


def _copy(subject: Subject, folder: Path) -> None:
    """PEFT's own folder, as it is, with what Headwater keeps beside it."""
    if subject.path.is_dir():
        for name in (CONFIG, WEIGHTS, HEAD_FILE, NOTES, "README.md"):
            if (subject.path / name).is_file():
                shutil.copyfile(subject.path / name, folder / name)
        return
    from headwater.experts.decompress import decompress

    assert subject.adapter is not None
    decompress(subject.adapter, folder, overwrite=True)


def _write(subject: Subject, folder: Path, wish: Wish, verdict: Verdict, done: Exported) -> None:
    lora = PlainLora.of(subject)
    _require_linear(subject, lora)
    rank = wish.rank
    if rank is None and wish.runtime == "vllm":
        rank = next(r for r in VLLM_RANKS if r >= lora.ranks[-1])
    elif rank is None and wish.runtime in ("sglang", "mlx", "openvino"):
        rank = lora.ranks[-1]
    if wish.runtime == "vllm" and rank not in VLLM_RANKS:
        raise ConfigError("--rank", expected=f"one of {', '.join(map(str, VLLM_RANKS))}", got=str(rank))
    if rank is not None:
        lora = lora.of_rank(rank)
    done.ranks = lora.ranks
    kept = HEAD in subject.traits and wish.runtime == "vllm"
    if wish.runtime in ("vllm", "sglang", "openvino"):
        place = wish.base or subject.config.get("base_model_name_or_path")
        write_folder(folder, lora, subject.config, base=place, head=kept)
    else:
        base = BaseFiles.find(subject, wish.base)
        if wish.runtime == "mlx":
            write_mlx(folder, lora, base.config)
        else:
            write_gguf(folder / GGUF, lora, base.config, name=subject.path.name)
    if wish.runtime == "ollama":
        text = f"FROM {wish.served}\nADAPTER ./{GGUF}\n"
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    if lora.head and not kept:
        with TensorWriter(folder / HEAD_FILE) as file:
            for name, values in lora.head.items():
                file.add(name.removeprefix("head."), values)


def _require_linear(subject: Subject, lora: PlainLora) -> None:
    """Magnitudes on every weight or none: a runtime that has DoRA has it for a whole adapter."""
    some = {weight.magnitude is not None for weight in lora.weights.values()}
    if DORA in subject.traits and len(some) > 1:
        raise ModelError(f"{subject.path}", expected="magnitudes for all weights", got="for some")


def _merge(
    subject: Subject, folder: Path, wish: Wish, done: Exported, progress: Callable[[str], None]
) -> None:
    base = BaseFiles.find(subject, wish.base)
    if wish.gguf is not None:
        lora = PlainLora.of(subject)
        done.ranks = lora.ranks
        done.arrival = merge_gguf(wish.gguf, lora, base.config, folder / MERGED_GGUF, wish.dtype)
    else:
        files = base.files()
        plain = subject.lora and subject.adapter is not None and _only_linear(subject)
        lora = PlainLora.of(subject) if plain else PlainLora({})
        changes = in_place(lora, base, files) if plain else None
        if changes is not None:
            done.ranks = lora.ranks
            done.arrival = merge_files(files, changes, folder, wish.dtype, progress)
            shards = files[0].path.name != "model.safetensors"
            copy_beside(base.folder, folder, wish.dtype, shards=shards)
            if lora.head:
                with TensorWriter(folder / HEAD_FILE) as file:
                    for name, values in lora.head.items():
                        file.add(name.removeprefix("head."), values)
        else:
            from headwater.adapters.serving.through_peft import merge_through_peft

            progress("merging by PEFT")
            copy_beside(base.folder, folder, "keep")
            merge_through_peft(subject, base.folder, folder, wish.dtype)
    if done.arrival is not None and not wish.anyway:
        done.arrival.require(
            f"--for merged --dtype {wish.dtype}",
            "The change is small beside the rounding of that type: take a finer --dtype, serve the adapter "
            "unmerged, or add --anyway.",
        )
    if wish.compared and wish.gguf is None:
        start = time.perf_counter()
        from headwater.adapters.serving.through_peft import compare_logits

        progress("comparing logits with PEFT")
        done.logits = compare_logits(subject, base.folder, folder, wish.dtype)
        done.compared_s = round(time.perf_counter() - start, 3)


def _only_linear(subject: Subject) -> bool:
    """Whether the file has factors of linear layers, magnitudes, and at most a head beside PEFT's file."""
    from headwater.adapters.serving import traits as t

    odd = {t.HEAD, t.WHOLE, t.TOKENS, t.EMBEDDING, t.EXPERTS, t.CONVOLUTION, t.BASE_BIAS, t.FACTOR_BIAS}
    return not odd & set(subject.traits) and not subject.config.get("fan_in_fan_out")
