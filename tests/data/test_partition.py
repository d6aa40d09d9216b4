import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.config.partitions import (
    ColumnPartition,
    DirichletPartition,
    FilesPartition,
    IidPartition,
    QuantityPartition,
)
from headwater.data.files.formats import read_rows
from headwater.data.partition import partition
from headwater.errors import DataError
from headwater.seeds.keys import Key
from tests.data.toys import table, write_jsonl

KEY = Key.root(7)
RULES = {
    "column": lambda clients, alpha: ColumnPartition(kind="column", column="owner"),
    "files": lambda clients, alpha: FilesPartition(kind="files"),
    "iid": lambda clients, alpha: IidPartition(kind="iid", clients=clients),
    "dirichlet": lambda clients, alpha: DirichletPartition(
        kind="dirichlet", clients=clients, alpha=alpha, min_examples=1
    ),
    "quantity": lambda clients, alpha: QuantityPartition(
        kind="quantity", clients=clients, alpha=alpha, min_examples=1
    ),
}


def rows(labels, owners=None):
    return table(
        [{"text": f"t{i}", "label": y, "owner": f"o{i % 3}"} for i, y in enumerate(labels)], "all.jsonl"
    )


@pytest.mark.parametrize("kind", RULES)
@settings(max_examples=40)
@given(
    labels=st.lists(st.sampled_from("abc"), min_size=12, max_size=120),
    clients=st.integers(1, 4),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 99),
)
def test_a_partition_is_a_partition_and_the_same_each_time(kind, labels, clients, alpha, seed):
    rule, data = RULES[kind](clients, alpha), rows(labels)
    parts = partition(data, rule, "label", Key.root(seed))
    assert sorted(row for part in parts.values() for row in part) == list(range(len(labels)))
    assert all(part == sorted(part) and part for part in parts.values())
    assert parts == partition(data, rule, "label", Key.root(seed))
    assert len(parts) == {"column": 3, "files": 1}.get(kind, clients)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity"])
def test_another_key_deals_otherwise(kind):
    data, rule = rows("ab" * 60), RULES[kind](4, 1.0)
    assert partition(data, rule, "label", KEY) != partition(data, rule, "label", Key.root(8))


def test_iid_is_even_and_shuffled():
    parts = partition(rows("a" * 50 + "b" * 53), IidPartition(kind="iid", clients=4), "label", KEY)
    assert list(parts) == ["client-000", "client-001", "client-002", "client-003"]
    assert sorted(map(len, parts.values())) == [25, 26, 26, 26]
    assert all({row < 50 for row in part} == {True, False} for part in parts.values())


def test_names_grow_with_the_number_of_clients():
    parts = partition(rows("a" * 1001), IidPartition(kind="iid", clients=1001), "label", KEY)
    assert min(parts) == "client-0000"
    assert max(parts) == "client-1000"


def test_small_alpha_separates_labels_and_large_alpha_mixes_them():
    labels = "a" * 200 + "b" * 200 + "c" * 200

    def purity(alpha):
        rule = DirichletPartition(kind="dirichlet", clients=3, alpha=alpha, min_examples=1)
        parts = partition(rows(labels), rule, "label", KEY)
        counts = [[sum(labels[i] == y for i in part) for y in "abc"] for part in parts.values()]
        return float(np.mean([max(c) / sum(c) for c in counts]))

    assert purity(1e4) < 0.37 < 0.6 < purity(0.1)


def test_the_order_of_the_file_does_not_decide_who_gets_which_rows_of_a_label():
    rule = DirichletPartition(kind="dirichlet", clients=2, alpha=1e4, min_examples=1)
    parts = partition(rows("a" * 100), rule, "label", KEY)
    assert all(any(row < 50 for row in part) and any(row >= 50 for row in part) for part in parts.values())


