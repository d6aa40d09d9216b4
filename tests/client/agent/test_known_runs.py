"""What a server cannot make a device forget of a run: the noise of rows that it was joined with."""

from __future__ import annotations

import json

import pytest

from headwater.client.agent.known_runs import KnownRuns
from headwater.config import load_federation
from headwater.errors import DecodeError
from headwater.privacy.events import Everyone, StepsReleased
from headwater.privacy.ledger import Ledger
from headwater.protocol.failures import FailureCode, failure_of
from headwater.protocol.messages import ProfileRequest
from tests.support.runs import tiny_federation


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("fed"))


def asked(path, noise=2.0, *more, run="r1"):
    """A request of a server whose file has so much noise, or none."""
    given = [] if noise is None else [f"training.privacy={{noise_multiplier={noise}, delta=1e-3}}"]
    settings = load_federation(path, ["data.validation_fraction=0.0", *given, *more]).settings
    return ProfileRequest(run, settings.model_dump_json(), "00" * 32)


@pytest.mark.parametrize("noise", [None, 0.01])
def test_a_run_keeps_the_noise_that_it_was_joined_with(path, tmp_path, noise):
    runs = KnownRuns(tmp_path / "runs")
    runs.join(asked(path))
    runs.join(asked(path, 2.0, "federation.rounds=9"))  # what an organiser may set
    with pytest.raises(DecodeError, match=r"training\.privacy that it was joined with") as found:
        runs.join(asked(path, noise))
    assert failure_of(found.value).code is FailureCode.BAD_REQUEST
    assert runs.join(asked(path)).run == "r1"
    assert runs.join(asked(path, noise, run="r2")).run == "r2"  # of which the owner is told


def test_a_run_keeps_the_noise_in_shares_that_it_was_joined_with(path, tmp_path):
    def told(noise=1.0, least=20, **other):
        table = {"clip_l2": 0.5, "delta": 1e-3, "masks": True, "noise_by": "clients", **other}
        privacy = ", ".join(f"{k} = {json.dumps(v)}" for k, v in {**table, "noise_multiplier": noise}.items())
        cohort = f"population = 30, min_clients = {least}"
        more = ["strategy.weighting=equal", "evaluation.clients=false", 'codec.up={kind="dense"}']
        return asked(path, None, f"privacy={{{privacy}}}", f"cohort={{{cohort}}}", *more)

    runs = KnownRuns(tmp_path / "runs")
    runs.join(told())
    runs.join(told(least=22, epsilon=3.0))
    for weaker in (told(0.5, 22), told(least=21), told(least=22, mask_dropouts=0.0), asked(path, None)):
        with pytest.raises(DecodeError, match="noise in shares that it was joined with"):
            runs.join(weaker)


def test_its_ledger_says_so_when_the_run_is_forgotten(path, tmp_path):
    runs = KnownRuns(tmp_path / "runs")
    joined = runs.join(asked(path))
    joined.ledgers.mkdir(parents=True)
    Ledger(joined.ledgers / "ann.privacy.jsonl").append(StepsReleased(1, "a", 3, 1.0, 2.0, Everyone(), False))
    for other in ("x1", "x2", "x3"):
        runs.join(asked(path, run=other))
    assert runs.get("r1") is None
    with pytest.raises(DecodeError, match=r"training\.privacy"):
        runs.join(asked(path, None))
