"""mlx-lm says what PEFT says: slow, if it is there (``pip install mlx-lm mlx-cpu`` on Linux)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel

from tests.support.command import headwater

from . import trained

pytestmark = pytest.mark.slow
mx = pytest.importorskip("mlx.core")
mlx_utils = pytest.importorskip("mlx_lm.utils")
tuner = pytest.importorskip("mlx_lm.tuner.utils")


@pytest.mark.parametrize("kind", ["rslora", "patterns", "dora"])
def test_an_adapter(tmp_path, kind):
    base = trained.base(tmp_path / "base")
    adapter = trained.lora(tmp_path / "a", base, **trained.KINDS[kind])
    done = headwater("export", adapter, "--for", "mlx", "--base", base, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    tokens = torch.randint(5, 200, (1, 12), generator=torch.Generator().manual_seed(3))
    model, _ = mlx_utils.load_model(base)
    bare = of_mlx(model, tokens)
    model = tuner.load_adapters(model, str(tmp_path / "out"))
    whole = PeftModel.from_pretrained(trained.load(base), adapter)
    with torch.no_grad():
        want = whole(input_ids=tokens).logits.numpy()
    assert np.abs(want - bare).max() > 0.1
    np.testing.assert_allclose(of_mlx(model, tokens), want, atol=2e-5)


def of_mlx(model, tokens):
    model.eval()
    return np.array(model(mx.array(tokens.numpy())).astype(mx.float32))
