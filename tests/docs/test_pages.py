"""The pages agree with the repository: links, extras, methods, and the pages that a script writes."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from support.networks import ConvNet
from support.pages import GENERATED, PAGES, ROOT, read
from support.runs import quick
from support.verdicts import SCHEMA


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """Every page of docs/reference/ that scripts/reference.py writes, as it should be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        from reference import pages

        return pages()


def test_the_reference_is_what_the_code_says(generated: dict[str, str]) -> None:
    stale = [name for name, text in generated.items() if read(f"docs/reference/{name}") != text]
    assert not stale, f"run: python scripts/reference.py ({', '.join(stale)} differ)"
    assert {f"docs/reference/{name}" for name in generated} > set(GENERATED)


def test_the_tables_are_what_the_rows_say() -> None:
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    pages = tables.pages()
    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run: python benchmarks/tables.py ({', '.join(stale)} differ)"
    assert max(len(text.splitlines()) for text in pages.values()) <= 150


def test_a_report_is_of_the_published_form(conv: ConvNet) -> None:
    """The other keys of a report are held against the schema by every command's test that reads one."""
    from prunetaylor.report.json_report import to_json

    schema = json.loads(read("docs/reference/report.schema.json"))
    Draft202012Validator.check_schema(schema)
    known = Registry().with_resource("verdict.schema.json", Resource.from_contents(SCHEMA))
    document = to_json(quick(conv, sparsity=0.5), {"folder": "here"}, {"seed": 0})
    Draft202012Validator(schema, registry=known).validate(json.loads(json.dumps(document)))


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        aim = path.parent / target if target else path
        assert aim.exists(), target
        if anchor:
            assert anchor in anchors(aim), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What GitHub and mkdocs call the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert not page.startswith("docs/") or f": {page.removeprefix('docs/')}\n" in menu, page


def test_extras_exist() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = set(setup["options.extras_require"])
    for page in PAGES:
        named = re.findall(r"(?:\.|prunetaylor)\[([\w,]+)\]", read(page))
        assert {extra for text in named for extra in text.split(",")} <= known, page
