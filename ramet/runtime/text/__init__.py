"""Text and tokens: tokenizer, detokenizer, stop strings and regexes, the model's chat template. The only door of `tokenizers` and `jinja2`."""
