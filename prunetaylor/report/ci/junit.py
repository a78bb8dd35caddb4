"""A verdict as JUnit XML, which every CI system shows: one test case for each limit."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from prunetaylor.core.results.verdict import Check, Verdict
from prunetaylor.core.text import neutral_lines
from prunetaylor.report.verdict_text import allowed, conclusion, interval, shown, verdict_facts

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def to_junit(verdict: Verdict) -> str:
    """Return the document in the format that Jenkins' xunit plugin, GitLab and others read.

    A failed limit is a failure. An inconclusive one is too, unless ``on_inconclusive`` is warn (skipped, with the
    reason) or pass: the file agrees with the exit code.
    """
    cases = [_case(check, verdict) for check in verdict.checks]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
    }
    suites = ElementTree.Element("testsuites", {"name": "prunetaylor", **counts})
    skipped = str(sum(case.find("skipped") is not None for case in cases))
    seconds = f"{verdict.seconds:.3f}"
    named = {"name": "prunetaylor check", **counts, "skipped": skipped, "time": seconds}
    suite = ElementTree.SubElement(suites, "testsuite", named)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in verdict_facts(verdict):
        ElementTree.SubElement(properties, "property", {"name": _clean(name), "value": _clean(value)})
    suite.extend(cases)
    ElementTree.SubElement(suite, "system-out").text = _clean(conclusion(verdict))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _case(check: Check, verdict: Verdict) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": "prunetaylor.check", "name": check.name, "time": "0"})
    status: str = check.status
    if status == "inconclusive" and verdict.baseless:
        status = "failure"
    elif status == "inconclusive":
        status = {"pass": "pass", "warn": "skipped"}.get(verdict.on_inconclusive or "", "failure")
    text = _clean(f"{check.label} {shown(check.value, check)}, limits {interval(check)}, allowed {allowed(check)}")
    if status == "pass":
        ElementTree.SubElement(case, "system-out").text = f"{text}: {_clean(check.why)}"
    else:
        kind = "skipped" if status == "skipped" else "failure"
        ElementTree.SubElement(case, kind, {"type": check.status, "message": text}).text = _clean(check.why)
    return case


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", neutral_lines(text))
