"""The stages of a training run, each of which saves what it made and is not done twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from first_llama.convert.routers import TrainValue
from first_llama.convert.run_folder import save_run
from first_llama.errors import FirstError
from first_llama.progress import meter, say
from first_llama.train import calibrate, costs, distill, features, fit
from first_llama.train.config import LADDER, TrainConfig
from first_llama.train.data import (
    Record,
    Writer,
    from_files,
    read_records,
    self_written,
    split,
    write_records,
)
from first_llama.train.depth import Depth, Example
from first_llama.train.gguf_model import Base, load_base, load_tokenizer
from first_llama.train.routers import LinearRouters, to_file

COST_BATCH = 16


class Run:
    """A run's folder: settings, log and checkpoints."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        """Make the folder, or take one that the same settings made."""
        self.folder, self.config = folder, config
        self.checkpoint = folder / "checkpoint"
        try:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FirstError(f"{folder}: cannot make the folder ({error.strerror})") from None
        self._claim()

    def _claim(self) -> None:
        """Make sure that what is in the folder came from the same settings (threads do not matter)."""
        path = self.checkpoint / "settings.json"
        now = self.config.model_dump(mode="json", exclude={"threads", "checkpoint_every"})
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(name for name in now if before.get(name) != now[name])
            if changed:
                names = ", ".join(changed)
                raise FirstError(
                    f"{self.folder} holds a run with other settings ({names}); choose another folder"
                )
        replace_text(path, json.dumps(now, indent=2) + "\n")

    def log(self, stage: str, **values: Any) -> None:
        """Append one record to log.jsonl."""
        line = json.dumps({"stage": stage, "time": round(time.time(), 1), **values})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, name: str, value: Any) -> None:
        """Write a checkpoint whole or not at all."""
        path = self.checkpoint / f"{name}.pt"
        part = path.with_suffix(".part")
        torch.save(value, part)
        os.replace(part, path)

    def load(self, name: str) -> Any:
        """Return a checkpoint, or None."""
        path = self.checkpoint / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None


