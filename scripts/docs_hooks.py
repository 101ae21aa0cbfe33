"""Hooks of mkdocs: pages and links that lie outside docs/, and the package as it is installed.

CONTRIBUTING.md, CHANGELOG.md and SECURITY.md stand at the top, where people and forges look for them; the
site shows the same files. Links between Markdown files are written as they work in the repository.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent

#: Files at the top, and the pages of the site that they become. README.md's place is the first page's.
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}

_LINK = re.compile(r"(?<=\]\()(?:\.\./|docs/)?([\w.-]+\.md)(?=[#)])")
_CODE = re.compile(r"`[^`\n]+`")

_packages: list[Path] = []


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the package out as a wheel has it: first_llama.convert lies in a folder of its own here."""
    folder = Path(tempfile.mkdtemp(prefix="first-llama-docs-"))
    _packages.append(folder)
    only_code = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "python" / "first_llama", folder / "first_llama", ignore=only_code)
    shutil.copytree(ROOT / "convert", folder / "first_llama" / "convert", ignore=only_code)
    handlers: dict[str, Any] = config.plugins["mkdocstrings"].config.handlers
    handlers["python"]["paths"] = [str(folder)]
    return config


def on_post_build(config: MkDocsConfig) -> None:
    """Remove what on_config laid out."""
    while _packages:
        shutil.rmtree(_packages.pop(), ignore_errors=True)


def on_build_error(error: Exception) -> None:
    """Remove it after a failure, too."""
    while _packages:
        shutil.rmtree(_packages.pop(), ignore_errors=True)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand at the top of the repository."""
    for name, page in TOP.items():
        if name != "README.md":
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into the site's, and write tables as this parser reads them."""
    lines = _LINK.sub(_site_link, markdown).split("\n")
    return "\n".join(_table_row(line) if line.startswith("|") else line for line in lines)


def _site_link(match: re.Match[str]) -> str:
    return TOP.get(match.group(1), match.group(1))


def _table_row(line: str) -> str:
    # In a table GitHub wants `a\|b`; Python-Markdown takes pipes in code as they are and shows the backslash.
    return _CODE.sub(lambda code: code.group().replace("\\|", "|"), line)
