"""A long run as few rows, read as it grows."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from headwater.server.monitoring.round_history import MOST_ROWS, TRAINING_LOSS, RoundRows


def line(number, value, **more):
    clients = {"ann": {"loss": 1.0, "bytes_up": 3}, "ben": {"failed": "late"}} if number else {}
    return json.dumps({
        "round": number, "clients": clients, "bytes": {"up": 3, "down": 9}, "seconds": 1.5,
        "test": {"accuracy": value, "examples": 7}, **more,
    }) + "\n"  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rounds.jsonl"


def test_rows_grow_with_the_file(file):
    rows = RoundRows(file)
    assert rows.rounds() == (1, [])
    file.write_text(line(0, 0.1) + line(1, 0.5)[:-9])
    assert [r["round"] for r in rows.rounds()[1]] == [0]  # a torn line is no row
    file.write_text(line(0, 0.1) + line(1, 0.5) + "not json\n" + line(2, None))
    every, found = rows.rounds()
    assert every == 1
    assert [r["round"] for r in found] == [0, 1, 2]
    assert found[1]["metrics"] == {"accuracy": 0.5, TRAINING_LOSS: 1.0}
    assert found[2]["metrics"] == {TRAINING_LOSS: 1.0}
    assert (found[1]["asked"], found[1]["accepted"]) == (2, 1)
    assert [r["round"] for r in rows.rounds(after=1)[1]] == [2]


def test_a_resumed_run_replaces_the_file(file):
    rows = RoundRows(file)
    file.write_text("".join(line(n, n / 10) for n in range(9)))
    assert len(rows.rounds()[1]) == 9
    for length in (4, 30):  # a shorter one, and one that has outgrown what was read
        other = file.with_name("new")
        other.write_text("".join(line(n, n / length) for n in range(length)))
        other.replace(file)
        found = rows.rounds()[1]
        assert [r["metrics"]["accuracy"] for r in found] == [n / length for n in range(length)]


@pytest.mark.parametrize("length", [MOST_ROWS - 20, MOST_ROWS, 5_000])
def test_a_long_run_keeps_the_last_and_the_best(file, length):
    best = length // 3 * 2 + 1
    with file.open("w") as out:
        for n in range(length):
            out.write(line(n, 0.99 if n == best else 0.5))
    every, found = RoundRows(file).rounds()
    numbers = [r["round"] for r in found]
    assert min(length, MOST_ROWS // 2 - 10) <= len(found) <= MOST_ROWS
    assert every == 1 or every * (MOST_ROWS // 2 - 10) <= length  # no coarser than it must be
    assert numbers[0] == 0
    assert numbers[-1] == length - 1
    assert best in numbers
    assert numbers == sorted(set(numbers))
    assert set(range(0, length, every)) <= set(numbers)
    assert (every == 1) == (length < MOST_ROWS - 10)


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.1), ("mse", 0.1), ("accuracy", 0.9), ("r2", 0.9)])
def test_the_best_of_an_error_is_the_smallest(file, metric, best):
    length, at = 4 * MOST_ROWS, 2 * MOST_ROWS + 1  # long enough that most rounds are left out
    other = 1.0 - best
    file.write_text(
        "".join(
            line(n, 0.5, test={metric: {at: best, at + 2: other}.get(n, 0.5), "examples": 7})
            for n in range(length)
        )
    )
    numbers = {row["round"] for row in RoundRows(file).rounds()[1]}
    assert at in numbers
    assert at + 2 not in numbers


def test_read_bit_by_bit_is_read_at_once(file):
    rows = RoundRows(file)
    with file.open("w") as out:
        for n in range(3_000):
            out.write(line(n, (n * 7919 % 1000) / 1000))
            if n % 97 == 0:
                out.flush()
                rows.rounds()
    assert rows.rounds() == RoundRows(file).rounds()


def test_memory_does_not_grow_with_rounds(file):
    rows = RoundRows(file)

    def add(first, last):
        with file.open("a") as out:
            out.writelines(line(n, 0.5) for n in range(first, last))
        rows.rounds()

    add(0, 2_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    add(2_000, 12_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 800_000
