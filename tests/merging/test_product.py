"""The mean of the products against dense float64 matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from headwater.errors import DecodeError, UpdateRejected
from headwater.merging import Merged, ProductAggregator
from headwater.merging.accumulator_bytes import dump, load
from headwater.merging.pairs import factors
from headwater.merging.plan import MergePlan, Update
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from tests.laws.aggregator_laws import lora_spec, state_of, update_of

Matrix = npt.NDArray[np.float64]
S = 2.0
KEY = Key.root(5)
CLIENTS = {"a": 3, "b": 1, "c": 4, "d": 2}


def product(state: AdapterState, expert: int = 0, part: slice = slice(None)) -> Matrix:
    """s·B·A of the only pair, in float64."""
    up, down = factors(state, state.spec.by_name["q.lora_B"])
    scaling = state.spec.by_name["q.lora_B"].scaling
    found: Matrix = scaling * (up[expert][:, part] @ down[expert][part]).numpy()
    return found


def start(spec: StateSpec, seed: int = 1, size: float = 0.1) -> AdapterState:
    return state_of(spec, size * np.random.default_rng(seed).normal(size=spec.numel))


def cohort(spec: StateSpec, plan: MergePlan, size: float = 0.02) -> list[Update]:
    """Changes that clients have in common, and as much of each one's own, where their plan covers it."""
    rng = np.random.default_rng(2)
    common, updates = rng.normal(size=spec.numel), []
    for client in plan.weights:
        delta = state_of(spec, size * (common + rng.normal(size=spec.numel)))
        rank, tensors = plan.ranks.get(client), plan.tensors.get(client)
        values = {name: value.clone() for name, value in delta.items()}
        for t in spec:
            if tensors is not None and t.name not in tensors:
                values[t.name].zero_()
        if rank is not None:
            values["q.lora_A"][rank:], values["q.lora_B"][:, rank:] = 0, 0
        updates.append(Update(client, 1, AdapterState(spec, values), examples=1))
    return updates


def merged(base: AdapterState, plan: MergePlan, updates: list[Update], **settings: Any) -> Merged:
    rule = ProductAggregator(base, key=KEY, **settings)
    acc = rule.init(plan)
    for update in updates:
        acc = rule.add(acc, update)
    return rule.finalize(acc)


def mean_of(weights: Mapping[str, int], matrices: Mapping[str, Matrix]) -> Matrix:
    total = sum(weights[name] for name in matrices)
    return np.sum([weights[name] / total * matrix for name, matrix in matrices.items()], axis=0)


def best(matrix: Matrix, rank: int) -> Matrix:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    found: Matrix = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found


def test_the_published_vector_comes_out() -> None:
    # algorithms.md F4: p = 1/4 and 3/4, ranks 1 and 2, singular values by FlexLoRA's dense form
    spec = lora_spec(2, 3, 2, scaling=1.0)
    plan = MergePlan(spec, {"one": 1, "two": 3}, 16.0)
    one = update_of(spec, "one", [1, 2, 0, 0, *(1, 0), *(0, 0), *(1, 0)])
    two = update_of(spec, "two", [1, 0, 0, 1, *(0, 1), *(1, 0), *(1, 1)])
    base = AdapterState.zeros(spec)
    state = base + merged(base, plan, [one, two]).delta
    assert product(state) == pytest.approx(np.array([[0.25, 1.25], [0.75, 0], [1, 1.25]]), abs=1e-6)
    columns = np.square(state["q.lora_B"].double().numpy()).sum(axis=0)
    assert columns == pytest.approx([2.0268640995, 0.8011378920], abs=1e-6)
    assert np.square(state["q.lora_A"].double().numpy()).sum(axis=1) == pytest.approx(columns, abs=1e-6)
    first = state["q.lora_B"][:, 0].double().numpy() / np.sqrt(columns[0])
    assert first == pytest.approx([0.5876679681, 0.1970680117, 0.7847359798], abs=1e-6)


def test_a_small_weight_is_summed_whole_and_truncated_best() -> None:
    spec = lora_spec(9, 7, 2, scaling=S, head=3)
    base, plan = start(spec), MergePlan(spec, CLIENTS, 16.0)
    updates = cohort(spec, plan, size=0.3)
    result = merged(base, plan, updates)
    ideal = mean_of(CLIENTS, {u.client: product(base + u.delta) for u in updates})
    assert product(base + result.delta) == pytest.approx(best(ideal, 2), abs=1e-6)
    missed = np.linalg.norm(ideal - best(ideal, 2)) / np.linalg.norm(ideal)
    assert missed > 0.05
    assert result.report["truncation"] == pytest.approx(missed, rel=1e-5)
    heads = np.stack([u.delta["head"].numpy() for u in updates])
    assert result.delta["head"].numpy() == pytest.approx(
        np.average(heads, axis=0, weights=list(CLIENTS.values())), abs=1e-6
    )


