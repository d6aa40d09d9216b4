"""Prompts, p-tuning and prefixes of several clients: :class:`StackedPrompt`, :class:`StackedPrefix`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from peft.tuners.p_tuning import PromptEncoder
from peft.tuners.prefix_tuning import PrefixEncoder
from peft.tuners.prompt_tuning import PromptEmbedding
from torch import Tensor, nn
from torch.func import functional_call

from headwater.adapters.stacked.layer import ADAPTER, StackedLayer, Together
from headwater.adapters.stacked.linear import stack_of


class StackedPrompt(StackedLayer):
    """Before each client's rows stand its own embeddings, trained or computed by its own network.

    The network sees a few virtual tokens only: it computes one client's after the other's.
    """

    method = "get_prompt"
    module: PeftModel

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """A PEFT model of prompt tuning or p-tuning."""
        if not (isinstance(module, PeftModel) and module.active_peft_config.is_prompt_learning):
            return False
        return type(module.prompt_encoder[ADAPTER]) in (PromptEmbedding, PromptEncoder)

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return list(self.module.prompt_encoder[ADAPTER].modules())

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return list(self.module.prompt_encoder[ADAPTER].parameters())

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        encoder, tokens = self.module.prompt_encoder[ADAPTER], self.module.prompt_tokens[ADAPTER]
        named = dict(encoder.named_parameters())
        shared = [tensor.shape == p.shape for tensor, p in zip(own, named.values(), strict=True)]

        def prompt_of(client: int) -> Tensor:
            mine = (t if same else t[client] for t, same in zip(own, shared, strict=True))
            given = tokens[None].to(encoder.embedding.weight.device)
            found: Tensor = functional_call(encoder, dict(zip(named, mine, strict=True)), (given,))
            return found

        def get_prompt(
            batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None
        ) -> Tensor:
            prompts = torch.cat([prompt_of(client) for client in range(together.clients)])
            return _for_rows(prompts, batch_size // together.clients)

        return get_prompt


class StackedPrefix(StackedLayer):
    """Every layer attends, in each client's rows, to the client's own keys and values."""

    module: PrefixEncoder

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """Prefixes that are trained as they are, by no network."""
        return type(module) is PrefixEncoder and not module.prefix_projection

    def parts(self) -> Sequence[nn.Module]:  # noqa: D102 - inherited
        return [self.module.embedding]

    def parameters(self) -> Sequence[Tensor]:  # noqa: D102 - inherited
        return [self.module.embedding.weight]

    def computing(self, own: Sequence[Tensor], together: Together) -> Callable[..., Tensor]:  # noqa: D102 - inherited
        prefixes = stack_of(own[0], 2, together.clients)

        def forward(prefix: Tensor) -> Tensor:
            return _for_rows(prefixes[:, prefix[0]], len(prefix) // together.clients)

        return forward


def _for_rows(own: Tensor, rows: int) -> Tensor:
    """Each client's [K, n, d] before each of its rows: [K·rows, n, d]. Its gradient is a plain sum."""
    return own.unsqueeze(1).expand(-1, rows, -1, -1).reshape(-1, *own.shape[1:])
