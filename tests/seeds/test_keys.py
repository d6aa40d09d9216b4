"""Keys: the same path gives the same stream everywhere; golden values pin the derivation."""

from hypothesis import given
from hypothesis import strategies as st

from headwater.seeds.keys import Key

PATH = st.lists(st.one_of(st.text(max_size=8), st.integers(-5, 5)), max_size=4)


def test_golden():
    key = Key.root(7).child("round", 3, "client", "edge-7")
    assert key.digest.hex() == "2c0ecad24489d0954a48dc7c1bcd13fd1a0405bd94b7e58a3168e44c623dd4c7"
    assert key.seed() == 1587348895892301898
    assert key.numpy().integers(0, 2**32, 3).tolist() == [3776310023, 1974206514, 2451303625]


@given(PATH, PATH)
def test_paths_compose_and_differ(left, right):
    root = Key.root(0)
    assert root.child(*left).child(*right) == root.child(*left, *right)
    if left != right or [type(x) for x in left] != [type(x) for x in right]:
        assert root.child(*left) != root.child(*right)


def test_types_of_parts_and_seeds_matter():
    assert Key.root(1).child(1) != Key.root(1).child("1")
    assert Key.root(1) != Key.root(-1)
    assert 0 <= Key.root(3).seed() < 2**63


def test_generators_start_afresh():
    key = Key.root(5)
    assert key.numpy().random() == key.numpy().random()