def test_a_sketch_is_exact_up_to_its_rank() -> None:
    # four clients of rank 2 around a global product of rank 2: the mean has rank 8, the sketch 8 columns
    spec = lora_spec(60, 50, 2, scaling=S)
    base, plan = start(spec), MergePlan(spec, CLIENTS, 16.0)
    updates = cohort(spec, plan)
    rule = ProductAggregator(base, key=KEY, width=4)
    acc = rule.init(plan)
    for update in updates:
        acc = rule.add(acc, update)
    assert acc.products["q.lora_B"].left is not None, "else the weight was summed whole"
    ideal = mean_of(CLIENTS, {u.client: product(base + u.delta) for u in updates})
    assert np.linalg.matrix_rank(ideal) == 8
    new = product(base + rule.finalize(acc).delta)
    assert np.linalg.norm(new - best(ideal, 2)) < 1e-6 * np.linalg.norm(ideal)


def test_beyond_its_rank_a_sketch_is_little_worse_than_the_best_and_says_by_how_much() -> None:
    spec = lora_spec(192, 160, 4, scaling=S)
    plan = MergePlan(spec, {f"c{i}": 1 + i % 3 for i in range(16)}, 16.0)
    base, updates = start(spec), cohort(spec, plan, size=0.05)
    ideal = mean_of(plan.weights, {u.client: product(base + u.delta) for u in updates})
    result = merged(base, plan, updates)
    least = np.linalg.norm(ideal - best(ideal, 4))
    missed = np.linalg.norm(ideal - product(base + result.delta))
    assert least / np.linalg.norm(ideal) > 0.04
    assert least < missed < 1.03 * least
    assert result.report["truncation"] == pytest.approx(missed / np.linalg.norm(ideal), rel=0.25)
    assert result.report["product_rank"] == 4


def test_the_order_of_clients_does_not_change_a_bit_of_a_sketch() -> None:
    spec = lora_spec(60, 50, 2, scaling=S)
    plan = replace(MergePlan(spec, CLIENTS, 16.0), ranks={"a": 1})
    base, updates = start(spec), cohort(spec, plan)
    rule = ProductAggregator(base, key=KEY)
    one = rule.add(rule.add(rule.init(plan), updates[3]), updates[0])
    other = rule.add(rule.add(rule.init(plan), updates[2]), updates[1])
    tree = rule.finalize(rule.combine(one, other))
    assert tree.delta.sha256() == merged(base, plan, updates).delta.sha256()


def test_ranks_2_to_32_in_one_round() -> None:
    spec = lora_spec(70, 64, 32, scaling=S)
    ranks = {"r2": 2, "r4": 4, "r8": 8, "r16": 16, "r32": 32}
    plan = replace(MergePlan(spec, dict.fromkeys(ranks, 1), 16.0), ranks=ranks)
    base, updates = start(spec), cohort(spec, plan)
    after = {u.client: base + u.delta for u in updates}
    holders = np.zeros((64, 70))
    for k in range(32):
        mine = [product(after[c], part=slice(k, k + 1)) for c, rank in ranks.items() if rank > k]
        holders += np.mean(mine, axis=0)
    found = product(base + merged(base, plan, updates).delta)
    assert found == pytest.approx(best(holders, 32), abs=1e-5)
    everyone = np.mean([product(state) for state in after.values()], axis=0)
    found = product(base + merged(base, plan, updates, by_holders=False).delta)
    assert found == pytest.approx(best(everyone, 32), abs=1e-5)
    # a client of rank 2 gets the best of rank 2 in its first two components
    state = base + merged(base, plan, updates).delta
    assert product(state, part=slice(0, 2)) == pytest.approx(best(holders, 2), abs=1e-5)


def test_who_does_not_train_a_module_has_no_say_in_it() -> None:
    spec = lora_spec(9, 7, 2, scaling=S, head=3)
    plan = replace(MergePlan(spec, CLIENTS, 16.0), tensors={"a": ("head",), "b": ("head", "q.lora_B")})
    base, updates = start(spec), cohort(spec, plan)
    ideal = mean_of(CLIENTS, {u.client: product(base + u.delta) for u in updates if u.client != "a"})
    assert product(base + merged(base, plan, updates).delta) == pytest.approx(best(ideal, 2), abs=1e-6)


