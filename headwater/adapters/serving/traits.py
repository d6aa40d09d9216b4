"""Subject: an adapter as anybody's folder or file, and the traits by which runtimes differ.

Reads the config and the names and shapes of tensors; no values, no base model, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwater.errors import ModelError
from headwater.merging.offline.peft_config import CONFIG, LORA, PLAIN, read_json
from headwater.merging.offline.peft_folder import COPIED, LORA_BIAS, MAGNITUDES, PeftFolder, module_name

PREFIX = "base_model.model."
HEADS = ("score", "classifier")
"""Names of a classifier's one linear layer: what a client can compute from embeddings."""

SCALED, RSLORA, MIXED_SCALES, MIXED_RANKS = "scaled", "rslora", "mixed scales", "mixed ranks"
FRACTIONAL, LARGE, DORA, FACTOR_BIAS, BASE_BIAS = "fractional alpha", "large", "dora", "lora bias", "bias"
HEAD, POOLED, WHOLE, TOKENS = "head", "pooled head", "whole weights", "added tokens"
EMBEDDING, EXPERTS, CONVOLUTION, ADALORA = "embedding", "experts", "convolution", "adalora"
STARTED, ACTIVATED = "changed base", "activated"
TRAITS: Mapping[str, str] = {
    SCALED: "s = alpha/r is not 1",
    RSLORA: "s = alpha/√r (rsLoRA)",
    MIXED_SCALES: "weights have scales of their own (alpha_pattern, rank_pattern)",
    MIXED_RANKS: "weights have ranks of their own (rank_pattern)",
    FRACTIONAL: "lora_alpha is no whole number",
    LARGE: "a rank above 512",
    DORA: "DoRA's magnitudes",
    FACTOR_BIAS: "a bias beside B (lora_bias)",
    BASE_BIAS: "biases of the base, trained",
    HEAD: "a classifier's head, score or classifier",
    POOLED: "a head on the mean of the tokens, beside PEFT's file",
    WHOLE: "weights of the base, trained as a whole",
    TOKENS: "rows of added tokens",
    EMBEDDING: "LoRA on an embedding",
    EXPERTS: "LoRA on parameters that stack experts (target_parameters)",
    CONVOLUTION: "LoRA on a convolution",
    ADALORA: "AdaLoRA, saved as B·E·A",
    STARTED: "a start that takes something out of the base (PiSSA, OLoRA, CorDA, LoftQ)",
    ACTIVATED: "LoRA that is not always B·A on its weight (aLoRA, routers, other layers)",
}
"""What a LoRA adapter can have beyond A and B of linear layers, and what that is."""
LARGEST_RANK = 512


@dataclass(frozen=True)
class Subject:
    """An adapter.

    Args:
        path: of the folder or file.
        config: ``adapter_config.json``.
        adapter: its tensors; None of a kind whose tensors are not understood here.
        traits: of LoRA, in the order of :data:`TRAITS`, with what was found.
    """

    path: Path
    config: Mapping[str, Any]
    adapter: PeftFolder | None
    traits: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, origin: Path | None = None) -> Subject:
        """Read what an adapter says of itself.

        Args:
            path: a run folder, an adapter's folder, or a file of ``headwater compress``.
            origin: what a file's values are added to, if it was compressed against something.

        Raises:
            StorageError, DecodeError, ModelError: no such adapter, or a damaged one.
        """
        if (path / "adapter" / CONFIG).is_file() and not (path / CONFIG).exists():
            path = path / "adapter"  # of a run folder
        if path.is_file():
            from headwater.experts.expert_file import open_adapter  # a folder does without, in half the time

            adapter = open_adapter(path, None if origin is None else open_adapter(origin))
            return Subject(path, adapter.config, adapter, _found(adapter.config, adapter))
        config = read_json(path / CONFIG, path)
        kind = config.get("peft_type")
        if not isinstance(kind, str):
            raise ModelError(f"{path}, {CONFIG}", expected="a peft_type", got=f"{kind!r:.80}")
        if kind not in LORA + PLAIN:
            return Subject(path, config, None)
        if config_only := _of_config(config):
            return Subject(path, config, None, _ordered(config_only))
        adapter = PeftFolder.open(path)
        return Subject(path, config, adapter, _found(config, adapter))

    @property
    def kind(self) -> str:
        """PEFT's ``peft_type``."""
        return str(self.config["peft_type"])

    @property
    def lora(self) -> bool:
        """Whether it is made of A and B."""
        return self.kind in LORA


def _of_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Traits that forbid to read the tensors as s·B·A."""
    found = {}
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        found[STARTED] = f"init_lora_weights {start!r:.40}"
    options = ("layer_replication", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora")
    if odd := [
        name for name in (*options, "velora_config", "kasa_config", "monteclora_config") if config.get(name)
    ]:
        found[ACTIVATED] = odd[0]
    return found


def _found(config: Mapping[str, Any], adapter: PeftFolder) -> dict[str, str]:
    found = dict(_of_plain(adapter))
    if adapter.kind != "LORA":
        return _ordered(found)
    parts = adapter.modules.values()
    scales, ranks = sorted({p.scaling for p in parts}), sorted({p.rank for p in parts})
    if scales != [1.0]:
        found[SCALED] = f"s = {scales[-1]:.4g}" if scales else ""
    if config.get("use_rslora"):
        found[RSLORA] = f"s = {scales[-1]:.4g}"
    if len(scales) > 1:
        found[MIXED_SCALES] = f"s = {scales[0]:.4g} to {scales[-1]:.4g}"
    if len(ranks) > 1:
        found[MIXED_RANKS] = f"r = {ranks[0]} to {ranks[-1]}"
    if ranks and ranks[-1] > LARGEST_RANK:
        found[LARGE] = f"r = {ranks[-1]}"
    if isinstance(alpha := config.get("lora_alpha"), float):
        found[FRACTIONAL] = f"lora_alpha {alpha!r}"
    if config["peft_type"] == "ADALORA":
        found[ADALORA] = f"r = {ranks[0]} to {ranks[-1]}"
    for trait, odd in (
        (EMBEDDING, [m for m, p in adapter.modules.items() if p.embedding]),
        (EXPERTS, [m for m, p in adapter.modules.items() if p.experts > 1]),
        (CONVOLUTION, [m for m, p in adapter.modules.items() if len(p.shape_a) > 2]),
    ):
        if odd:
            found[trait] = module_name(odd[0])
    if config.get("target_parameters"):
        found.setdefault(EXPERTS, "target_parameters")
    return _ordered(found)


def _of_plain(adapter: PeftFolder) -> Iterator[tuple[str, str]]:
    """The traits of tensors that are in no product."""
    whole = []
    if adapter.kind != "LORA":
        return
    for name in adapter.plain:
        own = name.removeprefix(PREFIX)
        if name.startswith("head.") and adapter.head is not None:
            yield POOLED, "head.safetensors"
        elif name.endswith(MAGNITUDES):
            yield DORA, own
        elif name.endswith(LORA_BIAS):
            yield FACTOR_BIAS, own
        elif "trainable_tokens_" in name:
            yield TOKENS, own
        elif name.endswith(COPIED):
            continue
        elif own.rpartition(".")[0] in HEADS:
            yield HEAD, own
        elif own.endswith(".bias") and adapter.config.get("bias", "none") != "none":
            yield BASE_BIAS, own
        else:
            whole.append(own)
    if whole:
        yield WHOLE, whole[0] + (f" and {len(whole) - 1} more" if len(whole) > 1 else "")


def _ordered(found: Mapping[str, str]) -> dict[str, str]:
    return {trait: found[trait] for trait in TRAITS if trait in found}
