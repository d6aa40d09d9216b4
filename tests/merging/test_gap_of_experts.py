"""A mixture's fused experts: PEFT's own products of each expert's factors are the oracle."""

import numpy as np
import torch

from headwater.merging import GapSketch
from headwater.merging.coverage import covered
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.support import federations
from tests.support.architectures import build


def test_the_gap_pairs_each_expert_s_factors(tmp_path):
    build("mixtral", tmp_path / "mixtral")
    table = {"kind": "lora", "rank": 2, "target_modules": ("all-linear",)}
    model = federations.adapted(federations.federation(tmp_path, "causal-lm", "mixtral", table))
    spec = model.spec
    experts = [t for t in spec if t.role == "lora_b" and t.experts == 4]
    assert len(experts) == 4  # two stacks of weights in each of two layers
    rng = np.random.default_rng(0)

    def drawn():
        """Large A and small B, or the other way round, by expert: wrong pairs have other norms."""
        state = AdapterState.from_vector(
            spec, torch.from_numpy(rng.normal(size=spec.numel).astype("float32"))
        )
        values = dict(state)
        for b in experts:
            size = 4.0 ** torch.arange(4)
            up = values[b.name].reshape(values[b.name].shape[0], -1, 4) / size
            down = values[b.pair].reshape(4, -1, values[b.pair].shape[1]) * size[:, None, None]
            values |= {b.name: up.reshape(b.shape), b.pair: down.reshape(values[b.pair].shape)}
        return AdapterState(spec, values)

    base, deltas = drawn(), [drawn(), drawn()]
    merged = base + deltas[0].map(lambda v: v / 2) + deltas[1].map(lambda v: v / 2)

    def products(state):
        model.load(state)
        found = {}
        for t in experts:
            layer = model.network.peft.get_submodule(t.name.partition(".lora_B")[0])
            found[t.name] = layer.get_delta_weight("default").detach().double()
        return found

    ideal = [products(base + delta) for delta in deltas]
    found = products(merged)
    sketch = GapSketch(base, key=Key.root(0), probes=2048, bound=2.0**16)
    acc = sketch.init(MergePlan(spec, {"a": 1, "b": 1}, 16.0))
    for client, delta in zip("ab", deltas, strict=True):
        acc = sketch.add(acc, Update(client, 1, delta, examples=1))
    report = sketch.finalize(acc, merged)
    for t in experts:
        mean = (ideal[0][t.name] + ideal[1][t.name]) / 2
        np.testing.assert_allclose(report.modules[t.name].product, float(mean.norm()), rtol=0.1)
        np.testing.assert_allclose(report.modules[t.name].gap, float((mean - found[t.name]).norm()), rtol=0.1)


def test_a_smaller_rank_is_the_first_components_of_every_expert():
    spec = StateSpec.of(
        [
            TensorSpec("m.lora_A", (6, 4), "lora_a", experts=2),
            TensorSpec("m.lora_B", (5, 6), "lora_b", pair="m.lora_A", experts=2),
        ]
    )
    mask = covered(spec, None, 2)
    assert mask is not None
    state = AdapterState.from_vector(spec, mask.float())
    per_expert_a = state["m.lora_A"].reshape(2, 3, 4)
    per_expert_b = state["m.lora_B"].reshape(5, 3, 2)
    assert per_expert_a[:, :2].all()
    assert not per_expert_a[:, 2].any()
    assert per_expert_b[:, :2].all()
    assert not per_expert_b[:, 2].any()


def test_a_fingerprint_without_experts_is_what_it_was():
    spec = StateSpec.of([TensorSpec("a", (2,), "vector")])
    assert spec.fingerprint() == "93614473317f64261e5b4bd29ba36f2cbccd21f6eeb9d704b6ad61621ce8d97e"
