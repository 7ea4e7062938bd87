"""The documentation as a site: it builds strictly, needs no network, and no link of it or of the README is dead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE_THE_SITE = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "deploy" / "README.md",
]


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the documentation that lies in ``folder``, as `make site` does."""
    shutil.copy(ROOT / "zensical.toml", folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "NO_COLOR": "1"}
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.diagrams = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and "href" in given:
            self.loads.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])
        self.diagrams += tag == "div" and given.get("class") == "diagram"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """The built pages, by their paths."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Links(path.read_text(encoding="utf-8")) for path in (folder / "site").rglob("index.html")}


def test_every_page_is_built(site: dict[Path, Links]) -> None:
    assert len(site) == len(PAGES)


def test_no_page_loads_anything_from_elsewhere(site: dict[Path, Links]) -> None:
    for path, page in site.items():
        for address in page.loads:
            assert not urlsplit(address).netloc, (path, address)
            assert (path.parent / urlsplit(address).path).exists(), (path, address)


def test_no_link_within_the_site_is_dead(site: dict[Path, Links]) -> None:
    for path, page in site.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), (path, address)
            if parts.fragment and target in site:
                assert parts.fragment in site[target].anchors, (path, address)


def test_each_diagram_is_drawn(site: dict[Path, Links]) -> None:
    written = sum(path.read_text(encoding="utf-8").count("```mermaid") for path in PAGES)
    assert written > 0
    assert sum(page.diagrams for page in site.values()) == written
    for path in site:
        assert "language-mermaid" not in path.read_text(encoding="utf-8")
        assert 'aria-roledescription="error"' not in path.read_text(encoding="utf-8")


def test_a_dead_link_and_a_dead_anchor_fail_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    for name in named(config["project"]["nav"]):
        page = tmp_path / "docs" / name
        page.parent.mkdir(exist_ok=True, parents=True)
        page.write_text("# Page\n", encoding="utf-8")
    index = tmp_path / "docs" / "index.md"
    assert build(tmp_path).returncode == 0
    index.write_text("# Page\n\n[dead](nowhere.md)\n", encoding="utf-8")
    assert build(tmp_path).returncode == 1
    index.write_text("# Page\n\n[dead](design.md#nowhere)\n", encoding="utf-8")
    assert build(tmp_path).returncode == 1


def named(nav: list[Any]) -> Iterator[str]:
    """Yield the pages of a navigation."""
    for entry in nav:
        for below in entry.values():
            if isinstance(below, str):
                yield below
            else:
                yield from named(below)


def test_the_navigation_names_every_page_but_the_single_decisions() -> None:
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = [str(path.relative_to(DOCS)) for path in PAGES]
    decisions = [name for name in pages if re.fullmatch(r"decisions/\d{4}-.*", name)]
    assert sorted([*named(config["project"]["nav"]), *decisions]) == sorted(pages)


def test_each_decision_has_its_three_parts_and_is_listed() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for path in sorted((DOCS / "decisions").glob("0*.md")):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Choice", "Consequences"]
        title = re.match(r"# (\d+)\. (.*)", text)
        assert title
        assert int(title[1]) == int(path.name[:4])
        assert f"| {title[1]} | [{title[2]}]({path.name}) |" in index


def anchors(markdown: str) -> set[str]:
    """Return the anchors of a page's headings, as the repository's web view makes them."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", BESIDE_THE_SITE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_beside_the_site_is_dead(page: Path) -> None:
    for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        parts = urlsplit(address)
        if parts.netloc:
            continue
        target = (page.parent / parts.path).resolve()
        assert target.exists(), address
        if parts.fragment:
            assert parts.fragment in anchors(target.read_text(encoding="utf-8")), address
