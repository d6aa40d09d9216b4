"""llama.cpp says what PEFT says, of a tiny Llama and SmolLM2, unmerged and merged: slow, if it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from tests.support.command import headwater

from . import llama_gguf, trained

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp")
SMOLLM2 = Path(__file__).parents[3] / ".cache/headwater/smollm2"
TOKENS = torch.randint(5, 200, (24,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        return trained.base(folder / "base")
    if not SMOLLM2.is_dir():
        pytest.skip("SmolLM2 is not there: headwater fetch smollm2")
    return SMOLLM2


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return llama_gguf.write(base, tmp_path_factory.mktemp("gguf") / "base.gguf")


def of_llama_cpp(base, adapter=None):
    """Log-probabilities [t, vocabulary] of every next token."""
    more = {} if adapter is None else {"lora_path": str(adapter)}
    model = llama_cpp.Llama(str(base), n_ctx=64, logits_all=True, verbose=False, n_threads=1, **more)
    model.eval(TOKENS)
    scores = torch.from_numpy(np.array(model.scores[: len(TOKENS)])).double()
    model.close()
    return scores.log_softmax(-1)


def of_peft(base, adapter):
    """The same, and without the adapter."""
    model = PeftModel.from_pretrained(trained.load(base), adapter)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        with model.disable_adapter():
            bare = model(input_ids=tokens).logits[0].double()
        adapted = model(input_ids=tokens).logits[0].double()
    return adapted.log_softmax(-1), bare.log_softmax(-1)


def distance(p, q):
    """The largest total variation of two next-token distributions."""
    return float((p.exp() - q.exp()).abs().sum(-1).max() / 2)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_an_adapter(base, whole, tmp_path, kind):
    adapter = trained.lora(tmp_path / "a", base, **trained.KINDS[kind])
    done = headwater("export", adapter, "--for", "llama.cpp", "--base", base, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    want, bare = of_peft(base, adapter)
    got = of_llama_cpp(whole, tmp_path / "out/lora.gguf")
    effect, error = distance(want, bare), distance(got, want)
    print(f"{base.name} {kind}: the adapter moves {effect:.4f}, llama.cpp is {error:.2e} from PEFT")
    assert effect > 1e-3
    assert error < 0.01 * effect
    assert distance(of_llama_cpp(whole), bare) < 0.01 * effect


@pytest.mark.parametrize(
    ("kind", "dtype"), [("patterns", "float32"), ("dora", "float32"), ("dora", "float16")]
)
def test_a_merged_gguf(base, whole, tmp_path, kind, dtype):
    adapter = trained.lora(tmp_path / "a", base, **trained.KINDS[kind])
    done = headwater(
        "export", adapter, "--for", "merged", "--base", base, "-o", tmp_path / "out",
        "--gguf", whole, "--dtype", dtype,
    )  # fmt: skip
    assert done.code == 0, done.err
    want, bare = of_peft(base, adapter)
    error = distance(of_llama_cpp(tmp_path / "out/merged.gguf"), want)
    print(f"{base.name} {kind} merged as {dtype}: {error:.2e} from PEFT, of {distance(want, bare):.4f}")
    assert error < 0.02 * distance(want, bare)
