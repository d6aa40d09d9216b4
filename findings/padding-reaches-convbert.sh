#!/usr/bin/env bash
# ConvBERT, transformers 5.23.0: a row's hidden states change with the amount of padding behind it, although
# attention_mask marks the padding: its span convolution reads the values at padded positions. BERT's do not
# change (rounding). Nothing warns. A text's neighbours in a batch so change what a model says of it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0
"$work/env/bin/python" - <<'PY'
import torch, transformers
from transformers import BertConfig, BertModel, ConvBertConfig, ConvBertModel

sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
             max_position_embeddings=64, pad_token_id=0, initializer_range=0.1)
row = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


def change(model):
    """The largest change of the row's states when eight padded positions follow, as a share of the largest."""
    model.eval()
    mask = torch.ones_like(row)
    with torch.no_grad():
        alone = model(input_ids=row, attention_mask=mask).last_hidden_state
        padded = model(input_ids=torch.cat([row, torch.zeros_like(row)], 1),
                       attention_mask=torch.cat([mask, torch.zeros_like(mask)], 1)).last_hidden_state[:, :8]
    return float((alone - padded).abs().max() / alone.abs().max())


torch.manual_seed(0)
found = {
    "BERT": change(BertModel(BertConfig(**sizes))),
    "ConvBERT": change(ConvBertModel(ConvBertConfig(**sizes, embedding_size=32, head_ratio=2))),
}
print("transformers", transformers.__version__, {name: f"{value:.1e}" for name, value in found.items()})
assert found["BERT"] < 1e-5 and found["ConvBERT"] > 1e-2
PY
