#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.23.0: target_modules="all-linear" on a mixture of experts means something
# else for each family. Mixtral: attention, router and fused experts. Qwen2-MoE: attention and the shared
# expert, no routed expert. GPT-OSS: attention alone. DeepSeek-V3: the experts, but not the feed-forward layers of its leading dense layers. Nothing warns.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$work/env/bin/python" -W ignore - <<'PY'
import peft, transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=64, max_position_embeddings=64)
deepseek = dict(moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
                first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
                v_head_dim=8, n_shared_experts=1)
families = {
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                      shared_expert_intermediate_size=32),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, head_dim=8),
    "deepseek_v3": {**deepseek, "num_key_value_heads": 4},
}


def parts(name, special):
    """Which parts of each layer have an adapter."""
    config = AutoConfig.for_model(name, **{**sizes, **special})
    model = get_peft_model(AutoModelForCausalLM.from_config(config),
                           LoraConfig(target_modules="all-linear", r=2))
    found = set()
    for key, _ in model.named_parameters():
        if "lora_A" in key:
            layer = key.split("layers.")[1].split(".")[0]
            part = ("experts" if ".experts." in key else "shared" if "shared" in key else
                    "attention" if "attn" in key else "router" if ".gate." in key else "dense")
            found.add(f"{layer} {part}")
    return sorted(found)


found = {name: parts(name, special) for name, special in families.items()}
print("peft", peft.__version__, "transformers", transformers.__version__)
for name, what in found.items():
    print(f"{name}: {', '.join(what)}")
both = lambda *names: sorted(f"{layer} {name}" for layer in (0, 1) for name in names)
assert found["mixtral"] == both("attention", "experts", "router")
assert found["qwen2_moe"] == both("attention", "shared")
assert found["gpt_oss"] == both("attention")
assert "0 dense" not in found["deepseek_v3"] and "1 experts" in found["deepseek_v3"]
PY
