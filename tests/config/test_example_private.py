"""What noise for each example goes with: every line of the table is tripped, what holds is allowed."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.config.example_private import REFUSED
from headwater.errors import ConfigError
from tests.support.runs import tiny_federation

PRIVATE = "training.privacy={noise_multiplier = 1.0, delta = 1e-4}"
TRIPPED = {
    "every method": [
        'methods.plain={training = {kind = "backprop"}}',
        'assignment={kind = "shares", shares = {plain = 1.0}}',
    ],
    "fisher": ['strategy.kind="fisher"', "strategy.allow_factors=true"],
    "evaluation": ["data.validation_fraction=0.2"],
    "baselines": ["baselines.alone=true", 'data.test="x.jsonl"'],
}


def loaded(tmp_path, *changes):
    given = ["data.validation_fraction=0.0", PRIVATE, *changes]
    return load_federation(tiny_federation(tmp_path), given).settings


@pytest.mark.parametrize("words", TRIPPED)
def test_what_is_unsound_is_refused_with_its_reason(tmp_path, words):
    with pytest.raises(ConfigError, match=r"\[training.privacy\] needs") as error:
        loaded(tmp_path, *TRIPPED[words])
    assert words in str(error.value)


def test_copies_of_a_text_are_refused(tmp_path):
    settings = loaded(tmp_path)

    class Other:
        copies = 2

    tripped = [line for line, unsound, _ in REFUSED if unsound(_with(settings, data=Other()))]
    assert tripped == ["data.copies = 1"]


def _with(settings, data):
    class Changed:
        def __getattr__(self, name):
            return data if name == "data" else getattr(settings, name)

    data.validation_fraction = 0.0
    return Changed()


@pytest.mark.parametrize(
    "changes",
    [
        ["training.proximal_mu=0.1"],
        ["strategy.control_variates=true", 'training.optimizer="sgd"', 'codec.up={kind = "dense"}'],
        ['schedule={kind = "buffered", buffer = 2}', "cohort.min_clients=1"],
        ["privacy.masks=true", 'codec.up={kind = "dense"}', "cohort.min_clients=3"],
    ],
    ids=["FedProx", "SCAFFOLD", "buffered", "masks"],
)
def test_what_is_computed_from_noised_gradients_is_allowed(tmp_path, changes):
    assert loaded(tmp_path, *changes).training.privacy is not None
