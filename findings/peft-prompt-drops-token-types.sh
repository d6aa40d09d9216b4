#!/usr/bin/env bash
# PEFT 0.21.2: prompt tuning of a BERT for FEATURE_EXTRACTION gives the base no token_type_ids, for SEQ_CLS it
# does. With FEATURE_EXTRACTION the two texts of a pair look alike: other token types, the same output. Only a
# warning about ids that are "not supported" tells, and SEQ_CLS does support them.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" -W ignore - <<'PY'
import peft, torch, transformers
from peft import PromptTuningConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, BertModel

sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
             max_position_embeddings=64, initializer_range=0.5)
ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
types = torch.tensor([[0, 0, 0, 1, 1, 1]])


def change(base, task):
    """The largest change of the output when the second half gets another token type."""
    torch.manual_seed(0)
    model = get_peft_model(base.eval(), PromptTuningConfig(
        task_type=task, num_virtual_tokens=4, token_dim=32, num_layers=2, num_attention_heads=4)).eval()
    with torch.no_grad():
        one, other = (model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=t)[0]
                      for t in (types, torch.zeros_like(types)))
    return float((one - other).abs().max())


torch.manual_seed(0)
found = {"FEATURE_EXTRACTION": change(BertModel(BertConfig(**sizes)), "FEATURE_EXTRACTION"),
         "SEQ_CLS": change(BertForSequenceClassification(BertConfig(**sizes)), "SEQ_CLS")}
print("peft", peft.__version__, "transformers", transformers.__version__, found)
assert found["FEATURE_EXTRACTION"] == 0 and found["SEQ_CLS"] > 1e-3
PY
