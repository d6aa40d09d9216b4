"""The traits of a method: what the rest of headwater asks of ``[training]`` whatever its kind.

Every settings class of :mod:`headwater.config.training` extends :class:`TrainingSettings` and says there what
is special about it. Nothing else compares kinds: who adds a method changes no other list.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from headwater.config.metrics import LOSS, Metric
from headwater.config.privacy import ExamplePrivacy
from headwater.config.settings import Settings

Distribution = Literal["rademacher", "gaussian"]
Sends = Literal["delta", "coefficients"]
Noise = Literal["none", "reported", "from coefficients"]
Source = Literal["gradients", "slopes", "losses", "nothing"]
Outputs = Literal["row", "tokens", "next token", "masked token", "answer"]
"""What a model says of a row: one vector of outputs; one for each token; logits of the vocabulary for each
next token, for each hidden token, or for each token of an answer."""


class Pluggable(Settings):
    """What a kind that an installed package brings says besides (:mod:`headwater.config.plugins`).

    Attributes:
        implementation: what does the work, as ``module:name``; imported when it is first used. Empty for
            headwater's own kinds.
    """

    implementation: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class SeedRange:
    """The seeds of one method in one round, and the largest coefficient that it may send of one.

    Args:
        first: the first seed.
        count: seeds ``first`` … ``first + count − 1`` may be named.
        entries: at most so many coefficients in one update.
        distribution: of the directions that the seeds stand for.
        largest: the magnitude that the coefficients' unit must be able to hold.
        implied: the update has exactly one coefficient for each seed, in order, and names none.
    """

    first: int
    count: int
    entries: int
    distribution: Distribution
    largest: float
    implied: bool = False


class TrainingSettings(Pluggable):
    """What headwater must know of a method beside its trainer: its traits, once, where its settings are.

    Attributes:
        sends: the values of a delta, or coefficients of the plan's seeds.
        noise: whether random directions make its updates noisy, and who says how much: nobody ("none"), its
            client ("reported"), or whoever reads the update ("from coefficients").
        learns_from: what a step asks of the model: gradients, slopes in forward mode, losses, or nothing.
        needs_rounds: all clients of a round must start from one version.
        fixed_steps: a client cannot be told to make fewer steps.
        splits_layers: the server deals each client some layers, ``layers_per_client``.
        needs_prompt: it searches a soft prompt.
        fresh_seeds: each round has new seeds.
        alone: no other method may be beside it.
        by_script: a script of the owner's trains; a process that runs none refuses it.
        vectors: of the adapter's size, in float32, that a training keeps between its steps.
        alike: the settings that all methods which send coefficients in one federation must share.
        later: settings that came after the first plans; one that is None is not in a plan.
    """

    sends: ClassVar[Sends] = "delta"
    noise: ClassVar[Noise] = "none"
    learns_from: ClassVar[Source] = "gradients"
    needs_rounds: ClassVar[bool] = False
    fixed_steps: ClassVar[bool] = False
    splits_layers: ClassVar[bool] = False
    needs_prompt: ClassVar[bool] = False
    fresh_seeds: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    by_script: ClassVar[bool] = False
    vectors: ClassVar[int] = 12
    alike: ClassVar[tuple[str, ...]] = ()
    later: ClassVar[tuple[str, ...]] = ()

    def plan_dump(self) -> dict[str, Any]:
        """The settings as a plan has them."""
        content = self.model_dump(mode="json")
        return {k: v for k, v in content.items() if v is not None or k not in self.later}

    def steps_of(self, examples: int | None, batch_size: int | None = None) -> int | None:
        """Optimiser steps of one round, as the trainer takes them; None if they cannot be known.

        Args:
            examples: that the client trains on; None if not known.
            batch_size: instead of the file's.
        """
        return 0

    def passes_text(self) -> str:
        """Passes over a batch in one step, for people."""
        return "0"

    def passes(self) -> float:
        """Passes over a step's rows, as simulated time counts them: a backward pass is one more.

        A pass in forward mode computes value and slope: it counts twice.
        """
        return 2.0

    def cut(self, batch_size: int, max_steps: int | None) -> TrainingSettings:
        """These settings with at most so many rows a step, and steps a round unless None."""
        return self

    def checkpoints(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return False

    def example_privacy(self) -> ExamplePrivacy | None:
        """The noise that hides each single example in what it learns; None without."""
        return None

    def seed_range(self, round: int) -> SeedRange | None:
        """The seeds of round 1, 2, …; None for a method that sends a delta."""
        return None

    def descent_rate(self, role: str) -> float | None:
        """The one rate η with which every local step of a round follows the gradient of a tensor.

        None where steps are anything else, such as AdamW's, or of rate 0 in the end: then nobody can tell the
        mean gradient from how far a client went.

        Args:
            role: the tensor's.
        """
        return None

    def largest_step(self) -> float:
        """How far a client that sends coefficients can go along a seed at once; 1 for other methods."""
        return 1.0


class ModelTraits(Settings):
    """What headwater asks of ``[model]`` whatever its kind.

    Attributes:
        pretrained: it is a base model, with files, a tokenizer and an adapter.
        gives: what it can say of a row; a task needs one of them.
        language_model: it goes on with a text, token by token.
        writes: it answers in text of its own.
        classifies: its targets are labels.
        own_head: the architecture brings the head that classifies.
        pooled: headwater's own linear head reads its mean-pooled hidden states.
    """

    pretrained: ClassVar[bool] = True
    gives: ClassVar[tuple[Outputs, ...]] = ()
    language_model: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    classifies: ClassVar[bool] = False
    own_head: ClassVar[bool] = False
    pooled: ClassVar[bool] = False


class AdapterTraits(Pluggable):
    """What headwater asks of ``[adapter]`` whatever its kind.

    Attributes:
        layered: each of its tensors belongs to one layer, and the layers below see nothing of it.
        has_factors: its tensors are pairs of factors A and B, of a rank.
        is_prompt: its values are embeddings of tokens before the input, which can be searched.
        prepends: its virtual tokens stand before the input's, in every layer.
        no_checkpoints: why activations cannot be computed again in the backward pass; empty if they can.
    """

    layered: ClassVar[bool] = False
    has_factors: ClassVar[bool] = False
    is_prompt: ClassVar[bool] = False
    prepends: ClassVar[bool] = False
    no_checkpoints: ClassVar[str] = ""

    @property
    def factor_rank(self) -> int:
        """Rank of its pairs of factors, of which clients may train the first ones; 0 if it has none."""
        return 0

    @property
    def virtual_tokens(self) -> int:
        """Positions of every row that the adapter takes."""
        return 0


class DataTraits(Pluggable):
    """What headwater asks of ``[data]`` whatever its kind. :class:`headwater.tasks.task.Task` does the rest.

    Attributes:
        has_rows: it comes from files.
        needs: what the model must say of a row.
        by_token: its targets belong to tokens; else a row has one target.
        has_labels: its rows bring labels of a closed list, ``labels``.
        metrics: what an evaluation gives, by name; the first decides unless the file names another. ``loss``
            is always among them.
        constant_metrics: those that the best constant answer (``baselines.majority``) can be judged by.
        has_probe: logistic regression on frozen features (``baselines.probe``) is a baseline of it.
        has_likelihood: its loss is minus the logarithm of a probability, so that labels can be drawn
            (strategy ``fisher``).
        has_answers: the model can write a row's answer out, which is a text (``evaluation.answers``).
    """

    has_rows: ClassVar[bool] = True
    needs: ClassVar[Outputs] = "row"
    by_token: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]] = {"loss": LOSS}
    constant_metrics: ClassVar[tuple[str, ...]] = ()
    has_probe: ClassVar[bool] = False
    has_likelihood: ClassVar[bool] = False
    has_answers: ClassVar[bool] = False

    @property
    def target_columns(self) -> tuple[str, ...]:
        """The columns, beside the input's, that every row must have."""
        return ()

    @property
    def group_column(self) -> str | None:
        """The column whose values a Dirichlet partition without a ``column`` goes by; None without one."""
        return None


