"""Pages from templates: one self-contained file each, with everything that comes from data escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetaylor._version import __version__
from prunetaylor.core.config.keys import dotted
from prunetaylor.core.text import neutral_lines
from prunetaylor.report import formats

_LONGEST = 2000


def render(template: str, **values: Any) -> str:
    """Fill in a page of ``report/html/templates/``. Text and lists of text are escaped; figures are our own SVG."""
    # jinja2 costs a tenth of a second, which only who writes a page should pay
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prunetaylor", "report/html/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": formats.number,
        "count": formats.count,
        "size": formats.size,
        "percent": formats.percent,
        "clip": clip,
    }
    return environment.get_template(template).render(version=__version__, **values)


def _shown(value: Any) -> Any:
    """Return what a template prints: text without control characters; markup comes from our own templates only."""
    return neutral_lines(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def figure(title: str, svg: str | None, note: str = "") -> tuple[str, Any, str]:
    """Return a figure for a template. Only SVG of drawing.py may come here, which has escaped what comes from data."""
    from markupsafe import Markup

    return title, None if svg is None else Markup(svg), note


def clip(value: Any, most: int = _LONGEST) -> str:
    """Return text that is cut where it would fill a page by itself."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (dotted key, value) of nested settings as texts, in their order."""
    return [(key, clip("null" if value is None else value)) for key, value in dotted(settings)]
