"""Recipes for adapters: the only home of torch's training, transformers and peft."""