def test_each_expert_has_its_own_product() -> None:
    tensors = [
        TensorSpec("q.lora_A", (4, 9), "lora_a", experts=2),
        TensorSpec("q.lora_B", (7, 4), "lora_b", pair="q.lora_A", scaling=S, experts=2),
    ]
    spec = StateSpec.of(tensors)
    base, plan = start(spec), MergePlan(spec, CLIENTS, 16.0)
    updates = cohort(spec, plan)
    state = base + merged(base, plan, updates).delta
    for expert in range(2):
        ideal = mean_of(CLIENTS, {u.client: product(base + u.delta, expert) for u in updates})
        assert product(state, expert) == pytest.approx(best(ideal, 2), abs=1e-6)


def test_what_the_product_has_not_can_still_be_trained() -> None:
    # a first round in which clients moved the first component only: B is 0 elsewhere, and A must not be
    spec = lora_spec(9, 7, 4, scaling=S)
    base = AdapterState(spec, {**start(spec), "q.lora_B": torch.zeros(7, 4)})
    plan = replace(MergePlan(spec, {"a": 1}, 16.0), ranks={"a": 1})
    updates = cohort(spec, plan)
    result = merged(base, plan, updates)
    state = base + result.delta
    assert result.report["product_rank"] == 1
    assert product(state) == pytest.approx(product(base + updates[0].delta), abs=1e-6)
    assert torch.equal(state["q.lora_B"][:, 1:], torch.zeros(7, 3))
    assert torch.allclose(state["q.lora_A"][1:], base["q.lora_A"][1:])
    unmoved = [Update("a", 1, AdapterState.zeros(spec), examples=1)]
    assert merged(base, plan, unmoved).delta.max_abs() == 0


def test_fair_refits_b_to_the_mean_of_a() -> None:
    spec = lora_spec(9, 7, 2, scaling=S)
    base, plan = start(spec), MergePlan(spec, CLIENTS, 16.0)
    updates = cohort(spec, plan, size=0.3)
    ideal = mean_of(CLIENTS, {u.client: product(base + u.delta) for u in updates}) / S
    weights = list(CLIENTS.values())
    up, down = (
        base[name].double().numpy()
        + np.average([u.delta[name].double().numpy() for u in updates], axis=0, weights=weights)
        for name in ("q.lora_B", "q.lora_A")
    )
    errors = []
    for ridge in (1e-6, 1e3):
        state = base + merged(base, plan, updates, ridge=ridge).delta
        # the stationary point of ‖B·A − W‖² + λ‖B − B̄‖² by a solver of least squares
        stacked = np.hstack([down, np.sqrt(ridge) * np.eye(2)])
        wanted = np.linalg.lstsq(stacked.T, np.hstack([ideal, np.sqrt(ridge) * up]).T, rcond=None)[0].T
        assert state["q.lora_A"].double().numpy() == pytest.approx(down, abs=1e-6)
        assert state["q.lora_B"].double().numpy() == pytest.approx(wanted, abs=1e-5)
        errors.append(np.linalg.norm(product(state) / S - ideal))
    assert errors[0] < np.linalg.norm(up @ down - ideal) * 0.99
    assert errors[1] == pytest.approx(np.linalg.norm(up @ down - ideal), rel=1e-2)


def test_a_change_that_would_not_fit_the_sums_is_refused_and_leaves_no_trace() -> None:
    spec = lora_spec(9, 7, 2, scaling=S)
    plan = MergePlan(spec, {"a": 1, "b": 1}, 64.0)
    base = AdapterState.zeros(spec)
    rule = ProductAggregator(base, key=KEY)
    acc = rule.add(rule.init(plan), update_of(spec, "a", np.full(spec.numel, 0.5)))
    before = acc.products["q.lora_B"].right.clone()
    with pytest.raises(UpdateRejected, match=r"client b, tensor q.lora_B: expected a change .* at most 1024"):
        rule.add(acc, update_of(spec, "b", np.full(spec.numel, 60.0)))
    assert acc.participants.clients == {"a"}
    assert torch.equal(acc.products["q.lora_B"].right, before)


def test_a_change_hidden_from_the_probes_makes_no_more_wrong_than_itself() -> None:
    spec = lora_spec(192, 160, 4, scaling=S)
    plan = MergePlan(spec, {f"c{i}": 1 for i in range(16)}, 128.0)
    base, updates = start(spec), cohort(spec, plan, size=0.05)
    left = ProductAggregator(base, key=KEY)._probes["q.lora_B"].left
    assert left is not None
    unseen = np.linalg.svd(left[0].numpy())[2][-1]  # no row of Ψ meets it
    hostile = updates[0].delta["q.lora_B"].clone()
    hostile[:, 0] += 150 * torch.from_numpy(unseen).float()
    sent = replace(updates[0], delta=AdapterState(spec, {**updates[0].delta, "q.lora_B": hostile}))
    ideal = np.mean([product(base + u.delta) for u in (sent, *updates[1:])], axis=0)
    hidden = np.linalg.norm(unseen @ ideal)
    assert hidden > 2 * np.linalg.norm(product(base))
    found = product(base + merged(base, plan, [sent, *updates[1:]]).delta)
    assert np.linalg.norm(found - ideal) < hidden


