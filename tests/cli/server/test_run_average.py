"""``headwater server adapters average``: which versions, with which weights, and the folder they make."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from headwater.cli.server.average import chosen
from headwater.errors import ConfigError
from headwater.merging.offline.decay import DECAYS, decay_weights
from tests.cli.server.folders import tar_of
from tests.merging.offline.small_adapters import WEIGHTS, adapter
from tests.support.command import headwater
from tests.support.control_port import FIRST, SECOND


def line(*parents):
    """Versions 1, 2, … of these parents, each with values of its own."""
    return [
        replace(FIRST if n == 1 else SECOND, version=n, parent=parent, round=n - 1, sha256=f"{n:064x}")
        for n, parent in enumerate(parents, 1)
    ]


@pytest.mark.parametrize("decay", DECAYS)
def test_an_average_is_training_with_that_fall_of_the_rate(decay):
    """θ_n and every step after it, step i of it as long as f(i/K): arXiv 2507.17634's equivalence."""
    thetas = np.cumsum(np.random.default_rng(0).normal(size=(7, 5)), axis=0)
    fall = {"linear": lambda x: 1 - x, "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2}
    rates = [(fall.get(decay) or (lambda x: 1 - math.sqrt(x)))(i / 7) for i in range(1, 7)]
    wanted = thetas[0] + sum(w * step for w, step in zip(rates, np.diff(thetas, axis=0), strict=True))
    weights = decay_weights(decay, 7)
    assert min(weights) > 0
    assert sum(weights) == pytest.approx(1.0)
    np.testing.assert_allclose(np.array(weights) @ thetas, wanted, rtol=1e-12)


def test_a_linear_fall_is_the_plain_mean_and_others_are_refused():
    assert decay_weights("linear", 4) == pytest.approx([0.25] * 4)
    with pytest.raises(ConfigError, match="1-sqrt"):
        decay_weights("step", 3)
    with pytest.raises(ConfigError, match="at least one"):
        decay_weights("cosine", 0)


def test_the_last_ones_are_those_on_the_line_to_the_newest():
    rows = line(0, 1, 2, 3, 2, 5)  # version 5 was made after a rollback to 2
    rows[4] = replace(rows[4], sha256=rows[1].sha256)  # and has its values
    assert [r.version for r in chosen(rows, 2, None)] == [5, 6]
    assert [r.version for r in chosen(rows, 9, None)] == [5, 6]  # version 1 is untrained
    assert [r.version for r in chosen(rows, None, [4, 2])] == [2, 4]


@pytest.mark.parametrize(
    ("last", "versions", "said"),
    [
        (1, None, "two or more"),
        (0, None, "two or more"),
        (-3, None, "two or more"),
        (None, [2], "two or more"),
        (None, [2, 9], "no version 9"),
        (None, None, "--last K"),
        (3, None, "version 2: expected one whose values are kept"),
    ],
)
def test_what_cannot_be_averaged_is_refused(last, versions, said):
    rows = line(0, 1, 2, 3)
    rows[1] = replace(rows[1], kept=False)
    with pytest.raises(ConfigError, match=said):
        chosen(rows, last, versions)


def test_an_average_of_the_run_is_that_of_headwater_merge(folder, organiser, tmp_path):
    made = {n: adapter(tmp_path / f"v{n}", n) for n in (2, 3, 4)}
    organiser.adapters = lambda run="": line(0, 1, 2, 3)
    organiser.export = lambda run="", version=0: iter(
        [tar_of(*((p.name, p.read_bytes()) for p in sorted(made[version].iterdir())))]
    )
    out = tmp_path / "new" / "average"
    done = headwater("server", "adapters", "average", folder, "--last", "3", "--decay", "cosine", "-o", out)
    assert done.code == 0, done.err
    assert "3 versions" in done.out
    assert f"{0.5 - math.cos(math.pi / 3) / 2:.4g}  version 2, after round 1" in done.out
    weights, tensors = decay_weights("cosine", 3), [load_file(made[n] / WEIGHTS) for n in (2, 3, 4)]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2  # the scale, 4 / 2, is in B now
    for name, value in load_file(out / WEIGHTS).items():
        scale = 2.0 if "lora_B" in name else 1.0
        wanted = sum(w * scale * t[name].astype(np.float64) for w, t in zip(weights, tensors, strict=True))
        np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-7)
    record = json.loads((out / "merge.json").read_text())
    assert [a["folder"] for a in record["adapters"]] == [f"run r1/version {n}" for n in (2, 3, 4)]
    assert record["decay"] == "cosine"
    assert [p.name for p in out.parent.iterdir()] == ["average"]
    merge = ("merge", *made.values(), "--decay", "cosine", "--space", "factors", "-o", tmp_path / "same")
    assert headwater(*merge).code == 0
    assert (tmp_path / "same" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    assert (
        "holds something"
        in headwater("server", "adapters", "average", folder, "--last", "3", "-o", out).error
    )
    assert "not allowed with" in headwater(*merge, "--weights", "1,1,1").err


def test_an_average_that_breaks_off_leaves_nothing(folder, organiser, tmp_path):
    organiser.adapters = lambda run="": line(0, 1, 2)
    organiser.archive = [tar_of(("adapter_config.json", b"{}"))]
    out = tmp_path / "new" / "average"
    done = headwater("server", "adapters", "average", folder, "--versions", "2,3", "-o", out)
    assert done.code
    assert list(out.parent.iterdir()) == []
    assert "--out FOLDER" in headwater("server", "adapters", "average", folder, "--last", "2").error
