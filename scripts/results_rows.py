"""What scripts/results.py trains: the tasks, and each row of the table as a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Task:
    """A task's metric, its answers' length, and how much is trained.

    Attributes:
        metric: as `first-llama eval` knows it.
        tokens: of an answer, at most.
        rows: drawn from the data.
        batch: examples of a step.
        steps: of each stage: adapting at full depth, what all rows do after it, going on longer, and
            distilling from base + LoRA.
    """

    metric: str
    tokens: int
    rows: int
    batch: int
    steps: dict[str, int]


def steps(adapt: int, after: int, longer: int, distil: int) -> dict[str, int]:
    """Return optimiser steps by stage."""
    return {"adapt": adapt, "after": after, "longer": longer, "distil": distil}


MULTI = "multi"
TASKS = {
    "dialogsum": Task("rougeL", 96, 7000, 32, steps(70, 110, 110, 80)),
    "multi30k": Task("bleu", 64, 11000, 128, steps(100, 400, 400, 80)),
    "squad": Task("f1", 32, 4000, 40, steps(60, 100, 160, 80)),
    MULTI: Task("", 96, 12000, 48, steps(100, 180, 180, 80)),
}


def parts_of(task: str) -> list[str]:
    """Return the tasks whose rows a task has: itself, or all of them."""
    return [name for name in TASKS if name != MULTI] if task == MULTI else [task]


#: What a user would do: first adapt at full depth (all rows share it), then go on under the row's masks.
ADAPT, REFERENCE = "adapt", "off"

#: What a user would do instead: base + LoRA, all layers, in a smaller type.
SMALLER = "smaller"

#: Skipped shares that are whole layers of a model with 30 layers, so that routers and controls skip as many.
SIXTH, QUARTER = 5 / 30, 8 / 30

#: Routers may come out the same for every prompt, and are chosen again when stage L has begun.
CHOICE = ("--common", "--reconsider", "0.33")

#: Rows of one recipe learn what a search with so many beams finds with base + LoRA.
BEAMS = 4


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        mask: what is left out.
        skip: how much.
        flags: others of its own.
        stage: whose steps it trains; None for routers alone.
        start: the row from whose end it goes on; None starts from the base.
        masks_of: the row whose routers, or whose best fixed mask, it keeps; None finds its own.
        teacher: the row whose answers (`--answers teacher`) or probabilities it learns.
        learns: flags of what it learns.
        max_prompt: tokens of a prompt.
        rate: the highest learning rate.
    """

    mask: str
    skip: float = SIXTH
    flags: tuple[str, ...] = ()
    stage: str | None = "after"
    start: str | None = ADAPT
    masks_of: str | None = None
    teacher: str | None = None
    learns: tuple[str, ...] = ("--answers", "data", "--loss", "ce")
    max_prompt: int = 320
    rate: float = 0.0015

    @property
    def searched(self) -> bool:
        """Tell whether its teacher searches for the answers that it learns."""
        return "--beams" in self.learns


ROWS = {
    ADAPT: Row("off", stage="adapt", start=None),
    REFERENCE: Row("off"),
    "first-15": Row("routers", SIXTH, CHOICE),
    "fixed-15": Row("fixed", SIXTH),
    "unified-15": Row("unified", SIXTH),
    "random-15": Row("random", SIXTH),
    "early-exit-15": Row("early-exit", SIXTH),
    # Routers alone are those of the base: nothing else was trained.
    "routers-15": Row("routers", SIXTH, stage=None, start=None),
    "first-25": Row("routers", QUARTER, CHOICE),
    "fixed-25": Row("fixed", QUARTER),
    "unified-25": Row("unified", QUARTER),
    "random-25": Row("random", QUARTER),
    "early-exit-25": Row("early-exit", QUARTER),
}

#: Where a row goes on, prompts may be longer, and steps are shorter.
LONGER = "longer-"
ROWS |= {
    f"{LONGER}{name}": replace(
        row, flags=(), stage="longer", start=name, masks_of=name, max_prompt=512, rate=0.001
    )
    for name, row in ROWS.items()
    if row.stage == "after"
}

SEARCH = ("--answers", "teacher", "--beams", str(BEAMS), "--loss", "ce")
ROWS |= {
    f"searched-{name}": replace(ROWS[name], teacher=REFERENCE, learns=SEARCH)
    for name in (REFERENCE, "first-15", "fixed-15", "unified-15")
}

#: From where base + LoRA ends, distilling from it, under the masks that another row has.
DISTIL = ("--answers", "data", "--loss", "both")
ROWS |= {
    f"distilled-{name}": replace(
        ROWS[name], flags=(), stage="distil", start=REFERENCE, masks_of=name, teacher=REFERENCE,
        learns=DISTIL, rate=0.0005,
    )
    for name in ("first-15", "fixed-15", "unified-15", "first-25")
}  # fmt: skip


def reference_of(row: str) -> str:
    """Return the base + LoRA that was trained as long as a row, or that it was distilled from."""
    return f"{LONGER}{REFERENCE}" if row.startswith(LONGER) else REFERENCE
