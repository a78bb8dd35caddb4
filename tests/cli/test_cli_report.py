"""report and compare through the real command line, and the page in a real browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from support.documents import report as document

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def here(magnitude_run: Path, tmp_path: Path) -> Path:
    """A run, and a second one that differs, in tmp_path."""
    shutil.copytree(magnitude_run, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "runs" / "model-1", tmp_path / "runs" / "model-2")
    file = tmp_path / "runs" / "model-2" / "report.json"
    other = json.loads(file.read_text())
    other["configuration"]["prune"]["sparsity"] = 0.7
    file.write_text(json.dumps(other))
    return tmp_path


def test_every_run_has_its_page_and_report_writes_the_same(here: Path, inline) -> None:
    page = here / "runs" / "model-1" / "report.html"
    before = page.read_text()
    assert re.search("<title>model-1: [^<]{10,}</title>", before)  # the verdict
    page.unlink()
    code, stdout, stderr = inline("report", "runs/model-1")
    assert (code, stderr) == (0, "")
    assert stdout == "runs/model-1/report.html\n"
    assert page.read_text() == before
    code, stdout, _ = inline("report", "runs/model-1", "-o", "page.html", "--json")
    assert json.loads(stdout) == {"file": str(here / "page.html"), "bytes": len(before.encode())}
    assert (here / "page.html").read_text() == before


def test_the_command_on_the_page_makes_the_run_again(here: Path, inline) -> None:
    text = (here / "runs" / "model-1" / "report.html").read_text()
    [command] = re.findall(r"<pre>prunetaylor (prune -c \S+ -o again)</pre>", text)
    where = json.loads((here / "runs" / "model-1" / "report.json").read_text())["files"]["config"]
    words = [str(here / "runs" / "model-1" / "config.yaml") if word == where else word for word in command.split()]
    assert words != command.split()
    code, _, stderr = inline(*words, "-q")
    assert code == 0, stderr
    first, second = (here / folder / "model.safetensors" for folder in ("runs/model-1", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_runs_side_by_side(here: Path, inline) -> None:
    code, stdout, stderr = inline("compare", "runs/model-1", "runs/model-2", "--html", "two.html")
    assert (code, stderr) == (0, "")
    assert max(map(len, stdout.splitlines())) <= 80
    assert "prune.sparsity: model-1 0.8, model-2 0.7" in stdout
    assert "2 runs side by side" in (here / "two.html").read_text()
    code, stdout, _ = inline("compare", "runs/model-1", "runs/model-2", "--json")
    found = json.loads(stdout)
    assert [run["name"] for run in found["runs"]] == ["model-1", "model-2"]
    assert found["settings"] == {"prune.sparsity": ["0.8", "0.7"]}
    shutil.copytree(here / "runs" / "model-1", here / "model-1")
    code, stdout, _ = inline("compare", "runs/model-1", "model-1", "--json")
    assert [run["name"] for run in json.loads(stdout)["runs"]] == ["runs/model-1", "model-1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "none"], 2, "holds no finished run"),
        (["report", "runs"], 2, "holds no finished run"),
        (["report", "text"], 5, "it is not JSON"),
        (["report", "old"], 5, "another schema_version"),
        (["report", "empty"], 5, "KeyError"),
        (["report", "runs/model-1", "-o", "none/page.html"], 2, "cannot write"),
        (["compare", "runs/model-1"], 2, "name two runs or more"),
        (["compare", "runs/model-1", "empty"], 5, "empty/report.json cannot be read by this version: KeyError"),
        (["compare", "runs/model-1", "odd", "--html", "x.html"], 5, "odd/report.json cannot be read"),
    ],
)
def test_what_has_no_page(here: Path, inline, arguments: list[str], code: int, message: str) -> None:
    for name, text in (("text", "x"), ("old", '{"schema_version": 0}'), ("empty", '{"schema_version": 1}')):
        (here / name).mkdir()
        (here / name / "report.json").write_text(text)
    odd = json.loads((here / "runs" / "model-1" / "report.json").read_text())
    odd["layers"][0]["sparsity"] = "most"
    (here / "odd").mkdir()
    (here / "odd" / "report.json").write_text(json.dumps(odd))
    got, stdout, stderr = inline(*arguments)
    assert got == code, stderr
    assert stdout == ""
    assert message in stderr
    assert not (here / "x.html").exists()


@pytest.fixture(scope="module")
def chromium() -> str:
    """A browser that is there, or Debian's, where it may be installed."""
    for name in CHROMIUM:
        if found := shutil.which(name):
            return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("there is no chromium, and it cannot be installed here (apt-get, as root)")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(["apt-get", *words], env=env, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            pytest.skip(f"chromium could not be installed: {(done.stderr or done.stdout).strip()[-200:]}")
    return shutil.which("chromium") or pytest.skip("Debian's chromium package has no chromium")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(chromium: str, tmp_path: Path, width: int) -> None:
    """No message on the console, no request, and nothing wider than the window."""
    from prunetaylor.report.html.run_page import run_page

    page = tmp_path / "page.html"
    page.write_text(run_page(document(), "resnet20-1"))
    # a frame measures the page from outside: the page itself runs no script
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe id=f src=page.html style='width:{width}px;height:3000px;border:0'></iframe><script>onload = () => {{"
        "const d = document.getElementById('f').contentDocument; document.title = "
        "[d.documentElement.scrollWidth, d.querySelectorAll('svg').length, d.fonts.size].join() }</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", "--disable-web-security"]
    net = tmp_path / "net.json"
    shot = tmp_path / "page.png"
    view = [*flags, f"--window-size={width},3000", f"--screenshot={shot}", f"--log-net-log={net}"]
    done = subprocess.run([chromium, *view, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    asked = set(re.findall(r'"url":"(https?://[^"]*)"', net.read_text()))
    # the browser itself looks for its updates; no address is the page's
    assert not [url for url in asked if "google" not in url and "gvt1" not in url]
    measured = subprocess.run(
        [chromium, *flags, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    found = re.search(r"<title>(\d+),(\d+),(\d+)</title>", measured.stdout)
    assert found, measured.stdout[:500]
    assert (int(found[1]), int(found[2]), int(found[3])) == (width, 6, 0)
    image = Image.open(shot).convert("RGB")
    assert image.width == width
    assert len(image.getcolors(maxcolors=1 << 24)) > 50
