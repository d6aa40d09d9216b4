"""The laws of trainers on a quadratic."""

from __future__ import annotations

import pytest

from headwater.state import AdapterState
from tests.laws.trainer_laws import TrainerLaws
from tests.support.quadratic import PAIR, Quadratic, examples


class OnQuadratic(TrainerLaws):
    """Five examples of a badly conditioned quadratic, from zero; too long a probe diverges."""

    @pytest.fixture(autouse=True)
    def _model(self):
        self.model = Quadratic.random(PAIR, examples=5, condition=4.0)

    def start(self):
        return AdapterState.zeros(PAIR)

    def examples(self):
        return examples(5)

    def diverging(self):
        return self.training(epsilon=1e39)
