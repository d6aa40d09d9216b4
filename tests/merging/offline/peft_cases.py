"""Adapters of every kind that ``headwater merge`` takes, made and read by plain PEFT.

Bases are tiny and random, the same at each call; adapters are trained-like: every value that PEFT saves is
drawn, none is left at its start. What a folder means is what PEFT makes of it, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

WEIGHTS = "adapter_model.safetensors"
TOKENS = torch.arange(24).reshape(2, 12) % 30 + 1


class Picture(nn.Module):
    """Convolutions of two dimensions and of one, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 2), stride=1, padding=1)
        self.line = nn.Conv1d(8, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = self.line(self.conv(pixels).tanh().flatten(2)).tanh()
        return self.head(seen.mean(2))


class Attending(nn.Module):
    """Attention of torch's own, whose out_proj has PEFT's factors inside the attention's base layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CausalLMOutput:
        seen = self.embed(input_ids)
        return CausalLMOutput(logits=self.head(seen + self.attention(seen, seen, seen)[0]))


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=24, initializer_range=0.3, tie_word_embeddings=False,
        )
    )  # fmt: skip


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=4, initializer_range=0.3)
    )


def _bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
            max_position_embeddings=32, num_labels=3, initializer_range=0.3,
        )
    )  # fmt: skip


def _mixtral() -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=24, num_local_experts=3, num_experts_per_tok=2,
            initializer_range=0.3,
        )
    )  # fmt: skip


BASES: dict[str, Callable[[], nn.Module]] = {
    "llama": _llama, "gpt2": _gpt2, "bert": _bert, "mixtral": _mixtral, "picture": Picture,
    "attending": Attending,
}  # fmt: skip


def base(name: str) -> nn.Module:
    """The random base of a name, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BASES[name]().eval()
    if name == "mixtral":
        model.set_experts_implementation("eager")  # the others take no float64
    return model


@dataclass(frozen=True)
class Case:
    """A kind of adapter on a base.

    Args:
        base: of :data:`BASES`.
        config: makes PEFT's config.
        other: what another adapter's config has otherwise, for merges of two that differ.
        delta: whether all that it changes are weights, by sums.
    """

    base: str
    config: Callable[..., PeftConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    delta: bool = True


def _lora(base: str, targets: Any, *, delta: bool = True, other: Any = None, **settings: Any) -> Case:
    return Case(
        base,
        LoraConfig,
        {"r": 4, "lora_alpha": 12, "target_modules": targets, **settings},
        {"r": 6, "lora_alpha": 5} if other is None else other,
        delta,
    )


_ATTENTION = ["q_proj", "v_proj"]
_PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers.1.self_attn.v_proj": 7},
    "alpha_pattern": {r".*layers\.0.*": 3, "v_proj": 20},
}
CASES: dict[str, Case] = {
    "lora": _lora("llama", _ATTENTION),
    "lora all linear": _lora("llama", "all-linear"),
    "rank pattern": _lora("llama", _ATTENTION, rank_pattern=_PATTERNS["rank_pattern"]),
    "alpha pattern": _lora("llama", _ATTENTION, alpha_pattern=_PATTERNS["alpha_pattern"]),
    "rslora": _lora("llama", _ATTENTION, use_rslora=True, other={"r": 9, "use_rslora": False}),
    "rslora with patterns": _lora("llama", _ATTENTION, use_rslora=True, **_PATTERNS),
    "some layers": _lora("llama", _ATTENTION, layers_to_transform=[1]),
    "fan in fan out": _lora("gpt2", ["c_attn", "c_proj"], fan_in_fan_out=True),
    "encoder": _lora("bert", ["query", "value", "dense"]),
    "embedding": _lora("llama", ["embed_tokens", "q_proj"]),
    "output embedding": _lora("llama", ["lm_head", "q_proj"]),
    "experts' attention and router": _lora("mixtral", ["q_proj", "gate"]),
    "experts' router alone": _lora("mixtral", [], target_parameters=["gate.weight"]),
    "fused experts": _lora(
        "mixtral", ["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    ),
    "fused experts, some": _lora("mixtral", [], target_parameters=["experts.down_proj"], use_rslora=True),
    "convolutions": _lora("picture", ["conv", "line", "head"]),
    "torch's attention": _lora(
        "attending", ["attention", "head"], rank_pattern={"attention": 3}, alpha_pattern={"attention": 40},
        other={"r": 2, "rank_pattern": {}},
    ),
    "gaussian start": _lora("llama", _ATTENTION, init_lora_weights="gaussian"),
    "orthogonal start": _lora("llama", _ATTENTION, init_lora_weights="orthogonal"),
    "adalora": Case(
        "llama",
        AdaLoraConfig,
        {"init_r": 5, "target_r": 3, "lora_alpha": 7, "total_step": 10, "target_modules": _ATTENTION},
        {"init_r": 3, "lora_alpha": 9},
    ),
    "dora": _lora("llama", _ATTENTION, use_dora=True, delta=False),
    "dora fan in fan out": _lora("gpt2", ["c_attn"], use_dora=True, fan_in_fan_out=True, delta=False),
    "dora embedding": _lora("llama", ["embed_tokens"], use_dora=True, delta=False),
    "dora convolutions": _lora("picture", ["conv", "line"], use_dora=True, delta=False),
    "lora bias": _lora("bert", ["query", "value"], lora_bias=True, delta=False),
    "bias lora_only": _lora("bert", ["query", "value"], bias="lora_only", delta=False),
    "bias all": _lora("bert", ["query", "value"], bias="all", delta=False),
    "classifier": _lora("bert", ["query", "value"], task_type="SEQ_CLS", delta=False),
    "module to save": _lora("llama", _ATTENTION, modules_to_save=["lm_head", "norm"], delta=False),
    "tokens": _lora("llama", _ATTENTION, trainable_token_indices=[1, 5, 7], delta=False),
    "tokens by module": _lora(
        "llama", ["q_proj"], trainable_token_indices={"embed_tokens": [2, 3]}, delta=False
    ),
    "ia3": Case(
        "llama",
        IA3Config,
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        delta=False,
    ),
    "ia3 convolution": Case(
        "picture", IA3Config, {"target_modules": ["conv", "head"], "feedforward_modules": []}, delta=False
    ),
    "ia3 classifier": Case(
        "bert",
        IA3Config,
        {"target_modules": ["key", "value"], "feedforward_modules": [], "task_type": "SEQ_CLS"},
        delta=False,
    ),
    "prompt": Case(
        "llama", PromptTuningConfig, {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}, delta=False
    ),
    "prompt classifier": Case(
        "bert", PromptTuningConfig, {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"}, delta=False
    ),
    "prefix": Case(
        "llama", PrefixTuningConfig, {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}, delta=False
    ),
    "prefix projection": Case(
        "gpt2",
        PrefixTuningConfig,
        {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM", "prefix_projection": True,
         "encoder_hidden_size": 8},
        delta=False,
    ),
    "p-tuning": Case(
        "llama",
        PromptEncoderConfig,
        {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM", "encoder_hidden_size": 8},
        delta=False,
    ),
}  # fmt: skip


def save(
    name: str, folder: Path, *, seed: int, dtype: torch.dtype = torch.float32, other: bool = False, **own: Any
) -> Path:
    """An adapter of the case ``name`` in a folder, as PEFT's save_pretrained writes it.

    Args:
        name: of :data:`CASES`.
        folder: is made.
        seed: of its values.
        dtype: of its file.
        other: with the settings in which the case's second adapter differs.
        own: further settings.
    """
    case = CASES[name]
    settings = {**case.settings, **(case.other if other else {}), **own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base(case.base), case.config(**settings))
        _draw(model)
        model.save_pretrained(folder)
    if dtype != torch.float32:
        values = load_file(folder / WEIGHTS)
        save_file({key: value.to(dtype) for key, value in values.items()}, folder / WEIGHTS)
    return folder


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Every value that training could have changed, and some that only PEFT's file has."""
    for name, value in model.named_parameters():
        if value.requires_grad and not name.endswith("ranknum.default"):
            value.add_(0.3 * torch.randn_like(value) * (1 + value.abs()))


def load(name: str, folder: Path) -> PeftModel:
    """The base of a case with an adapter, as PEFT loads it, in float64."""
    return PeftModel.from_pretrained(base(CASES[name].base), folder).double().eval()


@torch.no_grad()
def logits(name: str, model: nn.Module) -> torch.Tensor:
    """What a model says of fixed rows."""
    if CASES[name].base == "picture":
        pixels = torch.linspace(-1, 1, 2 * 3 * 6 * 6, dtype=torch.float64).sin().reshape(2, 3, 6, 6)
        return model(pixels * 3)
    return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


@torch.no_grad()
def deltas(model: PeftModel) -> dict[str, torch.Tensor]:
    """What an adapter adds to each parameter of the base, by name, as PEFT computes it."""
    found = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            own = name.replace(".base_layer", "")  # of several parameters of one module
            attends = isinstance(module.get_base_layer(), nn.MultiheadAttention)
            weight = "in_proj_weight" if attends else getattr(module, "parameter_name", "weight")
            parameter = f"{own}.{weight}"
            found[parameter] = module.get_delta_weight("default").detach().clone()
    return found


@torch.no_grad()
def base_with(name: str, changes: dict[str, torch.Tensor]) -> nn.Module:
    """The base of a case, with changes added to its parameters and no adapter."""
    model = base(CASES[name].base).double()
    for parameter, change in changes.items():
        model.get_parameter(parameter).add_(change)
    return model
