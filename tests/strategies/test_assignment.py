"""Who trains how, by shares, by name and by device."""

from __future__ import annotations

from collections import Counter

import pytest

from headwater.config.federation import Federation
from headwater.protocol.messages import ClientProfile, DeviceProfile
from headwater.strategies import assignment
from headwater.strategies.assignment import assign, names_of
from headwater.strategies.planner import Choice
from tests.strategies.test_federated import SPEC, federation

METHODS = {
    "jvp": {"training": {"kind": "forward_gradient"}, "rank": 4},
    "seeds": {"training": {"kind": "kseed", "max_steps": 40}},
}


def mixed(**table: object) -> Federation:
    return federation(methods=METHODS, assignment=table)


def profiles(*names: str, device: DeviceProfile | None = None) -> dict[str, ClientProfile]:
    return {n: ClientProfile(n, 10, 2, "0" * 64, SPEC.fingerprint(), device=device) for n in names}


def test_without_assignment_everybody_uses_default() -> None:
    found = assign(federation(), profiles("a", "b"))
    assert {n: a.name for n, a in found.items()} == {"a": "default", "b": "default"}
    assert found["a"].method.training == federation().training


def test_only_stars_and_question_marks_mean_more_than_themselves() -> None:
    file = mixed(kind="clients", clients={"lab [3]": "jvp", "lab [?]": "seeds"})
    found = names_of(file, ["lab [3]", "lab [4]", "lab 3", "lab ["])
    assert found == {"lab [3]": "jvp", "lab [4]": "seeds", "lab 3": "default", "lab [": "default"}


def test_shares_are_quotas_of_all_clients_and_a_function_of_their_names() -> None:
    file = mixed(kind="shares", shares={"default": 0.5, "jvp": 0.25, "seeds": 0.25})
    names = [f"client-{i}" for i in range(10)]
    method_names = names_of(file, names)
    assert Counter(method_names.values()) == {
        "default": 5,
        "jvp": 3,
        "seeds": 2,
    }  # largest remainder, first first
    assert names_of(file, reversed(names)) == method_names
    other = file.model_copy(update={"federation": file.federation.model_copy(update={"seed": 9})})
    assert names_of(other, names) != method_names
    few = assign(file, profiles(*names[:3]), method_names)
    assert {n: a.name for n, a in few.items()} == {n: method_names[n] for n in names[:3]}
    assert few[names[0]].method == assignment.method_of(file, method_names[names[0]])


def test_a_client_that_nobody_dealt_to_gets_a_method_too() -> None:
    file = mixed(kind="shares", shares={"jvp": 1.0})
    assert assign(file, profiles("a", "late"), {"a": "seeds"})["late"].name == "jvp"


def test_patterns_are_looked_at_in_order_and_know_upper_case() -> None:
    file = mixed(kind="clients", clients={"edge-1": "seeds", "edge-?": "jvp", "*x": "seeds"})
    names = ["edge-1", "edge-2", "edge-22", "Edge-2", "box"]
    assert names_of(file, names) == {
        "edge-1": "seeds",
        "edge-2": "jvp",
        "edge-22": "default",
        "Edge-2": "default",
        "box": "seeds",
    }


@pytest.mark.parametrize(
    ("method", "batch", "steps", "expected"),
    [
        ("default", 4, 3, (4, 3)),
        ("default", 999, None, (16, None)),
        ("seeds", 4, 7, (4, 7)),
        ("seeds", 4, 700, (4, 40)),
    ],
)
def test_the_planner_lowers_batch_and_steps_and_never_raises_them(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    batch: int,
    steps: int | None,
    expected: tuple[int, int | None],
) -> None:
    device = DeviceProfile(2**30, 1, {})
    asked = []

    def pick(file: Federation, device: DeviceProfile, *, examples: int) -> Choice:
        asked.append((device, examples))
        return Choice(method, batch, steps, "it fits")

    monkeypatch.setattr("headwater.strategies.assignment.pick", pick)
    found = assign(mixed(kind="planner"), profiles("a", device=device) | profiles("plain"))
    training = found["a"].method.training
    assert (found["a"].name, found["a"].reason) == (method, "it fits")
    assert (training.batch_size, training.max_steps) == expected  # type: ignore[union-attr]  # no noop here
    assert asked == [(device, 10)]
    assert found["plain"].name == "default"
    assert found["plain"].method.training == federation().training


def test_decomfl_keeps_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    file = federation(training={"kind": "decomfl", "max_steps": 20}, assignment={"kind": "planner"})
    monkeypatch.setattr("headwater.strategies.assignment.pick", lambda *a, **k: Choice("default", 2, 5, ""))
    training = assign(file, profiles("a", device=DeviceProfile(1, 1, {})))["a"].method.training
    assert (training.batch_size, training.max_steps) == (2, 20)  # type: ignore[union-attr]  # no noop here
