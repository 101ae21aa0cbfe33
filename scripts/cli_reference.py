#!/usr/bin/env python3
"""Writes docs/cli.md from the command line itself: what every verb says with --help.

python scripts/cli_reference.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import typer

from first_llama.cli import VERBS, app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

#: Columns of a help text in a terminal of 80 or more.
WIDTH = 78

HEAD = """\
# Command line

What `--help` says, verb by verb. This page is made by `python scripts/cli_reference.py`; a test compares the
two, so change the command line and run the script, not this page.

With `--json` a verb prints one JSON document on standard output and everything else on standard error. An
error is one line. Exit codes: 0, 1 (failed), 2 (bad usage), 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP).
"""

#: Pages that say more of a verb, by their titles in the navigation.
MORE = {
    "run": {"Quick start": "index.md"},
    "chat": {"Chat": "chat.md"},
    "serve": {"Server": "server.md"},
    "bench": {"Performance": "performance.md"},
    "eval": {"Evaluation": "evaluation.md"},
    "train": {"Train your own": "train-your-own.md", "Training": "training.md"},
    "convert": {"Convert, verify, inspect": "convert.md"},
    "embed": {"The file format": "format.md"},
    "strip": {"The file format": "format.md"},
    "inspect": {"Convert, verify, inspect": "convert.md"},
    "verify": {"Convert, verify, inspect": "convert.md"},
    "diff": {"Convert, verify, inspect": "convert.md"},
}


def help_texts() -> dict[str, str]:
    """Return the help text of each verb by its command, `first-llama` itself first."""
    group = typer.main.get_command(app)
    make = group.context_class
    settings = {"terminal_width": WIDTH, **group.context_settings}
    context = make(group, info_name="first-llama", **settings)
    texts = {"first-llama": group.get_help(context)}
    for verb in VERBS:
        command = group.get_command(context, verb)
        inner = make(command, parent=context, info_name=verb, terminal_width=WIDTH)
        texts[f"first-llama {verb}"] = command.get_help(inner)
    return texts


def page() -> str:
    """Return the text of docs/cli.md."""
    parts = [HEAD]
    for name, text in help_texts().items():
        pages = MORE.get(name.removeprefix("first-llama "), {})
        links = [f"[{title}]({link})" for title, link in pages.items()]
        more = f"\nSee {', '.join(links)}.\n" if links else ""
        parts.append(f"\n## {name}\n{more}\n```text\n{text.rstrip()}\n```\n")
    return "".join(parts)


def main() -> int:
    """Write the page, or with --check tell whether it is up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if it is stale")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print("error: docs/cli.md is stale; run python scripts/cli_reference.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
