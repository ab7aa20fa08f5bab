"""Flags, tokenizer, logging and the DeepSpeed strategy."""
