"""A hook of mkdocs: pages may link to files of the repository that lie outside docs/, and some of these are pages too.

On GitHub such a link is relative to the file, ``../../benchmarks/README.md``. In the site docs/ is the root, and the
files in ``OUTSIDE`` lie in it under their own paths, so that the link becomes ``../benchmarks/README.md``.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("action.yml", "CHANGELOG.md", "LICENSE", "benchmarks/*.*", "configs/*.*")
LINK = re.compile(r"(\]\()([^)#\s:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are relative to a file of the repository into links that are relative to the site's file."""
    here = Path(page.file.abs_src_path or "").parent
    docs = Path(config.docs_dir)

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(here / link[2]))
        inside = target.relative_to(docs if target.is_relative_to(docs) else ROOT).as_posix()
        file = files.get_file_from_path(inside)
        if file is None or file.abs_src_path != str(target):
            return link[0]  # mkdocs warns, which is an error in a strict build
        return link[1] + posixpath.relpath(inside, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
