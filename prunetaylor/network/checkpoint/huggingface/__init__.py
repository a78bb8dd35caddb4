"""Folders as Hugging Face's libraries write them: config.json, weights, and the modules of sentence-transformers."""
