#!/usr/bin/env bash
# transformers 5.23.0: PreTrainedTokenizerFast leaves out the token types that its own post-processor makes,
# unless model_input_names names them. A BERT saved with such a tokenizer reads both texts of a pair as type 0.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check transformers==5.23.0
"$work/env/bin/python" - <<'PY'
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

fast = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
fast.pre_tokenizer = pre_tokenizers.Whitespace()
fast.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
types = fast.encode("a", "b").type_ids
plain = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]")("a", "b")
named = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]",
                                model_input_names=["input_ids", "token_type_ids", "attention_mask"])("a", "b")
print("transformers", transformers.__version__, "tokenizer:", types, "| without names:", sorted(plain),
      "| with names:", named["token_type_ids"])
assert types == [0, 0, 0, 1, 1] == named["token_type_ids"] and "token_type_ids" not in plain
PY
