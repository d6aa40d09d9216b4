"""Trying a model before anything depends on it: :func:`try_model`.

When a run opens its model, the real base with the real adapter computes a few short rows, forward and
backward, and its state goes out and in again as PEFT saves it. What an architecture cannot do shows then, in
a second, and not in the first round; and laws are checked that every model must keep:

* a row's output does not depend on its batch, its padding or its neighbours;
* a causal model's output does not depend on later tokens;
* every trained tensor has an effect.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headwater.adapters.kinds.prompt import PROMPT
from headwater.adapters.reports import listening
from headwater.adapters.weights import temporary_storage
from headwater.errors import HeadwaterError, ModelError
from headwater.seeds.keys import Key
from headwater.state import AdapterState

if TYPE_CHECKING:
    from headwater.adapters.model import AdaptedModel

SHORT, LONG = 5, 24
"""Tokens of the rows that are tried at most; a base may need a few more for a text's own ends."""
TOLERANCE, QUANTISED_TOLERANCE = 1e-3, 0.1
"""Differences that count, as a share of the largest output: rounding is near 1e-6, and 8-bit products
depend on the whole batch in the second digit."""
IN_ONE_LAYER, IN_NO_LAYER = 2_048, 16_384
"""Tokens of the longest row that go through the first layer, and that are only embedded. Most bases make a
mask of tokens times tokens before their first layer: memory grows with the square, as it does in training."""
_SIZE = 0.05


@dataclass(frozen=True)
class _Rows:
    """Padded token ids, their mask, and targets of the model's kind."""

    tokens: Tensor
    mask: Tensor
    targets: Tensor


def try_model(model: AdaptedModel, *, max_tokens: int, slopes: bool = False) -> tuple[str, ...]:
    """Try base and adapter; the model is left in its initial state, and no global generator is touched.

    Args:
        model: as it was built.
        max_tokens: of the longest row that training or evaluation will bring.
        slopes: some method needs the loss's derivative along a direction.

    Returns:
        What the user should know, one sentence each.

    Raises:
        ModelError: what this base, with this adapter, cannot do, and what can be used instead.
    """
    trial = _Trial(model)
    with (
        listening(trial.who, model.base.settings.accept_warnings) as heard,
        torch.random.fork_rng(devices=[]),
    ):
        try:
            trial.base_runs()
            model.load(_elsewhere(model))
            trial.rows_are_alone()
            trial.later_tokens_are_unseen()
            notices = trial.tensors_have_effect()
            trial.state_returns()
            if slopes:
                trial.slope_is_had()
            notices += trial.longest_row(max_tokens)
            trial.its_end_sees_the_adapter(max_tokens)
        finally:
            model.load(model.initial_state())
    return (*heard.notices, *notices)