class StrategyTraits(Pluggable):
    """What headwater asks of ``[strategy]`` whatever its kind.

    Attributes:
        linear: the result is a weighted mean, so that clients may send coefficients of seeds.
        takes_parts: clients may train, and send, parts of the adapter only.
        needs_fisher: every update brings a diagonal Fisher.
        adds_values: the result is the clients' values, added up and divided: a bound of each bounds the sum.
    """

    linear: ClassVar[bool] = False
    takes_parts: ClassVar[bool] = False
    needs_fisher: ClassVar[bool] = False
    adds_values: ClassVar[bool] = False

    @property
    def fewest(self) -> int:
        """The smallest number of updates that can be merged."""
        return 1

    @property
    def always(self) -> frozenset[str]:
        """Clients that are asked in every round, whoever else is drawn."""
        return frozenset()

    def merges_parts(self) -> bool:
        """Whether clients may train parts only: :attr:`takes_parts`, unless settings decide."""
        return self.takes_parts

    def blends_factors(self) -> bool:
        """Whether it would merge A and B coordinate by coordinate without having been told to."""
        space, allowed = getattr(self, "space", ""), getattr(self, "allow_factors", False)
        return not self.linear and space == "factors" and not allowed

    def adds_up(self) -> bool:
        """Whether a round needs no more of the updates than what :meth:`Aggregator.sum_layout` adds up."""
        return False

    def weighs_methods(self) -> bool:
        """Whether what an update weighs depends on its method."""
        return False


