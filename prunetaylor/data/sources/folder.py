"""folder:DIR: images in train/ and val/ or test/, a folder a class.

With both val/ and test/, val/ is for choosing and test/ reports; with one of them, it reports. Classes are numbered in
the sorted order of their folders' names, as torchvision's ImageFolder does. Images in train/ itself, without class
folders, have no labels, which are not needed.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError
from prunetaylor.data.images import Images, image_splits
from prunetaylor.data.samples import RawSource, WithTargets

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_STRUCTURE = "use DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or test/, or both)"


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs uint8 (N, C, H, W), targets int64 (N,). DataError names the folder or file that is missing or broken."""
    if not argument:
        raise UsageError("the source folder needs a folder", "use folder:DIR")
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", _STRUCTURE)
    parts = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if "train" not in parts or len(parts) < 2:
        contents = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{root} has no train/ with a val/ or test/ beside it; it contains {contents}", _STRUCTURE)
    labelled = any(map(_is_class, parts["train"].iterdir())) or not _files(parts["train"])
    sorted_in = parts["train"] if labelled else next(part for name, part in parts.items() if name != "train")
    classes = _classes(sorted_in)
    images = {}
    for name, part in parts.items():
        if name == "train" and not labelled:
            images[name] = Images.of_files(files := _files(part), none := torch.zeros(len(files), dtype=torch.long))
            continue
        _check_classes(classes, _classes(part), str(sorted_in), str(part))
        images[name] = _images(part, classes, all_needed=name == "train")
    splits = dict(zip(parts, image_splits(list(images.values()), cfg.size), strict=True))
    if not labelled:
        splits["train"] = WithTargets(splits["train"], none, labelled=False)
    first = splits["train"].fetch([0])[0].tensor
    gray = first is not None and first.shape[1] == 1
    return RawSource(
        train=splits["train"],
        test=splits["test"] if "test" in splits else splits["val"],
        validation=splits["val"] if "test" in splits and "val" in splits else None,
        classes=len(classes),
        # The convention for folders of colour photographs; the run's account names it.
        normalize="none" if gray else "imagenet",
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _classes(part: Path) -> list[str]:
    names = sorted(p.name for p in part.iterdir() if _is_class(p))
    if not names:
        raise DataError(f"{part} contains no class folders", _STRUCTURE)
    return names


def _check_classes(expected: list[str], actual: list[str], reference: str, other: str) -> None:
    missing, extra = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    if missing or extra:
        only = [f"only {reference} has {', '.join(missing[:5])}"] if missing else []
        only += [f"only {other} has {', '.join(extra[:5])}"] if extra else []
        counts = f"{len(expected)} and {len(actual)} classes"
        cause = f"{reference} and {other} do not agree ({counts}): {'; '.join(only)}"
        raise DataError(cause, "give both the same folders; a class without images there is an empty folder")


def _images(part: Path, classes: list[str], *, all_needed: bool) -> Images:
    """Return the images of a split; a class may have none (an empty folder), except in the training set."""
    paths: list[str] = []
    targets: list[int] = []
    for number, name in enumerate(classes):
        files = _files(part / name)
        if not files and all_needed:
            raise DataError(f"{part / name} contains no images", f"images end in {', '.join(EXTENSIONS)}")
        paths += files
        targets += [number] * len(files)
    if not paths:
        raise DataError(f"{part} contains no images", f"images end in {', '.join(EXTENSIONS)}")
    return Images.of_files(paths, torch.tensor(targets, dtype=torch.long))


def _files(folder: Path) -> list[str]:
    """Return all images beneath the folder, in order."""
    return sorted(
        os.path.join(where, file)
        for where, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
    )
