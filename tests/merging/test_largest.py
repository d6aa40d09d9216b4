import numpy as np
import pytest

from headwater.merging import largest
from headwater.merging.largest import Cut

LONG = 4 * 2**14 + 3  # from here on a sample says where to look


def in_order(values: np.ndarray, count: int) -> np.ndarray:
    kept = np.zeros_like(values)
    best = np.lexsort((np.arange(values.size), -np.abs(values)))[:count]
    kept[best] = values[best]
    return kept


def shapes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=LONG)
    sparse = np.where(rng.random(LONG) < 0.05, normal, 0.0)
    return {
        "normal": normal,
        "two scales": np.concatenate([normal[: LONG // 2] * 1e-6, normal[LONG // 2 :]]),
        "equal ones": np.round(normal, 1),
        "signs": np.sign(normal),
        "mostly zero": sparse,
        "sorted": np.sort(normal),
    }


@pytest.mark.parametrize("kind", shapes())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [1e-4, 0.05, 0.2, 0.9])
def test_the_largest_stay(kind: str, dtype: type, density: float) -> None:
    values = shapes()[kind].astype(dtype)
    count = int(density * LONG)
    np.testing.assert_array_equal(Cut.largest(values, count).apply(values.copy()), in_order(values, count))


def test_a_sample_that_is_unlike_the_rest_costs_time_and_nothing_else() -> None:
    values = np.random.default_rng(1).normal(size=LONG)
    values[:: LONG // largest._SAMPLE | 1] *= 1e-9  # what is looked at is small, all else is not
    found = largest._around(values, LONG // 2)
    assert not 0 < LONG // 2 - found[0] <= found[1].size, "the case is none"
    got = Cut.largest(values, LONG // 2).apply(values.copy())
    np.testing.assert_array_equal(got, in_order(values, LONG // 2))


def test_a_stretch_of_a_vector_knows_where_it_lies() -> None:
    values = np.ones(10)
    cut = Cut.largest(values, 6)
    assert cut.apply(values[4:].copy(), at=4).tolist() == [1, 1, 0, 0, 0, 0]
