"""The documentation: it builds without a warning, links lead somewhere, what it says of the code is so."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: Pages with commands; the reference is made from the code, the changelog tells of the past.
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in DOCS.glob("*.md") if p.name != "cli.md")]
)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Elements(HTMLParser):
    """What a page is made of: ids, links, and what a browser fetches for it without being asked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(values.get("href", ""))
        elif "src" in values:
            self.fetched.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("docs") / "site"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # of the theme, about its own future
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Elements]:
    return {path: Elements(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(pages: dict[Path, Elements]) -> None:
    names = {path.name for path in pages}
    assert {path.with_suffix(".html").name for path in DOCS.glob("*.md")} <= names
    assert {"contributing.html", "changelog.html", "security-policy.html"} <= names


def test_links_lead_somewhere(pages: dict[Path, Elements]) -> None:
    seen = 0
    for page, elements in pages.items():
        if page.name == "404.html":
            continue  # served for any address, so its links begin at the site's root
        for link in elements.links + elements.fetched:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, f"{page.name}: {link}"
            seen += 1
    assert seen > 500


def test_anchors_of_the_readme(site: Path, pages: dict[Path, Elements]) -> None:
    links = re.findall(r"\]\(docs/([\w-]+)\.md#([\w-]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    for page, anchor in links:
        assert anchor in pages[site / f"{page}.html"].ids, f"{page}.md has no heading {anchor}"


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Elements]) -> None:
    for page, elements in pages.items():
        assert elements.fetched
        for link in elements.fetched:
            assert not urlsplit(link).netloc, f"{page.name}: {link}"
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in [*sheets, *site.rglob("*.svg")]:
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//|href=[\"']https?:", text), sheet.name


def test_reference_has_the_classes_and_their_arguments(site: Path) -> None:
    text = (site / "python.html").read_text(encoding="utf-8")
    for name in ("first_llama.Llama", "first_llama.Route", "first_llama.convert.embed.embed"):
        assert f'id="{name}"' in text
    assert "refill" in text and "n_prompt" in text


def test_reference_of_the_command_line_is_what_the_code_says() -> None:
    stale = "docs/cli.md is stale; run python scripts/cli_reference.py"
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == load("cli_reference").page(), stale


def test_reference_of_the_command_line_is_what_help_prints() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "first_llama", "run", "--help"],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == load("cli_reference").help_texts()["first-llama run"].strip()


def test_figure_is_of_the_present_measurements() -> None:
    script = load("speed_quality")
    speed, quality = script.read()
    assert speed[0].n_skipped > 0 and quality[0].skip_fraction == 0.0
    stale = "docs/images/speed-quality.svg is stale; run python scripts/speed_quality.py"
    assert f"data {script.digest(speed, quality)}" in script.FIGURE.read_text(encoding="utf-8"), stale


def test_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = load("speed_quality")
    speed = [
        script.Speed(3, (1.1, 1.0, 1.2), (1.2, 1.1, 1.3)),
        script.Speed(6, (1.2, 1.1, 1.3), (1.3, 1.2, 1.4)),
    ]
    quality = [script.Quality(0.0, 0.9), script.Quality(0.2, 0.777)]
    script.draw(speed, quality, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "77.7" in text and script.digest(speed, quality) in text


def test_page_without_the_table_is_refused() -> None:
    with pytest.raises(SystemExit, match="has no table of speed-ups"):
        load("speed_quality").read_speed("# Performance\n\nnothing\n")


def shell_commands(path: Path) -> list[tuple[str, str]]:
    """Every `first-llama VERB ...` of a page's shell blocks: the verb and the whole command."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    text = re.sub(r"(^|\s)#.*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "TEXT", text)
    found = []
    for command in re.split(r"\n|&&|\||;", text):
        match = re.match(r"\s*(?:[A-Z_]+=\S+ )*first-llama ([a-z]+)(.*)", command)
        if match:
            found.append((match.group(1), match.group(0)))
    return found


def test_commands_are_found() -> None:
    verbs = {verb for verb, _ in shell_commands(DOCS / "train-your-own.md")}
    assert {"train", "embed", "verify", "eval", "bench", "run"} <= verbs


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_flags_exist(path: Path) -> None:
    helps = load("cli_reference").help_texts()
    for verb, command in shell_commands(path):
        if f"first-llama {verb}" not in helps:
            pytest.fail(f"there is no verb {verb}: {command.strip()}")
        options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", helps[f"first-llama {verb}"]))
        for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", command):
            assert flag in options, f"first-llama {verb} has no {flag}: {command.strip()}"


def test_first_page_has_the_readmes_command_and_example() -> None:
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    assert load("readme_command").command("run").strip() in page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        assert example.strip() in readme  # where a test runs it


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_examples_are_python(path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        compile(code, path.name, "exec")
