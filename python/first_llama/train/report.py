"""RUN/report.md: what a run did, in a page with plots; made from its log, so it can be made again.

Example: python -m first_llama.train.report RUN
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from first_llama.errors import FirstError
from first_llama.train import adaptivity
from first_llama.train.run import settings_of

PLOTS = "plots"


def read_log(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records of log.jsonl by stage; of a step that was trained twice, the later one."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise FirstError(f"{folder}: has no log.jsonl; give the folder of a training run")
    stages: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        stages.setdefault(record["stage"], []).append(record)
    for name, records in stages.items():
        if all("step" in record for record in records):
            stages[name] = list({r["step"]: r for r in records}.values())
    return stages


def write_report(folder: Path) -> Path:
    """Write report.md and its plots into a run's folder; returns the page.

    Raises:
        FirstError: if the folder holds no finished run.
    """
    log = read_log(folder)
    if "done" not in log:
        raise FirstError(f"{folder}: the run is not finished; give the training command again")
    result, scores = log["done"][-1], log.get("scores", [None])[-1]
    (folder / PLOTS).mkdir(exist_ok=True)
    plots = {
        "Loss and skipped share of the adapter's steps": _curves(log.get("adapter", []), "loss", "skip"),
        "Loss and skipped share of the stand-ins' steps": _curves(
            log.get("train-stand-ins", []), "loss", "skip"
        ),
        "Loss and skipped share of the routers' end-to-end steps": _curves(
            [r for r in log.get("end-to-end", []) if "step" in r], "loss", "skip"
        ),
        "Share of held-out prompts that leave out each layer, by budget": _rates(scores) if scores else None,
        "Masks of held-out prompts (dark: left out), by task": _masks(scores) if scores else None,
        "Quality against skipped share, held-out": _ladder(result.get("ladder")),
    }
    lines = [f"# Run {folder.name}", "", *_summary(result), ""]
    for number, (title, figure) in enumerate(plots.items()):
        if figure is None:
            continue
        name = f"{PLOTS}/{number}.png"
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)
        lines += [f"## {title}", "", f"![{title}]({name})", ""]
    lines += [
        "## Settings",
        "",
        "```json",
        json.dumps(settings_of(folder), indent=2),
        "```",
        "",
        *_circumstances(log),
        "",
    ]
    page = folder / "report.md"
    part = page.with_suffix(".part")
    part.write_text("\n".join(lines), encoding="utf-8")
    part.replace(page)
    return page


def _summary(result: dict[str, Any]) -> list[str]:
    lines = [
        f"Stages: {', '.join(result['stages'])}. Steps: {result['steps']}. Time: {result['wall_s']:.0f} s.",
        f"Held-out loss {result['loss']:.4f} at a skipped share of {result['skip_fraction']:.1%}.",
    ]
    if result.get("layers"):
        lines.append(f"Left out for every prompt: layers {' '.join(map(str, result['layers']))}.")
    for name, stage in (("adapter", "stage L"), ("stand_ins", "stage S")):
        lines += _training(result[name], stage) if name in result else []
    ladder = result.get("ladder")
    if ladder:
        lines += [
            "",
            "| budget | skipped | KL | agreement | cross-entropy | accuracy |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['budget']:.0%} | {row['skip_fraction']:.1%} | {row['kl']:.4f} | {row['agreement']:.1%} "
            f"| {row['ce']:.4f} | {row['accuracy']:.1%} |"
            for row in ladder
        ]
    if result.get("adaptivity"):
        lines += [
            "",
            "Held-out prompts under masks of equal size:",
            "",
            *adaptivity.lines(result["adaptivity"]),
        ]
    return lines


def _training(figures: dict[str, Any], stage: str) -> list[str]:
    lines = ["", f"| held-out | before {stage} | after |", "|---|---|---|"]
    forms = {
        "ce": ".4f",
        "kl": ".4f",
        "accuracy": ".1%",
        "agreement": ".1%",
        "skip_fraction": ".1%",
        "rows": ".0f",
    }
    names = {"ce": "cross-entropy", "kl": "KL", "skip_fraction": "skipped", "rows": "tokens"}
    for name, before in figures["before"].items():
        pair = (format(value, forms[name]) for value in (before, figures["after"][name]))
        lines.append(f"| {names.get(name, name)} | {' | '.join(pair)} |")
    share = ", ".join(f"{name} {value:.0%}" for name, value in figures["share"].items())
    speed = f"{figures['tokens_s']:.0f} tokens/s ({share}); peak memory {figures['peak_memory_mb']} MiB."
    return [*lines, "", speed]


def _curves(records: Sequence[dict[str, Any]], loss: str, skip: str) -> Figure | None:
    if not records:
        return None
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    steps = [r["step"] for r in records]
    axis.plot(steps, [r[loss] for r in records], color="tab:blue", alpha=0.3)
    axis.plot(steps, _smooth([r[loss] for r in records]), color="tab:blue")
    axis.set_xlabel("step")
    axis.set_ylabel("loss (nats a token)", color="tab:blue")
    other = axis.twinx()
    other.plot(steps, [r[skip] for r in records], color="tab:orange", alpha=0.6)
    other.set_ylabel("skipped share", color="tab:orange")
    other.set_ylim(0, max(0.05, 1.3 * max(r[skip] for r in records)))
    return figure


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    out: list[float] = []
    for value in values:
        out.append(value if not out else weight * out[-1] + (1 - weight) * value)
    return out


def _rates(scores: dict[str, Any]) -> Figure:
    figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
    table, layers = scores["scores"], scores["layers"]
    rows = [
        [sum(row[i] < threshold for row in table) / len(table) for i in range(len(layers))]
        for _, threshold in scores["ladder"]
    ]
    image = axis.imshow(rows, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks(range(len(rows)), [f"{fraction:.0%}" for fraction, _ in scores["ladder"]])
    axis.set_xticks(range(0, len(layers), 2), layers[::2])
    axis.set_xlabel("layer")
    axis.set_ylabel("budget")
    figure.colorbar(image)
    return figure


def _masks(scores: dict[str, Any]) -> Figure:
    order = sorted(range(len(scores["kinds"])), key=lambda i: scores["kinds"][i])
    figure, axis = plt.subplots(figsize=(7, max(2.5, 0.06 * len(order))), layout="constrained")
    image = [[float(value < scores["threshold"]) for value in scores["scores"][i]] for i in order]
    axis.imshow(image, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    kinds = [scores["kinds"][i] for i in order]
    for kind in dict.fromkeys(kinds):
        first, count = kinds.index(kind), kinds.count(kind)
        axis.axhline(first - 0.5, color="tab:red", linewidth=0.8)
        axis.text(-0.7, first + count / 2, kind, ha="right", va="center", fontsize=8)
    axis.set_yticks([])
    axis.set_xticks(range(0, len(scores["layers"]), 2), scores["layers"][::2])
    axis.set_xlabel("layer")
    return figure


def _ladder(ladder: list[dict[str, float]] | None) -> Figure | None:
    if not ladder:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    skipped = [row["skip_fraction"] for row in ladder]
    for axis, name, label in zip(axes, ("kl", "accuracy"), ("KL (nats)", "token accuracy"), strict=True):
        axis.plot(skipped, [row[name] for row in ladder], marker="o")
        axis.set_xlabel("skipped share")
        axis.set_ylabel(label)
    return figure


def _circumstances(log: dict[str, list[dict[str, Any]]]) -> list[str]:
    if "start" not in log:
        return []
    start = log["start"][-1]
    versions = ", ".join(f"{name} {value}" for name, value in start["versions"].items())
    return [f"{versions}, Python {start['python']} on {start['machine']}, {start['threads']} threads."]


if __name__ == "__main__":
    try:
        print(write_report(Path(sys.argv[1])))
    except (FirstError, IndexError) as problem:
        print(f"error: {problem if str(problem) else 'give a folder'}", file=sys.stderr)
        sys.exit(1)
