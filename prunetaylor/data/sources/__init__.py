"""One file a source, found by its name: ``read(argument, cfg, seed) -> RawSource``."""
