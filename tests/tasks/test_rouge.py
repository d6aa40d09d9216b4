"""ROUGE against the package rouge-score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.tasks.rouge import rouge

NAMES = ("rouge1", "rouge2", "rougeL")


@pytest.mark.parametrize(
    ("truth", "said", "expected"),
    [  # as rouge-score 0.1.2 gives them
        ("the cat sat on the mat", "the cat is on the mat", (0.833333, 0.6, 0.833333)),
        ("The opposite, of course: COLD.", "cold", (0.333333, 0.0, 0.333333)),
        ("a b a b a", "b a b a b b", (0.727273, 0.888889, 0.727273)),
        ("", "words", (0.0, 0.0, 0.0)),
        ("words", "", (0.0, 0.0, 0.0)),
        ("naïve café 42%", "nave cafe 42 percent", (0.25, 0.0, 0.25)),
        ("猫", "猫", (0.0, 0.0, 0.0)),
        ("one two three four", "four three two one", (1.0, 0.0, 0.25)),
    ],
)
def test_golden(truth, said, expected):
    assert tuple(rouge(truth, said)) == NAMES
    assert tuple(rouge(truth, said).values()) == pytest.approx(expected, abs=1e-6)


TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from(["a", "B", "c1", "é", "K", "-"]), max_size=12).map(" ".join)
)


@given(TEXTS, TEXTS)
def test_it_is_what_rouge_score_gives(truth, said):
    scorer = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="rouge-score is the oracle, and no dependency"
    )
    expected = scorer.RougeScorer(list(NAMES)).score(truth, said)
    found = rouge(truth, said)
    assert found == pytest.approx({name: expected[name].fmeasure for name in NAMES}, abs=1e-12)


@given(TEXTS, TEXTS)
def test_laws(truth, said):
    found = rouge(truth, said)
    assert found == rouge(said, truth)
    assert 0 <= found["rougeL"] <= found["rouge1"] <= 1
    if found["rouge1"]:
        assert rouge(truth, truth)["rouge1"] == rouge(truth, truth)["rougeL"] == 1
