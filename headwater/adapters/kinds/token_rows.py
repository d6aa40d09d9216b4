"""Rows of the embedding that are trained beside an adapter of layers: PEFT's ``trainable_token_indices``.

PEFT copies the whole embedding at every pass to put the trained rows in it, and its gradient has the size
of the whole. :class:`TokenRows` computes the same from the rows alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from headwater.adapters.base import Base
from headwater.adapters.targets import Unadapted
from headwater.errors import ModelError

ROWS = ".trainable_tokens_delta"
"""In the name of the trained rows. They are the rows themselves, and not what is added to the base's."""
ROLE = "token_rows"
Indices = tuple[int, ...] | Mapping[str, tuple[int, ...]]


class TokenRows(TrainableTokensLayer):  # type: ignore[misc]  # PEFT is untyped
    """PEFT's layer without its copy of the embedding: the same values, up to rounding in an output layer."""

    def forward_adapters(  # noqa: D102 - inherited
        self, x: Tensor, active_adapters: Collection[str], *args: object, **kwargs: object
    ) -> Tensor:
        if self.disable_adapters or self.merged or list(active_adapters) != ["default"]:
            found: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return found
        base = self.get_base_layer()
        rows = self.trainable_tokens_delta["default"]
        ids: list[int] = self.token_indices["default"]
        indices = torch.tensor(ids, device=x.device)
        if not isinstance(base, nn.Embedding):
            outputs: Tensor = base(x)  # nothing else reads them: they are changed where they stand
            return outputs.index_copy_(-1, indices, nn.functional.linear(x, rows.to(x.dtype)))
        order = indices.argsort()
        place = torch.searchsorted(indices[order], x).clamp(max=len(order) - 1)
        row = order[place]
        embedded: Tensor = base(x)
        padding = ids.index(base.padding_idx) if base.padding_idx in ids else None  # it has no gradient
        own = nn.functional.embedding(row, rows.to(embedded.dtype), padding_idx=padding)
        if (scale := self._get_embed_scale()) is not None:
            own = own * scale.to(own.dtype)
        return torch.where((indices[row] == x).unsqueeze(-1), own, embedded)


def for_peft(indices: Indices | None) -> list[int] | dict[str, list[int]] | None:
    """As PEFT has them."""
    if indices is None:
        return None
    if isinstance(indices, Mapping):
        return {name: list(rows) for name, rows in indices.items()}
    return list(indices)


def require_rows(base: Base, indices: Indices | None) -> None:
    """Refuse rows that the embedding lacks, before anything is attached.

    Raises:
        ModelError: says how many rows there are; or the base's input embedding is of an unknown form.
    """
    embedding = base.model.get_input_embeddings()
    for rows in indices.values() if isinstance(indices, Mapping) else [indices or ()]:
        if wrong := [row for row in rows if row >= len(embedding.weight)]:
            raise ModelError(
                f"adapter.trainable_token_indices of {base.settings.path}",
                expected=f"ids below {len(embedding.weight)}, the rows of its embedding",
                got=str(wrong[0]),
                hint="Add the tokens to the tokenizer, resize the embedding (resize_token_embeddings), save "
                "both as the base.",
            )


def require_one_meaning(who: str, peft: PeftModel, before: Unadapted) -> None:
    """Refuse trained rows of a matrix of which another module sees the base's, or that PEFT computes wrongly.

    Raises:
        ModelError: names the module.
    """
    found = dict(wrappers(peft))
    below = {name.removeprefix("base_model.model."): module for name, module in found.items()}
    for name, module in below.items():
        layer = module.token_adapter.get_base_layer()
        if not isinstance(layer, nn.Embedding | nn.Linear) or getattr(layer, "max_norm", None) is not None:
            raise ModelError(
                f"{who}: {name}", expected="an embedding, or a linear output layer", got=type(layer).__name__
            )
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            raise ModelError(
                f"{who}: {name}",
                expected="an output layer without a bias: PEFT leaves it out beside trained rows",
                got="one with a bias",
                hint="Leave trainable_token_indices out, or use a base whose output layer is not tied to its "
                "embedding.",
            )
        other = before.tied.get(name)
        if other is not None and other not in below:
            raise ModelError(
                f"{who}: {name}",
                expected="trained rows in every module that has this matrix",
                got=f"none in {other}",
                hint="Give the ids as a list: they are then trained in the embedding and what is tied to it.",
            )
    first = [module.token_adapter for module in found.values() if module.token_adapter.tied_adapter is None]
    if before.tied and len(first) > 1:
        raise ModelError(
            who, expected="one table of rows for tied layers", got=f"{len(first)} tables",
            hint="Give the ids as a list.",
        )  # fmt: skip


def sparing(peft: PeftModel) -> None:
    """Let PEFT's layers compute from the rows alone."""
    for _, wrapper in wrappers(peft):
        wrapper.token_adapter.__class__ = TokenRows


def base_rows(peft: PeftModel, name: str) -> Tensor:
    """The base's own rows where ``name`` trains them: float32, on the CPU."""
    layer = peft.get_submodule(name.partition(ROWS)[0])
    original: Tensor = layer.trainable_tokens_original["default"]
    return original.detach().float().cpu().clone()


def wrappers(peft: PeftModel) -> Iterator[tuple[str, TrainableTokensWrapper]]:
    """Every module with trained rows, and those tied to one, by its name."""
    for name, module in peft.named_modules():
        if isinstance(module, TrainableTokensWrapper):
            yield name, module