def test_who_did_not_answer_does_not_count() -> None:
    spec = lora_spec(9, 7, 2, scaling=S)
    base, plan = start(spec), MergePlan(spec, CLIENTS, 16.0)
    answered = cohort(spec, plan)[1:3]
    ideal = mean_of(CLIENTS, {u.client: product(base + u.delta) for u in answered})
    assert product(base + merged(base, plan, answered).delta) == pytest.approx(best(ideal, 2), abs=1e-6)
    # nobody who trains the second component: it stays
    ranks = replace(plan, ranks={"b": 1, "c": 1})
    state = base + merged(base, ranks, cohort(spec, ranks)[1:3]).delta
    first = mean_of(
        CLIENTS, {u.client: product(base + u.delta, part=slice(0, 1)) for u in cohort(spec, ranks)[1:3]}
    )
    ideal = first + product(base, part=slice(1, 2))
    assert product(state) == pytest.approx(best(ideal, 2), abs=1e-6)


def bounded(norm: float, spec: StateSpec, clients: Mapping[str, int] = CLIENTS) -> MergePlan:
    return MergePlan(spec, clients, 16.0, norm_bound=norm, ranks={"b": 1})


def cut(update: Update, norm: float) -> Update:
    """As the server cuts an update before it adds it, to exactly the bound."""
    delta = update.delta
    assert isinstance(delta, AdapterState)
    return replace(update, delta=delta.map(lambda value: value * (norm / delta.norm())))


@pytest.mark.parametrize("ridge", [None, 0.01])
@pytest.mark.parametrize("shape", [(9, 7, 2), (192, 160, 4)])
def test_projections_that_no_updates_within_the_norm_bound_have_are_refused(
    shape: tuple[int, int, int], ridge: float | None
) -> None:
    """An edge that sums for others cannot move the merge further than the norm bound lets its clients."""
    norm, spec = 0.5, lora_spec(*shape, scaling=S)
    base = start(spec)
    rule, plan = ProductAggregator(base, key=KEY, ridge=ridge), bounded(norm, spec)
    acc = rule.init(plan)
    for update in cohort(spec, plan):
        acc = rule.add(acc, cut(update, norm))
    sums = acc.products["q.lora_B"]
    kept = load(rule, plan, dump(rule, acc))
    assert torch.equal(kept.products["q.lora_B"].right, sums.right)
    assert (sums.left is None) == (shape[0] == 9)
    for part in (sums.right, sums.left):
        if part is None:
            continue
        honest = part.clone()
        for factor, fits in ((1.0, True), (-1.0, True), (20.0, False)):
            part.copy_((honest.double() * factor).round().long())
            if fits:
                load(rule, plan, dump(rule, acc))
            else:
                with pytest.raises(DecodeError, match="norm of projections of products"):
                    load(rule, plan, dump(rule, acc))
        part.copy_(honest)


def test_the_bound_of_projections_is_reached_by_an_update_that_is_made_to() -> None:
    """The largest change there is: along the first singular vectors of both factors, B and A at once."""
    norm, spec = 0.5, lora_spec(9, 7, 1, scaling=S)
    base = start(spec)
    up, down = (f[0].numpy() for f in factors(base, spec.by_name["q.lora_B"]))
    b, a = np.linalg.norm(up), np.linalg.norm(down)
    delta = {"q.lora_B": up / b * norm * a / np.hypot(a, b), "q.lora_A": down / a * norm * b / np.hypot(a, b)}
    values = {t.name: torch.zeros(t.shape) for t in spec}
    for name, value in delta.items():
        values[name] = torch.from_numpy(value).float().reshape(spec.by_name[name].shape)
    plan = MergePlan(spec, {"a": 1}, 16.0, norm_bound=norm)
    rule = ProductAggregator(base, key=KEY)
    acc = rule.add(rule.init(plan), Update("a", 1, AdapterState(spec, values), examples=1))
    load(rule, plan, dump(rule, acc))
    right = acc.products["q.lora_B"].right
    right.copy_((right.double() * 1.2).round().long())
    with pytest.raises(DecodeError, match="norm of projections"):
        load(rule, plan, dump(rule, acc))
