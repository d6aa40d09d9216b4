"""What noise goes with: every line of the table is tripped, what holds by argument is allowed."""

from __future__ import annotations

import pytest

from headwater.config import load_federation
from headwater.config.private import REFUSED
from headwater.errors import ConfigError
from tests.support.runs import bare_federation

NOISE = {"clip_l2": 0.5, "noise_multiplier": 1.0, "delta": 1e-5}
COHORT = {"sampling": "poisson", "clients_per_round": 3, "population": 30}
FILE = {
    "privacy": NOISE,
    "cohort": COHORT,
    "strategy": {"kind": "mean", "weighting": "equal"},
    "codec": {"up": {"kind": "dense"}},
}
CORRELATED = {**NOISE, "mechanism": "blt", "min_separation": 3}
COMPEFT = {"up": {"kind": "compeft", "density": 0.2, "error_feedback": True}}
SHARES = {**NOISE, "masks": True, "noise_by": "clients"}
ALL = {"population": 30, "min_clients": 20}
LORA = ["model.kind=encoder", "model.path=x"]

# what is changed, and words of the line that refuses it
TRIPPED = [
    ({"strategy": {"kind": "median", "weighting": "equal"}}, "adds the updates up"),
    ({"strategy": {"kind": "ties", "weighting": "equal", "allow_factors": True}}, "adds the updates up"),
    ({"strategy": {"kind": "mean"}}, "weighting"),
    ({"strategy": {"kind": "mean", "weighting": "equal", "norm_bound": 1.0}}, "norm_bound"),
    ({"schedule": {"kind": "buffered", "buffer": 2}}, "synchronous"),
    ({"cohort": {**COHORT, "target_clients": 2}}, "target_clients"),
    ({"cohort": {"sampling": "poisson", "clients_per_round": 3}}, "population"),
    (
        {"codec": COMPEFT, "cohort": {"clients_per_round": 3, "population": 30, "min_clients": 30}},
        "error feedback",
    ),
    ({"privacy": CORRELATED}, "chance is not priced"),
    (
        {"privacy": {**CORRELATED, "adaptive": {}}, "cohort": {"clients_per_round": 3, "population": 30}},
        "one bound of an update",
    ),
    ({"privacy": SHARES, "cohort": {**COHORT, "min_clients": 3}}, "knows whom it asks"),
    ({"privacy": SHARES, "cohort": {**ALL, "clients_per_round": 20}}, "knows whom it asks"),
    ({"privacy": {**SHARES, "adaptive": {}}, "cohort": ALL}, "no device remembers"),
    ({"privacy": {**SHARES, "mechanism": "tree"}, "cohort": ALL}, "no device remembers"),
    (
        {
            "privacy": {"epsilon": 4.0, **{k: v for k, v in SHARES.items() if k[:7] != "noise_m"}},
            "cohort": ALL,
        },
        "each device draws",
    ),
    ({"privacy": {**NOISE, "masks": True}, "cohort": ALL}, "cannot shorten"),
]


def loaded(tmp_path, **tables):
    return load_federation(bare_federation(tmp_path, **{**FILE, **tables})).settings


@pytest.mark.parametrize(("tables", "words"), TRIPPED, ids=[words for _, words in TRIPPED])
def test_what_is_unsound_is_refused_with_its_reason(tmp_path, tables, words):
    with pytest.raises(ConfigError, match=r"noise in \[privacy\] needs") as error:
        loaded(tmp_path, **tables)
    assert words in str(error.value)


class Settings:
    """Settings that no file of a bare vector can have, for the lines that need a model."""

    def __init__(self, settings, **changes):
        self._settings, self._changes = settings, changes

    def __getattr__(self, name):
        return self._changes[name] if name in self._changes else getattr(self._settings, name)


