"""TrainerLearner: one round of a client as one ``train()`` of a Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from headwater.adapters.given import GivenModel
from headwater.adapters.model import AdaptedModel
from headwater.hf.refused import require_federable
from headwater.training.script import Learner, LocalPlan, Rows

MakeTrainer = Callable[[str, Rows], Trainer]
"""A client's name and rows to its Trainer."""


class TrainerLearner(Learner):
    """Trains with the Trainer that ``make`` gives for a client: its own optimiser, callbacks, collator, data.

    Optimiser and scheduler are new in every round, the seed is the round's. Checkpoints of its own are not
    written: what a round changes is the update, which Headwater keeps.

    Args:
        make: gives the Trainer of a client; the same one each time, or a new one.
        ours: the federation's model.
    """

    def __init__(self, make: MakeTrainer, ours: AdaptedModel) -> None:
        self._make, self._ours = make, ours
        self._trainer: Trainer | None = None
        self._given: tuple[object, GivenModel] | None = None

    def model(self, plan: LocalPlan, rows: Rows) -> GivenModel:  # noqa: D102 - inherited
        trainer = self._trainer = require_federable(self._make(plan.client, rows))
        if self._given is None or self._given[0] is not trainer.model:
            who = f"{type(trainer).__name__} of {plan.client}"
            self._given = trainer.model, GivenModel.of(trainer.model, self._ours, who=who)
        return self._given[1]

    def learn(  # noqa: D102 - inherited
        self, given: GivenModel, plan: LocalPlan, rows: Rows, after_step: Callable[[], None]
    ) -> tuple[Mapping[str, float], int]:
        trainer = self._trainer
        assert trainer is not None, "model() made it"
        with _round(trainer, plan, after_step):
            output = trainer.train()
        return {"loss": output.training_loss}, output.global_step


class RoundCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Ends a round where the plan does, and says when a step is done.

    Args:
        max_steps: of the plan.
        after_step: is called after each optimiser step.
    """

    def __init__(self, max_steps: int | None, after_step: Callable[[], None]) -> None:
        self._max_steps, self._after_step = max_steps, after_step

    def on_step_end(  # noqa: D102 - inherited
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,  # noqa: ANN401 - as transformers has it
    ) -> None:
        self._after_step()
        if self._max_steps is not None and state.global_step >= self._max_steps:
            control.should_training_stop = True


@contextlib.contextmanager
def _round(trainer: Trainer, plan: LocalPlan, after_step: Callable[[], None]) -> Iterator[None]:
    """Inside, ``trainer.train()`` is the plan's round; afterwards the Trainer is as it was."""
    args, config = trainer.args, trainer.accelerator.dataloader_config
    before, classes = (
        {name: getattr(args, name) for name in _changed(trainer, plan)},
        trainer.optimizer_cls_and_kwargs,
    )
    data_seed = config.data_seed
    callback = RoundCallback(plan.max_steps, after_step)
    base: Any = trainer.model.get_base_model()
    hooks = getattr(base, "_require_grads_hooks", None)
    trainer.add_callback(callback)
    try:
        for name, value in _changed(trainer, plan).items():
            setattr(args, name, value)
        if data_seed is not None:
            config.data_seed = plan.seed
        if classes is not None and "lr" in classes[1]:
            rate = classes[1]["lr"] * plan.learning_rate_factor
            rate = rate if plan.learning_rate is None else plan.learning_rate
            trainer.optimizer_cls_and_kwargs = classes[0], {**classes[1], "lr": rate}
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
        config.data_seed, trainer.optimizer_cls_and_kwargs = data_seed, classes
        trainer.remove_callback(callback)
        trainer.optimizer = trainer.lr_scheduler = None
        trainer._created_lr_scheduler, trainer.is_in_train = False, False
        if getattr(base, "_require_grads_hooks", None) is not hooks:  # train() adds some each time
            base.disable_input_require_grads()


def _changed(trainer: Trainer, plan: LocalPlan) -> dict[str, Any]:
    """What a round sets of the Trainer's arguments."""
    args = trainer.args
    rate = args.learning_rate * plan.learning_rate_factor
    found: dict[str, Any] = {
        "seed": plan.seed,
        "learning_rate": rate if plan.learning_rate is None else plan.learning_rate,
        "save_strategy": "no",
    }
    if args.data_seed is not None:
        found["data_seed"] = plan.seed
    if plan.epochs is not None:
        found |= {"num_train_epochs": plan.epochs, "max_steps": -1}
    elif plan.max_steps is not None:
        found["max_steps"] = plan.max_steps
    return found
