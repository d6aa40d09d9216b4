"""The laws of adapter kinds: subclass :class:`AdapterKindLaws`, set ``kind``, ``roles`` and ``table``."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch.profiler import profile

from headwater.adapters.base import load_base
from headwater.adapters.export import export
from headwater.adapters.kinds.kind import AdapterKind
from headwater.adapters.kinds.table import kind_of
from headwater.adapters.model import AdaptedModel
from headwater.adapters.peak_memory import live_peak
from headwater.adapters.predict import Predictor
from headwater.adapters.trial import try_model
from headwater.config import LoadedFederation
from headwater.config.load import federation_of
from headwater.errors import ModelError
from headwater.state import AdapterState
from headwater.tasks.batches import Batch, collate
from headwater.training.memory_estimate import synthetic
from tests.support import federations
from tests.support.model_cells import run_readme

BASES = [
    ("encoder", "bert"),
    ("sequence-classification", "bert"),
    ("sequence-classification", "roberta"),
    ("causal-lm", "llama"),
    ("causal-lm", "gpt2"),
]
ONE_OF_EACH = [("encoder", "bert"), ("sequence-classification", "bert"), ("causal-lm", "llama")]
ROWS, TOKENS = 8, 64
MEMORY = 0.1
"""How far the traced memory of a step may be from what the allocator gives, as a share of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tiny base models lie."""
    return tmp_path_factory.mktemp("models")


def batch_of(model: AdaptedModel, count: int = 3) -> Batch:
    """Random rows for ``model``."""
    rows = federations.examples(count, language_model=model.language_model)
    return collate(rows, 0)


def elsewhere(model: AdaptedModel) -> AdapterState:
    """A state near the start in which no value is as it was."""
    return model.initial_state().map(
        lambda v: v + 0.05 + 0.02 * torch.sin(torch.arange(v.numel(), dtype=torch.float32).view(v.shape))
    )


class AdapterKindLaws:
    """What holds for every kind.

    Attributes:
        kind: the kind.
        roles: of the tensors that travel, without ``head``.
        with_biases: more of them, where the base's layers have biases.
        still: parts of names that a step on these bases, whose biases are 0, need not change.
        starts_as_base: whether it changes no output before it is trained.
        drawn: whether its start depends on the seed.
        has_slopes: whether forward mode goes through it.
        tasks: the kinds of models that it goes with, likewise.
        bases: the tiny bases that can be adapted so; any other is refused, and the last stands in for it.
    """

    kind: ClassVar[type[AdapterKind[Any]]]
    roles: ClassVar[set[str]]
    with_biases: ClassVar[set[str]] = set()
    still: ClassVar[tuple[str, ...]] = ()
    starts_as_base: ClassVar[bool] = False
    drawn: ClassVar[bool] = True
    has_slopes: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("encoder", "sequence-classification", "causal-lm")
    bases: ClassVar[tuple[str, ...]] = ("bert", "roberta", "llama", "gpt2")

    def table(self, base: str) -> dict[str, Any]:
        """``[adapter]`` for a tiny base, small."""
        raise NotImplementedError

    def federation(self, folder: Any, task: str, base: str) -> LoadedFederation:
        return federations.federation(folder, task, base, self.table(base))

    def standing_in(self, task: str, base: str) -> tuple[str, str]:
        """Those that the kind goes with."""
        return (
            task if task in self.tasks else self.tasks[-1],
            base if base in self.bases else self.bases[-1],
        )

    def build(self, folder: Any, task: str, base: str, *, seed: int = 0) -> AdaptedModel:
        task, base = self.standing_in(task, base)
        return federations.adapted(self.federation(folder, task, base), seed=seed)

    def test_it_is_found_by_its_settings(self, folder: Any) -> None:
        adapter = self.federation(folder, "encoder", "bert").settings.adapter
        assert isinstance(adapter, self.kind.settings)
        assert type(kind_of(adapter)) is self.kind

    @pytest.mark.parametrize(("task", "base"), BASES)
    def test_the_spec_names_what_is_trained(self, folder: Any, task: str, base: str) -> None:
        if base not in self.bases or task not in self.tasks:
            with pytest.raises(ModelError):
                federations.adapted(self.federation(folder, task, base))
            return
        model = self.build(folder, task, base)
        found = {t.role for t in model.spec} - {"head"}
        assert self.roles <= found <= self.roles | self.with_biases
        assert ("head" in {t.role for t in model.spec}) == (task != "causal-lm")
        assert model.initial_state().spec == model.spec == model.read().spec
        model.forward(batch_of(model)).loss.backward()
        trained = {id(p) for _, p in model.parameters()}
        assert [spec for spec, _ in model.parameters()] == list(model.spec)
        for p in model.network.parameters():
            assert p.requires_grad == (p.grad is not None) == (id(p) in trained)

    @pytest.mark.parametrize(("task", "base"), ONE_OF_EACH)
    def test_a_state_out_and_in_is_itself(self, folder: Any, task: str, base: str) -> None:
        model = self.build(folder, task, base)
        start, other = model.initial_state(), elsewhere(model)
        assert model.read().tobytes() == start.tobytes()
        model.load(other)
        copy = model.read()
        model.write(torch.zeros(model.spec.numel))
        assert not model.read().vector().any()
        assert copy.tobytes() == other.tobytes() != start.tobytes() == model.initial_state().tobytes()

    @pytest.mark.parametrize(("task", "base"), ONE_OF_EACH)
    def test_the_seed_alone_says_how_it_starts(self, folder: Any, task: str, base: str) -> None:
        threads = torch.get_num_threads()
        found = []
        for seed, noise, used in ((0, 1, 1), (0, 2, 3), (1, 1, 1)):
            torch.manual_seed(noise)
            torch.set_num_threads(used)
            try:
                model = self.build(folder, task, base, seed=seed)
            finally:
                torch.set_num_threads(threads)
            assert model.initial_state().isfinite()
            found.append(model.initial_state().tobytes() + model.frozen.tobytes())
        assert found[0] == found[1]
        assert (found[0] != found[2]) == (self.drawn or task != "causal-lm")  # a fresh head is drawn

    @pytest.mark.parametrize("base", ["llama", "gpt2"])
    def test_it_starts_as_the_base_where_it_says_so(self, folder: Any, base: str) -> None:
        if base not in self.bases:
            pytest.skip("refused, as another law says")
        model = self.build(folder, "causal-lm", base)
        plain = load_base(model.base.settings, folder, labels=None).model
        batch = batch_of(model)
        expected = plain(input_ids=batch.tokens, attention_mask=batch.mask).logits
        found = model.forward(batch).logits
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5) == self.starts_as_base
        model.load(elsewhere(model))
        assert not torch.allclose(model.forward(batch).logits, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("task", "base"), ONE_OF_EACH)
    def test_padding_and_neighbours_do_not_matter(self, folder: Any, task: str, base: str) -> None:
        model = self.build(folder, task, base)
        model.load(elsewhere(model))
        rows = federations.examples(4, language_model=model.language_model)
        together = model.forward(collate(rows, 0))
        for i, row in enumerate(rows):
            alone = model.forward(collate([row], 3))
            torch.testing.assert_close(together.losses[i], alone.losses[0], rtol=1e-5, atol=1e-5)
            assert together.counts[i] == alone.counts[0]

    @pytest.mark.parametrize(("task", "base"), ONE_OF_EACH)
    def test_a_step_changes_what_is_trained_and_nothing_else(self, folder: Any, task: str, base: str) -> None:
        model = self.build(folder, task, base)
        model.load(elsewhere(model))  # where no product is of zeros
        parameters = [p for _, p in model.parameters()]
        before = {n: v.clone() for n, v in model.network.state_dict(keep_vars=False).items()}
        frozen = model.kind.buffers(model.network.peft)
        fixed = {n: tensor.clone() for n, (_, tensor) in frozen.items()}
        with model.training():
            gradients = torch.autograd.grad(model.forward(batch_of(model)).loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient / gradient.abs().max().clamp(min=1e-9)
        trained = {id(p) for p in parameters}
        for name, value in model.network.state_dict(keep_vars=True).items():
            changed = not torch.equal(value, before[name])
            assert changed == (id(value) in trained) or any(part in name for part in self.still), name
        for name, (_, tensor) in frozen.items():
            assert torch.equal(tensor, fixed[name]), name

    @pytest.mark.parametrize(("task", "base"), [("encoder", "bert"), ("causal-lm", "llama")])
    def test_plain_peft_computes_the_same(self, folder: Any, task: str, base: str, tmp_path: Any) -> None:
        """The export in PEFT alone, by the code of its own README, and in headwater."""
        model = self.build(folder, task, base)
        try_model(model, max_tokens=32)
        state = elsewhere(model)
        model.base.settings.__dict__["path"] = str(
            folder / model.base.settings.path
        )  # the README's code runs elsewhere
        export(model, state, tmp_path / "out", card={})
        tokens = model.base.tokenizer.encode("a text", 32)
        rows = torch.tensor([tokens])
        targets = rows if model.language_model else torch.zeros(1, dtype=torch.int64)
        batch = Batch(rows, torch.ones_like(rows), targets)
        model.load(state)
        with torch.no_grad():
            ours = model.forward(batch).logits[0]
            loaded = Predictor.open(tmp_path / "out").forward(batch).logits[0]
        theirs = run_readme(tmp_path / "out")["logits"].detach()[0][-ours.shape[0] :]
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("task", "base"), ONE_OF_EACH)
    def test_a_federation_goes_on_from_its_export(
        self, folder: Any, task: str, base: str, tmp_path: Any
    ) -> None:
        """Bit for bit, by ``start`` alone and with another seed; or as what PEFT makes of the export."""
        base = base if base in self.bases else self.bases[-1]
        model = self.build(folder, task, base)
        state = elsewhere(model)
        export(model, state, tmp_path / "out", card={})
        tables = self.federation(folder, *self.standing_in(task, base)).settings.model_dump(
            mode="json", exclude_none=True
        )
        tables["adapter"] = {"start": str(tmp_path / "out")}
        loaded = federation_of(tables, folder=folder, name="federation.toml")
        again = federations.adapted(loaded, seed=1)
        batch = batch_of(model)
        model.load(state)
        with torch.no_grad():
            then, after = model.forward(batch).logits, again.forward(batch).logits
        if not self.kind.exports_itself:
            torch.testing.assert_close(after, then, rtol=1e-4, atol=1e-5)
            return
        assert again.initial_state().tobytes() == state.tobytes()
        assert again.frozen.tobytes() == model.frozen.tobytes()
        assert torch.equal(after, then)
        export(again, again.initial_state(), tmp_path / "again", card={})
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()

    @pytest.mark.parametrize(("task", "base"), [("causal-lm", "llama")])
    def test_the_predicted_memory_of_a_step_is_what_it_takes(self, folder: Any, task: str, base: str) -> None:
        model = self.build(folder, task, base)
        parameters = [p for _, p in model.parameters()]

        def step() -> object:
            batch = synthetic(model, ROWS, TOKENS)
            batch.mask[0, -1] = 0  # a batch without padding may take less: some models then need no mask
            return torch.autograd.grad(model.forward(batch).loss, parameters)

        step()  # what is cached the first time is
        assert live_peak(step) == pytest.approx(allocated_peak(step), rel=MEMORY)

    @pytest.mark.parametrize(("task", "base"), [("encoder", "bert")])
    def test_the_slope_is_the_gradients_or_refused(self, folder: Any, task: str, base: str) -> None:
        model = self.build(folder, task, base)
        model.load(elsewhere(model))
        batch = batch_of(model)
        direction = torch.sin(torch.arange(model.spec.numel, dtype=torch.float32))
        gradients = torch.autograd.grad(model.forward(batch).loss, [p for _, p in model.parameters()])
        expected = float(torch.cat([g.reshape(-1) for g in gradients]) @ direction)
        if not self.has_slopes:
            with pytest.raises(ModelError, match="forward"):
                model.slope(batch, direction)
            return
        assert model.slope(batch, direction)[1] == pytest.approx(expected, rel=1e-3, abs=1e-4)

    def test_the_base_comes_back_as_it_was(self, folder: Any) -> None:
        model = self.build(folder, "causal-lm", "llama")
        model.load(elsewhere(model))
        released = model.release()
        assert released is not None
        plain = load_base(model.base.settings, folder, labels=None).model.state_dict()
        found = released.model.state_dict()
        assert all(torch.equal(value, plain[name]) for name, value in found.items())
        assert found.keys() == plain.keys()
        assert not set(released.settings.accept_warnings) & set(model.kind.harmless)

    def test_states_are_merged_value_by_value(self, folder: Any) -> None:
        model = self.build(folder, "encoder", "bert")
        one, two = model.initial_state(), elsewhere(model)
        mean = (one + two) * 0.5
        model.load(mean)
        assert model.read().tobytes() == mean.tobytes()
        assert model.forward(batch_of(model)).logits.isfinite().all()


def allocated_peak(step: Any) -> int:
    """What torch's profiler saw the allocator give: the oracle."""
    with profile(profile_memory=True) as profiled:
        kept = step()
    del kept
    live = highest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            highest = max(highest, live)
    return highest