@pytest.mark.parametrize(
    ("table", "changes", "words"),
    [
        ("strategy", {"merges_products": True}, "space"),
        ("strategy", {"keeps_own": True}, "space"),
        ("strategy", {"control_variates": True}, "SCAFFOLD"),
        ("training", {"splits_layers": True}, "layers"),
        ("training", {"sends": "coefficients"}, "coefficients"),
        ("codec", {"shifts": True}, "EF21"),
        ("evaluation", {"validation_fraction": 0.2, "clients": True}, "best round"),
        ("baselines", {"alone": True}, "baselines"),
        ("privacy", {"masks": True}, "privacy.masks"),
        ("strategy", {"screen": object()}, "screen"),
        ("federation", {"contribution": object()}, "contribution"),
        ("federation", {"adapter": Settings(None, head="own")}, "heads"),
        ("federation", {"methods": {"small": None}}, "methods are dealt"),
    ],
)
def test_the_lines_that_need_a_model(tmp_path, table, changes, words):
    settings = loaded(tmp_path)
    tables = {
        "strategy": Settings(settings.strategy, **changes),
        "trainings": {"": Settings(settings.training, **changes)}
        if table == "training"
        else settings.trainings,
        "codec": Settings(settings.codec, up=Settings(settings.codec.up, **changes)),
        "privacy": Settings(settings.privacy, **changes),
        "data": Settings(settings.data, **changes),
        "evaluation": Settings(settings.evaluation, **changes),
        "baselines": Settings(settings.baselines, **changes),
    }
    other = Settings(
        settings, **{name: value for name, value in tables.items() if table in (name, name[:-1])}
    )
    if table == "evaluation":
        other = Settings(settings, data=tables["data"], evaluation=tables["evaluation"])
    if table == "federation":
        other = Settings(settings, **changes)
    found = [f"{expected} {why}" for expected, unsound, why in REFUSED if unsound(other)]
    assert len(found) == 1
    assert words in found[0]


def test_every_line_is_tripped_by_one_of_these_tests():
    words = [words for _, words in TRIPPED] + [
        "space", "SCAFFOLD", "layers", "coefficients", "EF21", "best round", "baselines", "methods are dealt",
        "masks", "screen", "contribution", "heads",
    ]  # fmt: skip
    lines = [f"{expected} {why}" for expected, _, why in REFUSED]
    assert [line for line in lines if not any(word in line for word in words)] == []


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"codec": COMPEFT},  # what is held back, over Poisson cohorts
        {"codec": COMPEFT, "cohort": {"population": 30}},  # over all owners in every round
        {"codec": COMPEFT, "cohort": {"population": 30, "clients_per_round": 30}},
        {"cohort": {"clients_per_round": 3, "population": 30, "min_clients": 30}},
        {"privacy": CORRELATED, "cohort": {"clients_per_round": 3, "population": 9}, "codec": COMPEFT},
        {"privacy": {**NOISE, "mechanism": "tree"}, "cohort": {"population": 30}},  # all in every round
        {"privacy": {"clip_l2": 0.5, "epsilon": 4.0, "delta": 1e-5, "adaptive": {"quantile": 0.4}}},
        {"privacy": {**SHARES, "epsilon": 4.0}, "cohort": ALL, "codec": COMPEFT},
        {
            "strategy": {
                "kind": "mean",
                "weighting": "equal",
                "server_optimizer": "adam",
                "server_learning_rate": 0.01,
            }
        },
    ],
)
def test_what_holds_is_allowed(tmp_path, tables):
    assert loaded(tmp_path, **tables).privacy.noised


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"privacy": {}}, "goes with noise"),
        ({"cohort": {"sampling": "poisson", "population": 30}}, "clients_per_round"),
        ({"cohort": {**COHORT, "clients_per_round": 31}}, "above cohort.population"),
        ({"cohort": {"clients_per_round": 3, "population": 30}}, "min_clients = 30"),
        ({"privacy": {"noise_multiplier": 1.0, "delta": 1e-5}}, "clip_l2"),
        ({"privacy": {"clip_l2": 0.5, "epsilon": 1.0}}, "delta"),
        ({"privacy": {"clip_l2": 0.5, "noise": "reproducible"}}, "noise_multiplier"),
        ({"privacy": {**NOISE, "noise_by": "clients"}}, "does not hide its update"),
        ({"privacy": {"clip_l2": 0.5, "masks": True, "noise_by": "clients"}}, "does not hide its update"),
        ({"privacy": {"clip_l2": 0.5, "mechanism": "tree"}}, "mechanism goes with noise_multiplier"),
        ({"privacy": {**NOISE, "min_separation": 2}}, "set mechanism"),
        ({"privacy": {**NOISE, "max_participations": 2}}, "set mechanism"),
        (
            {"privacy": CORRELATED, "cohort": {"clients_per_round": 3, "population": 8}},
            "needs cohort.population 9",
        ),
        (
            {
                "privacy": CORRELATED,
                "cohort": {"clients_per_round": 3, "population": 9, "min_clients": 4},
            },
            "needs cohort.population 10",
        ),
        (
            {
                "privacy": {**NOISE, "mechanism": "tree", "max_participations": 1},
                "cohort": {"clients_per_round": 3, "population": 8},  # of three rounds
            },
            "need cohort.population 9",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, tables, words):
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, **tables)


def test_a_file_without_noise_is_named_as_before(tmp_path):
    settings = load_federation(bare_federation(tmp_path)).settings
    assert settings.privacy.model_dump() == {"clip_l2": None}
    assert not {"sampling", "population"} & settings.cohort.model_dump().keys()