class _Trial:
    def __init__(self, model: AdaptedModel) -> None:
        self.model, base = model, model.base
        self.who = f"adapter '{model.adapter.kind}' on {base.settings.path}"
        exact = base.settings.quantization == "none" and base.settings.dtype == "float32"
        self.tolerance = TOLERANCE if exact else QUANTISED_TOLERANCE
        encode = base.tokenizer.encode
        long, short = encode("one two three four five six seven eight", LONG), encode("nine", SHORT)
        # a tokenizer of few words may give nothing for these
        self.long = [t for t in long if t < (base.tokenizer.vocabulary or t + 1)]
        self.short = [t for t in short if t < (base.tokenizer.vocabulary or t + 1)] or self.long[:1]
        if not self.long or (model.language_model and len(set(self.long)) < SHORT):
            vocabulary = base.tokenizer.vocabulary or 8
            self.long = [n * vocabulary // 8 for n in range(8)]
            self.short = self.short or self.long[:1]

    def rows(self, *rows: list[int]) -> _Rows:
        width = max(len(row) for row in rows)
        pad = self.model.base.tokenizer.pad
        tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return _Rows(tokens, mask, self.model.task.any_targets(tokens, mask))

    def logits(self, *rows: list[int]) -> list[Tensor]:
        """The logits of each row: [labels], or [t, outputs] of its own tokens."""
        with torch.no_grad():
            out = self.model.forward(self.rows(*rows)).logits.float()
        if not bool(torch.isfinite(out).all()):
            raise self._error("finite outputs", "NaN or infinity")
        return [o[: len(row)] if self.model.by_token else o for o, row in zip(out, rows, strict=True)]

    def base_runs(self) -> None:
        """The base alone, so that the adapter is not blamed for it."""
        model, rows = self.model, self.rows(self.long, self.short)
        expected = f"an architecture that takes padded token ids as model.kind {model.base.settings.kind!r}"
        hint = "Use another base."
        config = model.base.model.config
        if config.is_encoder_decoder and model.network.model.own_head:
            hint = (
                f"Its head reads at the end token: config.json's eos_token_id {config.eos_token_id} must be "
                f"what the tokenizer ends a text with, which is {self.long[-1]}."
            )
        elif config.is_encoder_decoder:
            hint = "An encoder-decoder can be 'seq2seq' or 'sequence-classification', where there is one."
        with self._refusing(expected, hint), torch.no_grad(), model.network.without_adapter() as base:
            device = model.base.device
            tokens = rows.tokens.to(device)
            answer = model.network.answering(tokens, rows.targets)
            base(input_ids=tokens, attention_mask=rows.mask.to(device), **answer)

    def rows_are_alone(self) -> None:
        with self._refusing("an architecture that this adapter fits", self._instead()):
            together = self.logits(self.long, self.short)
            apart = [*self.logits(self.long), *self.logits(self.short)]
        if (found := _difference(together, apart)) > self.tolerance:
            raise self._error(
                "a row's output that does not depend on its padding and its neighbours",
                f"outputs that differ by {found:.2g} of the largest one",
                "This architecture looks at padding. Use another base.",
            )

    def later_tokens_are_unseen(self) -> None:
        if not self.model.language_model:
            return
        other = [*self.long[:-1], next(token for token in (*self.long, 0, 1) if token != self.long[-1])]
        (first,), (second,) = self.logits(self.long), self.logits(other)
        if (found := _difference([first[:-1]], [second[:-1]])) > self.tolerance:
            raise self._error(
                "a causal model, whose outputs do not depend on later tokens",
                f"outputs that differ by {found:.2g} of the largest one when the last token changes",
                'This base reads in both directions. Use model.kind = "encoder", or a decoder.',
            )

    def tensors_have_effect(self) -> list[str]:
        specs = [spec for spec, _ in self.model.parameters()]
        with self._refusing("a backward pass", self._instead()), torch.enable_grad():
            loss = self.model.loss(self.rows(self.long, self.short))
            found = torch.autograd.grad(loss, [p for _, p in self.model.parameters()], allow_unused=True)
        without = [spec.name for spec, gradient in zip(specs, found, strict=True) if gradient is None]
        adapter = [spec.name for spec in specs if spec.role != "head"]
        if adapter and set(adapter) <= set(without):
            raise self._error(
                "an adapter that changes the output", "one that this architecture ignores", self._instead()
            )
        if not without:
            return []
        return [
            f"{self.who}: {len(without)} of its {len(specs)} tensors have no effect on this model.kind and "
            f"stay as they start, such as {without[0]}"
        ]

    def state_returns(self) -> None:
        """Out as the export saves it, in as PEFT loads it: the same outputs; and its settings likewise."""
        model, peft = self.model, self.model.network.peft
        before = self.logits(self.long)
        tensors = model.saved_tensors(model.read())
        head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("head.")}
        model.load(model.initial_state())
        with self._refusing("a state that PEFT loads again", "Use another adapter.kind."), torch.no_grad():
            result = set_peft_model_state_dict(peft, {n: v.to(model.base.device) for n, v in tensors.items()})
            for name, value in head.items():
                model.network.get_parameter(name).copy_(value)
            with temporary_storage(), tempfile.TemporaryDirectory(prefix="headwater-trial-") as folder:
                peft.active_peft_config.save_pretrained(folder)
                read = PeftConfig.from_pretrained(folder)
        left = [n for n in result.unexpected_keys if n != PROMPT]  # which PEFT takes by another way
        if left or read.peft_type != peft.active_peft_config.peft_type:
            raise self._error("a state that PEFT loads again", f"{left[:1] or read.peft_type} not taken")
        with _as_from_a_folder(peft):
            after = self.logits(self.long)
        if (found := _difference(before, after)) > TOLERANCE / 100:
            raise self._error(
                "the outputs of before once PEFT has loaded the state", f"a difference of {found:.2g}"
            )

    def slope_is_had(self) -> None:
        self.model.slope(self.rows(self.long, self.short), torch.full((self.model.spec.numel,), 1e-3))

    def longest_row(self, max_tokens: int) -> list[str]:
        """Whether the base has places for so many tokens, and what a short row beside them becomes."""
        virtual, base = self.model.virtual_tokens, self.model.base.settings.path
        for layers, most in ((1, IN_ONE_LAYER), (0, IN_NO_LAYER)):
            length = min(max_tokens, most)
            if not (problem := self._problem(length, layers)):
                continue
            fits, fails = 1, length
            while fails - fits > 1:
                middle = (fits + fails) // 2
                fits, fails = (fits, middle) if self._problem(middle, layers) else (middle, fails)
            left = f", of which the adapter takes {virtual}" if virtual else ""
            raise ModelError(
                "data.max_tokens",
                expected=f"at most {fits}: {base} takes {fits + virtual} tokens{left}{problem}",
                got=str(max_tokens),
                hint="Lower it; longer texts are cut or divided.",
            )
        known = getattr(self.model.base.model.config, "max_position_embeddings", None)
        if not isinstance(known, int) or max_tokens + virtual <= known:
            return []
        return [
            f"data.max_tokens {max_tokens}: {base} was made for {known} positions "
            "(max_position_embeddings); what lies beyond it has never seen"
        ]

    def its_end_sees_the_adapter(self, max_tokens: int) -> None:
        """Where every layer sees a window, what stands before a row is seen by so many tokens alone."""
        config = self.model.base.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if not self.model.virtual_tokens or not isinstance(window, int):
            return
        layers = config.num_hidden_layers
        reach = (window - 1) * layers
        if max_tokens <= reach:
            return
        # some have other layers between, or leave the window unused: the token after the reach tells
        row = (self.long * (reach // len(self.long) + 1))[: reach + 1]
        (with_it,) = self.logits(row)
        moved, start = self.model.read(), self.model.initial_state()
        heads = {spec.name for spec in start.spec if spec.role == "head"}  # which see every token
        self.model.load(AdapterState(start.spec, {n: (moved if n in heads else start)[n] for n in start}))
        (without,) = self.logits(row)
        if torch.equal(with_it[-1], without[-1]):
            raise ModelError(
                "data.max_tokens",
                expected=f"at most {reach} for {self.who}, whose {layers} layers see {window} tokens each",
                got=f"{max_tokens}: the tokens beyond would not see the adapter",
                hint='Lower it, or use adapter.kind = "lora".',
            )

    def _problem(self, length: int, layers: int) -> str:
        """What is wrong with a row of ``length`` in ``layers`` layers; empty if nothing."""
        row = (self.long * (length // len(self.long) + 1))[:length]
        short = self.short[:length]
        try:
            beside, alone = self._reaching(layers, short, row), self._reaching(layers, short)
        except Exception:  # whatever a library raises where its table of positions ends
            return " in all"
        if len(beside) == len(alone) and _difference(alone, beside) > self.tolerance:
            return "; beyond that, a short row depends on the longest one of its batch"
        return ""

    def _reaching(self, layer: int, *rows: list[int]) -> list[Tensor]:
        """What the layer is given of the first row: hidden states, and positions made for all layers."""
        # a stack that is too short is passed
        with _given_to(self.model.network, layer) as seen, torch.no_grad(), contextlib.suppress(_Reached):
            self.model.forward(self.rows(*rows))
        before = self.model.virtual_tokens if self.model.adapter.prepends else 0
        width = before + max(map(len, rows))
        by_row = [x for x in seen if x.shape[0] in (1, len(rows)) and x.shape[1] >= width]
        return [x[0, : before + len(rows[0])].float() for x in by_row]

    def _instead(self) -> str:
        if self.model.virtual_tokens:
            return 'This architecture has no place for it. Use adapter.kind = "lora".'
        return "Name other target_modules, or use another adapter.kind."

    def _error(self, expected: str, got: str, hint: str = "") -> ModelError:
        return ModelError(self.who, expected=expected, got=got, hint=hint)

    @contextlib.contextmanager
    def _refusing(self, expected: str, hint: str) -> Iterator[None]:
        """Inside, whatever transformers, PEFT or torch raise of the model becomes an error that says so."""
        try:
            yield
        except HeadwaterError:
            raise
        except Exception as error:  # bare exceptions of every type
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
            raise self._error(expected, got, hint) from error


@contextlib.contextmanager
def _as_from_a_folder(peft: PeftModel) -> Iterator[None]:
    """Inside, virtual tokens are the values that PEFT has loaded, without the network that made them."""
    config = peft.active_peft_config
    was, config.inference_mode = config.inference_mode, True
    try:
        yield
    finally:
        config.inference_mode = was


def _elsewhere(model: AdaptedModel) -> AdapterState:
    """A state near the initial one in which no product of the adapter is zero."""
    start = model.initial_state()
    noise = Key.root(0).child("trial").numpy().standard_normal(model.spec.numel).astype("float32")
    return AdapterState.from_vector(model.spec, start.vector() + _SIZE * torch.from_numpy(noise))


def _difference(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest difference as a share of the largest value."""
    largest = max(float(x.abs().max()) for x in left if x.numel()) if any(x.numel() for x in left) else 0.0
    differences = [float((x - y).abs().max()) for x, y in zip(left, right, strict=True) if x.numel()]
    return max(differences, default=0.0) / max(largest, 1e-12)


class _Reached(Exception):
    """The pass has come as far as it should."""


@contextlib.contextmanager
def _given_to(network: nn.Module, layer: int) -> Iterator[list[Tensor]]:
    """Inside, a pass ends before this layer of the largest stack; the list has what the layer was given.

    Of that the floating tensors of three dimensions; nothing where the stack is shorter.
    """
    seen: list[Tensor] = []
    stacks = [m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) > layer]
    stack = max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)

    def stop(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
        seen.extend(x for x in found if x.dim() == 3)
        raise _Reached

    handles = [] if stack is None else [stack[layer].register_forward_pre_hook(stop, with_kwargs=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
