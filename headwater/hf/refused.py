"""What a Trainer does that cannot be federated: :func:`require_federable`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import Trainer

from headwater.errors import ConfigError

_EACH_ROUND = "each round starts from the federation's adapter"
REFUSED: tuple[tuple[str, Callable[[Any], object], str], ...] = (
    ("deepspeed", lambda args: args.deepspeed, "it holds the weights in parts; train in one process"),
    ("fsdp", lambda args: args.fsdp, "it holds the weights in parts; train in one process"),
    ("world_size", lambda args: args.world_size > 1, "a client is one process: start it without torchrun"),
    ("n_gpu", lambda args: args.n_gpu > 1, "a client trains on one device: set CUDA_VISIBLE_DEVICES"),
    ("load_best_model_at_end", lambda args: args.load_best_model_at_end, f"{_EACH_ROUND}, not a checkpoint"),
    ("resume_from_checkpoint", lambda args: args.resume_from_checkpoint, f"{_EACH_ROUND}, not a checkpoint"),
    ("push_to_hub", lambda args: args.push_to_hub, "it would publish one owner's adapter"),
    ("auto_find_batch_size", lambda args: args.auto_find_batch_size, "it trains a part of a round twice"),
    ("enable_jit_checkpoint", lambda args: args.enable_jit_checkpoint, f"{_EACH_ROUND}, not a checkpoint"),
)
"""Of ``TrainingArguments``: the argument, whether it is on, and what to do."""


def require_federable(trainer: object) -> Trainer:
    """``trainer``, if its training is one that a round can have.

    Raises:
        ConfigError: names the argument.
    """
    if not isinstance(trainer, Trainer):
        raise ConfigError(
            "headwater.hf", expected="a transformers.Trainer (or TRL's), or a function that makes one",
            got=type(trainer).__name__,
        )  # fmt: skip
    who, args = type(trainer).__name__, trainer.args
    for name, on, why in REFUSED:
        if on(args):
            got = f"{getattr(args, name)!r:.60}"
            raise ConfigError(
                f"{who}, args.{name}", expected="it off in a federation", got=got, hint=_said(why)
            )
    if args.gradient_accumulation_steps > 1 and not _divides(trainer):
        raise ConfigError(
            f"{who}, args.gradient_accumulation_steps", expected="a step of the mean of its parts",
            got=f"{args.gradient_accumulation_steps}, of which this model's Trainer takes the sum",
            hint="Set accepts_loss_kwargs = False on the base model first: then it divides.",
        )  # fmt: skip
    if trainer.model_init is not None:
        raise ConfigError(
            f"{who}, model_init", expected="model=, which lives from round to round", got="model_init",
            hint="model_init makes a new model in every training, without the federation's adapter.",
        )  # fmt: skip
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ConfigError(
            f"{who}, optimizers", expected="an optimizer that the Trainer makes", got="one that is made",
            hint="Each round begins with a new one: use args.optim, optimizer_cls_and_kwargs, or override "
            "create_optimizer.",
        )  # fmt: skip
    return trainer


def require_rows(trainer: Trainer) -> int:
    """How many examples its train_dataset has: what the client weighs.

    Raises:
        ConfigError: it has none, or nobody knows how many.
    """
    try:
        count = len(trainer.train_dataset)
    except TypeError:
        count = 0
    if not count:
        raise ConfigError(
            f"{type(trainer).__name__}, train_dataset", expected="a dataset with a length of at least 1",
            got=type(trainer.train_dataset).__name__, hint="A client weighs as much as it trains on.",
        )  # fmt: skip
    return count


def _divides(trainer: Trainer) -> bool:
    """Whether an accumulated step is as large as that of one batch of all its rows.

    Where a model takes any keyword, transformers (5.23) leaves the division to its loss; of the models' own
    losses that of causal language models divides, while those of classifiers and masked models take the mean
    of each part.
    """
    if not trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None:
        return True
    base = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
    kind = getattr(base, "loss_type", None)
    return kind == "ForCausalLM" or (kind is None and type(base).__name__.endswith("LMHeadModel"))


def _said(why: str) -> str:
    return f"{why[0].upper()}{why[1:]}."
