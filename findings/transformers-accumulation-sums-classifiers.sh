#!/usr/bin/env bash
# transformers 5.23.0: with gradient_accumulation_steps = n the Trainer's step of a classifier or a masked model is n times as
# large as the step of one batch of the same rows, and so is the reported train_loss. The Trainer leaves the division to
# the model when its forward takes any keyword, as all do now; the loss of causal language models then divides by the
# number of targets of the whole step, while those of BERT, DistilBERT, RoBERTa and Llama with a head for sequences or tokens, and of
# BERT as a masked model, take the mean of each part. Adam hides it but for epsilon, weight decay and clipping; SGD does not. There
# is no warning. With accepts_loss_kwargs = False on the model the step is right; extractive QA is right as it is.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate numpy
cat > "$work/seen.py" <<'PY'
import tempfile

import torch
import transformers as t

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
BERT = t.BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = t.LlamaConfig(**SMALL, pad_token_id=0)
ROWS = [[(7 * row + place) % 60 + 3 for place in range(8)] for row in range(6)]


class InOrder(t.Trainer):
    def _get_train_sampler(self, *args, **more):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def step(kind, config, labels, parts, divided):
    torch.manual_seed(0)
    model = kind(config)
    if divided:
        model.accepts_loss_kwargs = False
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(ROWS, labels)]
    args = t.TrainingArguments(
        tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=6 // parts, gradient_accumulation_steps=parts,
        learning_rate=0.1, optim="sgd", max_grad_norm=0, lr_scheduler_type="constant", report_to="none",
        disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=True,
    )
    before = [p.detach().clone() for p in model.parameters()]
    InOrder(model, args, train_dataset=rows).train()
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before)]).norm()


BINARY, WORDS = [row % 2 for row in range(6)], [[place % 2 for place in range(8)]] * 6
for kind, config, labels in (
    (t.BertForSequenceClassification, BERT, BINARY), (t.LlamaForSequenceClassification, LLAMA, BINARY),
    (t.BertForTokenClassification, BERT, WORDS), (t.BertForMaskedLM, BERT, ROWS), (t.LlamaForCausalLM, LLAMA, ROWS),
):
    times = [round(float(step(kind, config, labels, 3, d) / step(kind, config, labels, 1, d)), 2) for d in (False, True)]
    print("SEEN", kind.__name__, *times)
PY
seen=$("$work/env/bin/python" "$work/seen.py" 2>/dev/null | sed -n 's/^SEEN //p')
echo "transformers 5.23.0: norm of a step of three parts, of that of one batch; with accepts_loss_kwargs = False"; echo "$seen"
[ "$seen" = "BertForSequenceClassification 3.0 1.0
LlamaForSequenceClassification 3.0 1.0
BertForTokenClassification 3.0 1.0
BertForMaskedLM 3.0 1.0
LlamaForCausalLM 1.0 1.0" ]
