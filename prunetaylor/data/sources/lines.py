"""lines:FILE: a sentence a line, without labels, tokenised by the tokenizer of the network's folder.

``data.tokenizer`` names another folder. Empty lines are skipped, and a sentence that is repeated counts once. A fifth
of the sentences, or the share ``data.validation``, are the test samples; the rest calibrate and train.
"""

from __future__ import annotations

from prunetaylor.core.config.schema import DataSection
from prunetaylor.data.conversion import as_split
from prunetaylor.data.samples import RawSource
from prunetaylor.data.sources._file import read_text, shared_out
from prunetaylor.data.text.tokenizer import load_tokenizer


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs are tokens with their mask, padded to the longest of a batch. DataError where the file cannot be read."""
    lines = map(str.strip, read_text(argument, "lines").split("\n"))
    sentences = list(dict.fromkeys(filter(None, lines)))
    train, test = shared_out(len(sentences), cfg, f"lines:{argument}")
    tokenizer = load_tokenizer(cfg.tokenizer, cfg.max_length, f"lines:{argument}")
    samples = as_split(tokenizer.encode(sentences), f"lines:{argument}", collate=tokenizer.padding)
    return RawSource(samples.subset(train), samples.subset(test), None, None, augment="none")
