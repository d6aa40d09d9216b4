from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.data.split import sample, sample_examples, split
from headwater.seeds.keys import Key
from headwater.tasks.batches import Example

KEY = Key.root(1).child("split", "clinic")
LABELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=60)


@given(labels=LABELS, fraction=st.floats(0, 0.99), seed=st.integers(0, 50))
def test_a_split_is_a_partition_of_the_right_size(labels, fraction, seed):
    rows = [10 * i for i in range(len(labels))]
    train, validation = split(rows, fraction, Key.root(seed), labels)
    assert sorted(train + validation) == rows
    assert train == sorted(train)
    assert train
    assert len(validation) == min(len(rows) - 1, int(fraction * len(rows) + 0.5))
    assert (train, validation) == split(rows, fraction, Key.root(seed), labels)


@given(labels=LABELS, fraction=st.floats(0.05, 0.95))
@example(
    labels=list("aabcccccc"), fraction=0.625
)  # c has its share exactly, a and b would lose their last row
def test_each_label_has_its_share_to_within_a_row(labels, fraction):
    _, validation = split(range(len(labels)), fraction, KEY, labels)
    taken = Counter(labels[i] for i in validation)
    for label, count in Counter(labels).items():
        assert abs(taken[label] - count * len(validation) / len(labels)) < 1


@given(
    positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True),
    shift=st.integers(0, 1000),
)
def test_where_the_rows_stand_in_the_whole_table_does_not_matter(positions, shift):
    """A device that has only its own file splits as the simulation does."""
    own = split(range(len(positions)), 0.3, KEY)
    there = split([p + shift for p in positions], 0.3, KEY)
    assert there == tuple([positions[i] + shift for i in part] for part in own)


def test_labels_with_one_row_stay_in_train_while_they_can():
    labels = ["common"] * 4 + ["rare"]  # of three validation rows, shares of 2.4 and 0.6
    for seed in range(20):
        train, _ = split(range(5), 0.6, Key.root(seed), labels)
        assert 4 in train


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(0, 0.5, 0), (1, 0.9, 0), (2, 0.99, 1), (10, 0.0, 0), (10, 0.25, 3)]
)
def test_sizes_of_small_clients(count, fraction, expected):
    train, validation = split(range(count), fraction, KEY)
    assert (len(train), len(validation)) == (count - expected, expected)


def test_the_key_decides():
    assert split(range(50), 0.5, KEY) != split(range(50), 0.5, Key.root(2))


def test_a_sample_is_some_of_the_rows_in_their_order():
    rows = list(range(100, 160))
    found = sample(rows, 20, KEY)
    assert len(found) == 20
    assert found == sorted(set(found) & set(rows))
    assert found != rows[:20]
    assert sample(rows, None, KEY) == sample(rows, 60, KEY) == rows


def test_parts_of_one_example_are_drawn_together():
    """Half the windows of a question had half a chance of its answer: max_test_examples counted windows."""
    questions = [object() for _ in range(20)]
    owners = [q for n, q in enumerate(questions) for _ in range(1 + n % 3)]
    nothing = np.zeros(1, np.int32)
    windows = [Example(nothing, nothing, whole=q) for q in owners]
    chosen = sample_examples(windows, 7, KEY)
    drawn = {id(owners[i]) for i in chosen}
    assert len(drawn) == 7
    assert chosen == [i for i, owner in enumerate(owners) if id(owner) in drawn]
    assert (
        sample_examples(windows, 20, KEY) == sample_examples(windows, None, KEY) == list(range(len(owners)))
    )
    plain = [Example(nothing, nothing) for _ in range(30)]
    assert sample_examples(plain, 7, KEY) == sample(range(30), 7, KEY)