def replace_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train routers for a base model (stage R); continues a run that was stopped.

    Returns:
        stages, steps, loss (held-out KL in nats a token), skip_fraction (held-out) and wall_s.

    Raises:
        FirstError: for bad data, a bad base model, or a folder that holds another run.
    """
    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    for path in config.data:
        if not path.is_file():
            raise FirstError(f"{path}: no such data file")
    base = load_base(config.base, getattr(torch, config.dtype))
    tokenizer = load_tokenizer(config.base)
    run = Run(folder, config)
    records = gather(run, base, tokenizer)
    return finish(run, base, records, started)


def gather(run: Run, base: Base, tokenizer: Any) -> list[Record]:
    """Stage 1: prompts that the model writes, and rows of files, with the answers to distil from."""
    config = run.config
    writer = Writer(base, tokenizer, config.temperature)
    own_path, rows_path = run.folder / "prompts.jsonl", run.folder / "rows.jsonl"
    if rows_path.exists():
        rows = read_records(rows_path)
    else:
        rows, dropped = from_files(
            writer, config.data, config.rows, config.answers == "own", config.max_prompt, config.max_response,
            config.seed,
        )  # fmt: skip
        write_records(rows_path, rows)
        if dropped:
            say(f"data: left out {dropped} rows with more than {config.max_prompt} prompt tokens")
    with meter("own prompts", config.prompts, min(len(read_records(own_path)), config.prompts)) as bar:
        own = self_written(
            writer, own_path, config.prompts, config.seed, config.max_prompt, config.max_response, bar
        )
    if len(own) + len(rows) < 4:
        raise FirstError("too few prompts to train on; ask for more with --prompts or give --data")
    run.log("prompts", own=len(own), rows=len(rows))
    return own + rows


def finish(run: Run, base: Base, records: Sequence[Record], started: float) -> dict[str, Any]:
    """Stages 2 to 5: costs, warm start, end-to-end training, calibration."""
    config, depth = run.config, Depth(base)
    training, held = split(records, config.held_out, config.seed)
    both = [Example(record.prompt, record.response) for record in training + held]
    routers = LinearRouters(range(1, depth.n_layer), base.n_embd, config.norm, config.norm_eps).to(
        base.device
    )
    table = measure_costs(run, depth, both)
    judge = HeldOut(depth, both[len(training) :], config.target_skip)
    warm_start(run, depth, routers, both, table, len(training))
    stages = ["prompts", "costs", "warm-start"]
    best = judge(routers)
    run.log("warm-start", kl=best.kl, threshold=best.threshold)
    say(f"warm start: held-out KL {best.kl:.4f} at skip fraction {best.fraction:.3f}")
    steps = config.fit_steps
    if config.steps:
        warm = {name: value.clone() for name, value in routers.state_dict().items()}
        penalty = fit.price(table, config.target_skip, depth.n_layer)
        end_to_end(run, depth, routers, both[: len(training)], best.threshold, penalty)
        after = judge(routers)
        run.log("end-to-end", kl=after.kl, threshold=after.threshold)
        say(f"end to end: held-out KL {after.kl:.4f} at skip fraction {after.fraction:.3f}")
        stages.append("end-to-end")
        steps += config.steps
        if after.kl <= best.kl:
            best = after
        else:
            routers.load_state_dict(warm)
            say("the warm start is better and is kept")
    stages.append("calibrate")
    rungs = calibrate.ladder(best.scores, LADDER, depth.n_layer)
    result = {
        "stages": stages,
        "steps": steps,
        "loss": round(best.kl, 6),
        "skip_fraction": round(best.fraction, 6),
        "wall_s": round(time.monotonic() - started, 1),
    }
    provenance: dict[str, TrainValue] = {
        "method": "FiRST-style stage R",
        "base": Path(config.base).name,
        "seed": config.seed,
        "stages": ", ".join(stages),
        "steps": steps,
        "prompts": len(records),
        "data": ", ".join(path.parent.name or path.stem for path in config.data),
        "target_skip": config.target_skip,
        "held_out_kl": round(best.kl, 6),
        "held_out_skip": round(best.fraction, 6),
    }
    save_run(run.folder, to_file(routers, depth.n_layer, base.fingerprint, best.threshold, rungs, provenance))
    run.log("done", **result)
    return result


def measure_costs(run: Run, depth: Depth, examples: Sequence[Example]) -> Tensor:
    """Stage 2: what leaving out each layer costs each prompt, [N, L] nats a token."""
    config = run.config
    short = [Example(e.prompt, e.response[: config.cost_tokens + 1]) for e in examples]
    path = run.checkpoint / "costs.jsonl"
    done = len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0
    with meter("costs", len(short), min(done, len(short))) as bar:
        measured = costs.measure(depth, short, path, config.rounds, config.pool, COST_BATCH, bar)
    table, _ = costs.additive(measured, config.outside)
    return table[:, 1:]


def warm_start(
    run: Run, depth: Depth, routers: LinearRouters, examples: Sequence[Example], table: Tensor, n_train: int
) -> None:
    """Stage 3: fit the routers to the costs of the training prompts."""
    state = run.load("warm-start")
    if state is not None:
        routers.load_state_dict(state)
        return
    config = run.config
    with meter("features", n_train) as bar:
        found = features.collect(depth, routers, examples[:n_train], 16, bar)
    settings = fit.Fit(config.target_skip, depth.n_layer, config.fit_steps, config.fit_lr, config.l2)
    with meter("warm start", config.fit_steps) as bar:
        fit.fit(routers, found, table[:n_train].to(depth.base.device), settings, bar)
    run.save("warm-start", routers.state_dict())


def end_to_end(
    run: Run,
    depth: Depth,
    routers: LinearRouters,
    examples: Sequence[Example],
    threshold: float,
    penalty: float,
) -> None:
    """Stage 4: distillation through the routed model."""
    config = run.config
    settings = distill.Distil(
        config.steps, config.batch, config.lr, config.target_skip, threshold, config.seed
    )
    trainer = distill.Trainer(depth, routers, settings, penalty)
    state = run.load("end-to-end")
    if state is not None:
        trainer.load(state)

    def after(record: dict[str, float]) -> None:
        run.log("end-to-end", **record)
        if record["step"] % config.checkpoint_every == 0 or record["step"] == config.steps:
            run.save("end-to-end", trainer.state())

    with meter("end to end", config.steps, trainer.step) as bar:
        trainer.run(examples, bar, after)
    trainer.averaged()


class Verdict:
    """Routers on held-out prompts: the scores, the calibrated threshold, what it skips and the KL there."""

    def __init__(self, scores: Tensor, threshold: float, fraction: float, kl: float) -> None:
        """Hold what was found."""
        self.scores, self.threshold, self.fraction, self.kl = scores, threshold, fraction, kl


class HeldOut:
    """Judges routers by hard decisions at the target skip fraction on held-out prompts."""

    def __init__(self, depth: Depth, examples: Sequence[Example], fraction: float) -> None:
        """Take held-out examples and the target skip fraction."""
        self.depth, self.fraction = depth, fraction
        self.examples, self.parts = examples, list(costs.by_length(examples, COST_BATCH))

    def __call__(self, routers: LinearRouters) -> Verdict:
        """Calibrate and measure routers."""
        n_layer = self.depth.n_layer
        scores = torch.zeros(len(self.examples), len(routers.layers))
        probes = [costs.Probe(self.depth, [self.examples[i] for i in part]) for part in self.parts]
        with torch.no_grad():
            for part, probe in zip(self.parts, probes, strict=True):
                scores[part] = routers(probe.prefix.inputs, probe.batch.prompt_mask).cpu()
        threshold = calibrate.threshold_for(scores, self.fraction, n_layer)
        keep = routers.keep(scores, threshold, n_layer)
        total = sum(float(probe.kl(keep[part]).sum()) for part, probe in zip(self.parts, probes, strict=True))
        fraction = calibrate.skip_fraction(scores, threshold, n_layer)
        return Verdict(scores, threshold, fraction, total / len(self.examples))
