"""Attach a PEFT adapter to a base model: :func:`attach`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import PeftModel, TaskType, get_peft_model

from headwater.adapters.base import Base
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.reports import listening
from headwater.adapters.targets import PEFT_HEADS, Unadapted
from headwater.errors import ModelError

_TASKS = {
    "encoder": TaskType.FEATURE_EXTRACTION,
    "sequence-classification": TaskType.SEQ_CLS,
    "causal-lm": TaskType.CAUSAL_LM,
    "masked-lm": TaskType.FEATURE_EXTRACTION,
    "seq2seq": TaskType.SEQ_2_SEQ_LM,
}


def attach(base: Base, kind: AdapterKind[Any]) -> tuple[PeftModel, tuple[str, ...]]:
    """The PEFT model of an adapter on ``base``, and what the user should know of it.

    Its initial values are PEFT's; they are replaced later.

    Raises:
        ModelError: target modules or layers that the model does not have, a combination that
            computes something else than it says, or a random layer that would not be trained.
    """
    common: dict[str, Any] = {"task_type": _TASKS[base.settings.kind]}
    if base.settings.own_head and not kind.adapter.virtual_tokens:
        # what the files lack (a new head, a pooler) starts at random, so it must be trained and saved
        common["modules_to_save"] = _fresh_modules(base) or None
    config = kind.peft_config(base, common)
    before = Unadapted.of(base)
    # names of buffers are among those that files lack
    changed = [n for n, _ in base.model.named_parameters() if n in base.fresh | base.reordered]
    who = f"adapter '{kind.adapter.kind}' on {base.settings.path}"
    with listening(who, base.settings.accept_warnings) as heard:
        try:
            peft = get_peft_model(base.model, config)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            raise ModelError(
                who,
                expected="an adapter that PEFT can attach to this architecture",
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            ) from error
    kind.require_sound(who, peft, before)
    kind.prepare(peft)
    if base.settings.own_head:
        _require_trained(who, peft, changed)
    return peft, tuple(heard.notices)


def _require_trained(who: str, peft: PeftModel, changed: Iterable[str]) -> None:
    """Refuse what differs from the files and nobody trains: values that are neither shared nor saved."""
    below = "base_model." if peft.active_peft_config.is_prompt_learning else "base_model.model."
    trained = {
        name.removeprefix(below).replace(".modules_to_save.default", "")
        for name, parameter in peft.named_parameters()
        if parameter.requires_grad
    }
    frozen = sorted({name.rpartition(".")[0] for name in changed if name not in trained})
    if frozen:
        raise ModelError(
            who,
            expected="every layer that the files lack, or whose outputs were put in another order, trained",
            got=f"{', '.join(frozen)} frozen",
            hint="Use a LoRA adapter, or a base whose files have a head for these labels, in this order.",
        )


def _fresh_modules(base: Base) -> list[str]:
    """Modules to train and save whole, without those in PEFT's own ``classifier`` or ``score``.

    They are what the files lack, and a head whose outputs were put in another order. A module that is saved
    inside another that is saved would be saved under two names.
    """
    modules = {name.rpartition(".")[0] for name in base.fresh | base.reordered}
    return sorted(m for m in modules if not any(p.endswith(PEFT_HEADS) for p in m.split(".")))
