#!/usr/bin/env bash
# PEFT 0.21.2 on FNet (transformers 5.23.0): prefix tuning for FEATURE_EXTRACTION attaches, runs and saves, and
# changes nothing: the model passes past_key_values by, and the prefix gets no gradient. On ALBERT or MPNet the
# same configuration raises at the first forward pass. Nothing warns.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" - <<'PY'
import peft, torch, transformers
from peft import PrefixTuningConfig, get_peft_model
from transformers import FNetConfig, FNetModel

torch.manual_seed(0)
base = FNetModel(FNetConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=64,
                            max_position_embeddings=64)).eval()
ids = torch.tensor([[5, 6, 7, 8]])
before = base(input_ids=ids).last_hidden_state
model = get_peft_model(base, PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4,
                                                token_dim=32, num_layers=2, num_attention_heads=4)).eval()
after = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
try:
    after.sum().backward()
    outcome = "backward ran"
except RuntimeError as error:
    outcome = str(error).split(" and does not")[0]
(prefix,) = [p for n, p in model.named_parameters() if n.startswith("prompt_encoder")]
print("peft", peft.__version__, "transformers", transformers.__version__, "same output:",
      bool(torch.equal(before, after)), "gradient:", prefix.grad, "|", outcome)
assert torch.equal(before, after) and prefix.grad is None
PY
