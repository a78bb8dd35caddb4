"""Text becomes samples: the tokenizer of a model's folder, and batches of sequences of different lengths."""
