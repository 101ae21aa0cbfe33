"""Errors that a model's chat template raised: the file's fault, and nothing that a traceback would explain.

Templates are programs, run in jinja2's sandbox: they reach neither files nor Python's internals, but they can
raise anything.
"""

from __future__ import annotations

import traceback

_MOST = 200


def template_problem(error: BaseException) -> str | None:
    """Return what to say of an error that a chat template raised; None if no template did."""
    kind = type(error)
    if not _in_template(error):
        return None
    reason = " ".join(str(error).split()) or kind.__name__
    return (
        f"the model's chat template fails ({kind.__name__}: {reason[:_MOST]}); "
        "`first-llama run --raw` does without it"
    )


def _in_template(error: BaseException) -> bool:
    # jinja2 names the file so in the frames of a template that came as a text; a syntax error is in none yet.
    if type(error).__module__.startswith("jinja2."):
        return True
    return any(
        frame.f_code.co_filename == "<template>" for frame, _ in traceback.walk_tb(error.__traceback__)
    )
