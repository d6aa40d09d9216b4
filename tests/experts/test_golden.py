"""The format's golden vector: these bytes are version 1, on every machine (``docs/reference/experts.md``)."""

from __future__ import annotations

import numpy as np

from headwater.experts.compress import Compeft, compress
from headwater.experts.expert_file import open_adapter
from headwater.merging.offline.peft_folder import PeftFolder

from . import small

GOLDEN = bytes.fromhex(
    "894857580d0a1a0a017e4c7b22626173655f6d6f64656c5f6e616d655f6f725f70617468223a2262617365222c227065"
    "66745f74797065223a224c4f5241222c227461726765745f6d6f64756c6573223a5b2271225d7d000000020012626173"
    "655f6d6f64656c2e6d6f64656c2e7100030203040e110c73636f72652e7765696768742102010206803f003f01020301"
    "d220aad4b701007f800000c16839276f3ab99b51d0faa5c4f9980e10dfaad42dfc9188d3b3d7c2a4d35b232b"
)
A = np.array([[0.5, 0.0, -0.5, 0.0], [0.0, 2.0, 2.0, 0.0]], np.float32)
B = np.array([[1.0, 0.0], [0.0, -0.0625], [-1.0, 0.0]], np.float32)


def test_a_fixed_adapter_has_these_bytes(tmp_path):
    names = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")
    values = dict(zip(names, (A, B), strict=True)) | {
        "base_model.model.score.weight": np.float32([[1, -3.5]])
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    data = compress(PeftFolder.open(small.save(tmp_path / "a", config, values)), Compeft())
    assert data.hex() == GOLDEN.hex()


def test_these_bytes_are_that_adapter(tmp_path):
    (tmp_path / "a.hw").write_bytes(GOLDEN)
    adapter = open_adapter(tmp_path / "a.hw")
    b, a = adapter.factors("base_model.model.q")
    np.testing.assert_array_equal(b @ a, 2 * B @ A)  # LoRA's s is 4/2
    np.testing.assert_array_equal(adapter.read("base_model.model.score.weight"), [[1, -3.5]])
    assert adapter.config["target_modules"] == ["q"]
    assert adapter.config["r"] == adapter.config["lora_alpha"] == 2
