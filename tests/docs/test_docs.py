"""The documentation is true: its Python runs, its links lead somewhere, its tables are those of the installed operators
and of the recorded GPU runs.

`python tests/docs/test_docs.py` writes the tables anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("packages/*/README.md"), *ROOT.glob("libs/*/README.md")]
)
TABLE = re.compile(r"(?<=<!-- operators -->\n).*?(?=<!-- /operators -->)", re.DOTALL)

RESULTS = re.compile(r"<!-- results (\S+) -->\n(.*?)<!-- /results -->", re.DOTALL)


def name(page: Path) -> str:
    """A page's path in the checkout."""
    return str(page.relative_to(ROOT))


def python_of(page: Path) -> str:
    """The Python blocks of a page as one program, each on the lines that it has in the page."""
    lines = []
    inside = False
    for line in page.read_text().splitlines():
        fence = line.strip().startswith("```")
        if fence:
            inside = not inside and line.strip() == "```python"
        lines.append(line if inside and not fence else "")
    return "\n".join(lines)


def table() -> str:
    """The table of operators and papers, as `core list` writes it."""
    core = Path(sys.executable).parent / "core"
    env = {k: v for k, v in os.environ.items() if k not in {"CORE_PLUGIN_PATH", "CORE_DISABLE"}}
    done = subprocess.run(
        [core, "list", "--papers", "--markdown"], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip() + "\n"


def results(file: Path) -> str:
    """The table of a recorded GPU run: its device and date, and the columns that it names."""
    run = json.loads(file.read_text())
    lines = [f"On one {run['device']}, {run['date']}, torch {run['torch']}:", ""]
    lines += ["| " + " | ".join(run["columns"]) + " |", "|" + "---|" * len(run["columns"])]
    for row in run["rows"]:
        cells = (f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in run["columns"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p).strip()], ids=name)
def test_python(page: Path, tmp_path: Path) -> None:
    """All Python of a page runs, block after block, in an empty folder."""
    code = tmp_path / "page.py"
    code.write_text(python_of(page))
    done = subprocess.run(
        [sys.executable, str(code)], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{name(page)} (line numbers are the page's):\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page: Path) -> None:
    """Every relative link leads to a file."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
        assert (page.parent / link).exists(), f"{name(page)} links to {link}"


@pytest.mark.parametrize("folder", sorted(ROOT.glob("packages/core-*/CMakeLists.txt")), ids=lambda f: f.parent.name)
def test_every_package_has_an_example(folder: Path) -> None:
    """A package's own page starts with something that runs."""
    assert python_of(folder.parent / "README.md").strip(), "the README has no ```python block"


def test_table() -> None:
    """The README's table is current."""
    found = TABLE.search((ROOT / "README.md").read_text())
    assert found, "README.md lacks the markers <!-- operators --> and <!-- /operators -->"
    assert found[0] == table(), "out of date: run `.venv/bin/python tests/docs/test_docs.py`"


@pytest.mark.parametrize("file", sorted(ROOT.glob("packages/*/benchmarks/results/*.json")), ids=name)
def test_results(file: Path) -> None:
    """Every recorded GPU run is shown, as recorded, on its package's page."""
    page = file.parents[2] / "README.md"
    shown = {page.parent / path: text for path, text in RESULTS.findall(page.read_text())}
    assert shown.get(file) == results(file), "out of date: run `.venv/bin/python tests/docs/test_docs.py`"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    new = table()
    readme.write_text(TABLE.sub(lambda _: new, readme.read_text()))
    for page in ROOT.glob("packages/*/README.md"):
        shown = RESULTS.sub(
            lambda m, page=page: f"<!-- results {m[1]} -->\n{results(page.parent / m[1])}<!-- /results -->",
            page.read_text(),
        )
        page.write_text(shown)
