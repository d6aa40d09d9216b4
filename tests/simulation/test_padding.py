"""privacy.padding: the same adapter, and bytes that are those of the padded messages."""

from __future__ import annotations

import json

from headwater.flower.padding import bucket
from tests.support.runs import bare_federation, run


def test_no_bit_of_the_adapter_changes_and_every_byte_is_counted(tmp_path):
    file = bare_federation(tmp_path)
    plain, _ = run(file, tmp_path / "plain")
    padded, _ = run(file, tmp_path / "padded", 'privacy.padding="padme"')
    assert padded["adapter_sha256"] == plain["adapter_sha256"]
    one, other = (
        [json.loads(line) for line in (tmp_path / name / "rounds.jsonl").read_text().splitlines()][1:]
        for name in ("plain", "padded")
    )
    for before, after in zip(one, other, strict=True):
        assert before["state_sha256"] == after["state_sha256"]
        for client, row in before["clients"].items():
            assert after["clients"][client]["bytes_up"] == bucket(row["bytes_up"], "padme")
            assert after["clients"][client]["bytes_down"] >= row["bytes_down"]
