"""Labels as files and pandas write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config.load import load_data
from headwater.data.table_row import TableRow
from headwater.errors import ConfigError, DataError
from headwater.tasks.labels import label_of
from tests.data.toys import table


def settings(labels):
    return load_data(
        {"kind": "classification", "path": "x", "partition": {"kind": "files"}, "labels": labels}
    )


def index(value, labels):
    given = settings(labels)
    row = TableRow(table([{"text": "t", "label": value}]), 0, given)
    return label_of(row, given.label, given.labels)


@pytest.mark.parametrize(
    ("value", "labels", "expected"),
    [
        (1, ["0", "1"], 1), ("1", [0, 1], 1), (1.0, [0, 1], 1), ("1.0", [0, 1], 1), (True, [0, 1], 1),
        (False, ["0", "1"], 0), ("True", [0, 1], 1), (True, [False, True], 1), ("True", [False, True], 1),
        ("true", ["False", "True"], 1), (1, [False, True], 1), ("0", [True, False], 1),
        (0.0, [True, False], 1),
        (1.5, ["1", "1.5"], 1), (1, ["1.0", "1"], 1), (1.0, ["1.0", "1"], 0), ("1.00", ["1.0", "1"], None),
        (3, [1, 2, 3], 2), ("-1.0", [-1, 1], 0), ("1.5", ["1", "1.5"], 1), (1.5, ["1", "2"], None),
        (2, [False, True], None), ("01", [0, 1], None), ("1 ", [0, 1], None), ("yes", [False, True], None),
        (True, [1, 2], None), (True, ["a", "b"], None), ("1.0", ["1.0", "1"], 0),
        (float("inf"), [0, 1], None), (10**30, [0, 1], None),
    ],
)  # fmt: skip
def test_one_label_has_many_spellings(value, labels, expected):
    if expected is None:
        with pytest.raises(DataError, match=r"rows.jsonl:1: expected"):
            index(value, labels)
    else:
        assert index(value, labels) == expected


@pytest.mark.parametrize("value", [float("nan"), None])
def test_no_label_is_no_label(value):
    with pytest.raises(DataError, match=r"rows.jsonl:1: expected a value in column 'label'"):
        index(value, [0, 1])


@given(labels=st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True), data=st.data())
def test_a_label_as_the_file_names_it_is_always_that_label(labels, data):
    chosen = data.draw(st.sampled_from(labels))
    assert index(chosen, labels) == labels.index(chosen)


def test_numbers_and_truth_values_in_the_federation_file():
    assert settings([0, 1]).labels == ("0", "1")
    assert settings([False, True]).labels == ("false", "true")
    with pytest.raises(ConfigError, match=r"data\.labels"):
        settings([0.5, 1.5])


def test_a_thousand_labels_do_not_fill_a_screen():
    with pytest.raises(DataError) as caught:
        index("other", [f"label {i}" for i in range(1000)])
    assert "and 980 more" in str(caught.value)
    assert len(str(caught.value)) < 600