class TrackerTraits(Pluggable):
    """What headwater asks of a tracker whatever its kind.

    Attributes:
        folder: where it may write, below the run folder; empty for ``trackers/KIND``.
    """

    folder: ClassVar[str] = ""


class CodecTraits(Pluggable):
    """What headwater asks of a codec whatever its kind.

    Attributes:
        sparse: few values are sent, and the others arrive as zeros.
        unbiased: over its random draws the decoded values are those that were encoded, on average. Error
            feedback must not be used: the noise is not what was dropped, and would add up.
        whole: as ``codec.down`` it carries the global adapter as it is; any other carries what changed since
            the version that a client holds.
        first_format: the settings that came with later formats, as the first format has them. A plan without
            them asks for that one.
    """

    sparse: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    first_format: ClassVar[Mapping[str, object]] = MappingProxyType({})

    def written_by(self, ids: Collection[str]) -> Self:
        """This codec as a client is asked for it.

        Args:
            ids: of the codecs that the client says it knows.
        """
        return self

    def plan_dump(self) -> dict[str, Any]:
        """The settings as a plan has them: of a first format none that it did not have."""
        content, first = self.model_dump(mode="json"), self.first_format
        later = any(content[name] != value for name, value in first.items())
        return content if later else {name: content[name] for name in content if name not in first}

    def defaults_since(self) -> set[str]:
        """Settings that came with later formats and are what they are by default: nobody has to be told."""
        fields = type(self).model_fields
        return {name for name in self.first_format if getattr(self, name) == fields[name].default}

    def notices(self, names: Sequence[str]) -> tuple[str, ...]:
        """What an organiser should know of these settings beside this adapter, one sentence each.

        Args:
            names: of the adapter's tensors.
        """
        return ()

    @property
    def keeps(self) -> float | None:
        """The fraction of values that travel; None where :meth:`keeping` cannot change it."""
        density: float | None = getattr(self, "density", None)
        return density

    def keeping(self, density: float) -> Self:
        """The same with another fraction of values."""
        return self.model_copy(update={"density": density})

    def leaves_out(self) -> bool:
        """Whether values may arrive as zeros that were none: :attr:`sparse`, unless its settings decide."""
        return self.sparse

    @property
    def shifts(self) -> bool:
        """Whether error feedback is EF21: the server adds up what clients send, round after round."""
        return False

    def fading(self) -> tuple[float, int | None]:
        """Of what a client held back: what is left after each round, and after how many rounds nothing."""
        return 1.0, None

    def may_lengthen(self) -> bool:
        """Whether the decoded values may be longer, in L2 norm, than those that were encoded."""
        return False

    def for_round(self, places: str) -> Self:
        """This codec as the plans of one round have it.

        Args:
            places: 32 hex digits of the round, for codecs whose random places all clients share.
        """
        return self

    def is_of_a_round(self) -> bool:
        """Whether :meth:`for_round` has given it places, which no file may."""
        return False
