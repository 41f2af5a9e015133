"""Text and tokens: tokenizer, detokenizer, stops, the model's chat template. The only door of `tokenizers` and `jinja2`."""