def test_large_alpha_in_quantity_is_even_and_small_is_not():
    def spread(alpha):
        rule = QuantityPartition(kind="quantity", clients=4, alpha=alpha, min_examples=1)
        sizes = [len(part) for part in partition(rows("ab" * 500), rule, None, KEY).values()]
        return max(sizes) / min(sizes)

    assert spread(1e6) < 1.1 < 2 < spread(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_dirichlet_cuts_as_flower_datasets_does(seed):
    """The same stream of shares must give the same counts of each label, retries included."""
    datasets = pytest.importorskip("datasets")
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    labels = ["abcd"[i % 4] for i in range(400)]
    theirs = partitioners.DirichletPartitioner(
        5, "label", alpha=0.4, min_partition_size=20, self_balancing=False, shuffle=False
    )
    theirs._rng = Key.root(seed).child("shares").numpy()
    theirs.dataset = datasets.Dataset.from_dict({"label": labels})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [[theirs.load_partition(i)["label"][:].count(y) for y in "abcd"] for i in range(5)]
    rule = DirichletPartition(kind="dirichlet", clients=5, alpha=0.4, min_examples=20)
    ours = partition(rows(labels), rule, "label", Key.root(seed))
    assert [[sum(labels[i] == y for i in part) for y in "abcd"] for part in ours.values()] == expected


def test_columns_name_the_clients_as_flower_datasets_does():
    datasets = pytest.importorskip("datasets")
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    owners = [f"o{i * i % 5}" for i in range(40)]
    theirs = partitioners.NaturalIdPartitioner("owner")
    theirs.dataset = datasets.Dataset.from_dict({"owner": owners, "row": list(range(40))})
    expected = {
        theirs.partition_id_to_natural_id[i]: list(theirs.load_partition(i)["row"])
        for i in range(theirs.num_partitions)
    }
    data = table([{"owner": owner} for owner in owners])
    assert partition(data, ColumnPartition(kind="column", column="owner"), None, KEY) == expected


def test_a_column_of_numbers_names_clients_too():
    data = table([{"owner": 1}, {"owner": "1"}, {"owner": 2}])
    assert partition(data, ColumnPartition(kind="column", column="owner"), None, KEY) == {
        "1": [0, 1],
        "2": [2],
    }


def test_files_name_the_clients(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "x"}, {"text": "y"}])
    (tmp_path / "a.csv").write_text("text\nz\n")
    data = read_rows(tmp_path)
    assert partition(data, FilesPartition(kind="files"), None, KEY) == {"a": [0], "b": [1, 2]}
    (tmp_path / "b.csv").write_text("text\nz\n")
    with pytest.raises(DataError, match=r"a second file for client 'b'"):
        partition(read_rows(tmp_path), FilesPartition(kind="files"), None, KEY)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (IidPartition(kind="iid", clients=13), "at least 13 rows.*got 12"),
        (QuantityPartition(kind="quantity", clients=2, alpha=1.0, min_examples=7), "at least 14 rows"),
        (
            DirichletPartition(kind="dirichlet", clients=4, alpha=0.01, min_examples=3),
            "'dirichlet': expected at least 3 examples for each of 4 clients in one of 100 draws",
        ),
        (ColumnPartition(kind="column", column="none"), "a column 'none', got the columns 'text', 'label'"),
        (ColumnPartition(kind="column", column="text"), "all.jsonl:1: column 'text': .*got 65 characters"),
    ],
)
def test_partitions_that_cannot_be_made(rule, message):
    data = table([{"text": "x" * 65, "label": "ab"[i % 2]} for i in range(12)], "all.jsonl")
    with pytest.raises(DataError, match=message):
        partition(data, rule, "label", KEY)


def test_dirichlet_without_labels_asks_for_a_column():
    rule = DirichletPartition(kind="dirichlet", clients=2, alpha=1.0, min_examples=1)
    with pytest.raises(DataError, match=r"data without labels"):
        partition(rows("ab"), rule, None, KEY)


@pytest.mark.parametrize("alpha", [5e-324, 1e-20, 1e300])
def test_extreme_alphas_stay_a_partition_or_are_refused(alpha):
    rule = DirichletPartition(kind="dirichlet", clients=2, alpha=alpha, min_examples=1)
    try:
        parts = partition(rows("abcdefgh" * 20), rule, "label", KEY)
    except DataError:
        return
    assert sorted(row for part in parts.values() for row in part) == list(range(160))
