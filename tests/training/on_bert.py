"""The laws of trainers for backprop on a tiny BERT."""

from __future__ import annotations

import pytest

from headwater.config.training import BackpropTraining
from headwater.training.backprop import BackpropTrainer
from tests.laws.trainer_laws import TrainerLaws


class BackpropOnBert(TrainerLaws):
    """On the file's own fixture ``bert``, an adapted model; too large a step diverges."""

    @pytest.fixture(autouse=True)
    def _model(self, bert):
        self.model = bert

    def trainer(self):
        return BackpropTrainer(self.model, 0)

    def start(self):
        return self.model.initial_state()

    def diverging(self):
        return BackpropTraining(kind="backprop", learning_rate=1e38, epochs=4.0, batch_size=4)
