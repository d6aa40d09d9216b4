"""Base models, PEFT adapters and tokenizers: the only home of peft and transformers."""
