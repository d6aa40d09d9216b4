"""How rows become tokens: chat templates, plain text, the tokenizer, and settings that travel along."""
