"""A training run: prompts, routers (stage R), an adapter under their masks (stage L), calibration.

Every stage saves what it made and is not done twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from first_llama.convert.routers import Routers, TrainValue
from first_llama.convert.run_folder import load_run, save_run
from first_llama.errors import FirstError
from first_llama.progress import meter, say
from first_llama.train import calibrate
from first_llama.train.adapter import Adapter
from first_llama.train.adaptivity import adaptivity
from first_llama.train.choice import Choice, choose, draws, reconsider
from first_llama.train.config import LADDER, TrainConfig
from first_llama.train.data import (
    Record,
    Writer,
    from_files,
    read_records,
    split,
    write_records,
)
from first_llama.train.depth import Depth, Example
from first_llama.train.dtype import settled
from first_llama.train.finished import adapter_config
from first_llama.train.fixed import FIXED, constant_routers
from first_llama.train.gguf_model import Base, load_base, load_tokenizer
from first_llama.train.hub import is_hub, local_file
from first_llama.train.judge import judge, judge_each, scores_of
from first_llama.train.masks import Fixed, MaskPolicy, Routed
from first_llama.train.own_prompts import self_written
from first_llama.train.processes import make_accelerator
from first_llama.train.report import write_report
from first_llama.train.routers import LinearRouters, to_file
from first_llama.train.run import Run, circumstances
from first_llama.train.stage_l import Masks, full_depth_teacher, teacher_of, train_adapter
from first_llama.train.stage_s import train_stand_ins
from first_llama.train.stand_ins import StandIns, fit
from first_llama.train.stand_ins import from_file as stand_ins_from_file
from first_llama.train.stand_ins import to_file as stand_ins_to_file

#: Budgets at which a run measures its quality, besides full depth.
REPORTED = (0.05, 0.10, 0.15, 0.20, 0.25)


def train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train routers and an adapter for a base model; continues a run that was stopped.

    Returns:
        stages, steps, loss, skip_fraction (both held-out), layers (a control's, else None), adapter, wall_s.
        The loss is the held-out KL to full depth in nats a token; for an adapter or a control on the data's
        answers it is cross-entropy.

    Raises:
        FirstError: for bad data, a bad base model, or a folder that holds another run.
    """
    started = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    for path in config.data:
        if not is_hub(path) and not path.is_file():
            raise FirstError(f"{path}: no such data file")
    if config.teacher is not None:
        adapter_config(config.teacher)
    accelerator = make_accelerator()
    config = settled(config, folder, accelerator.device)
    base = load_base(config.base, getattr(torch, config.dtype), accelerator.device)
    tokenizer = load_tokenizer(config.base)
    with accelerator.main_process_first():  # the others find on disk what it made
        run = Run(folder, config, accelerator.is_main_process)
        run.log("start", processes=accelerator.num_processes, **circumstances(config))
        records = gather(run, base, tokenizer)
    return finish(run, base, records, started, accelerator)


def gather(run: Run, base: Base, tokenizer: Any) -> list[Record]:
    """Prompts that the model writes, and rows of files, with the answers to learn from."""
    config = run.config
    writer = answering = Writer(base, tokenizer, config.temperature, config.beams)
    own_path, rows_path = run.folder / "prompts.jsonl", run.folder / "rows.jsonl"
    if rows_path.exists():
        rows = read_records(rows_path)
    else:
        if config.answers == "teacher" and config.teacher is not None:
            answering = Writer(teacher_of(base, config.teacher).base, tokenizer, beams=config.beams)
        rows, cut, empty = from_files(
            answering,
            [local(run, path, n) for path, n in zip(config.data, config.rows_of_files(), strict=True)],
            config.rows_of_files(),
            config.answers != "data",
            config.max_prompt,
            config.max_response,
            config.seed,
            config.system,
            run.checkpoint,
        )
        write_records(rows_path, rows)
        if cut:
            say(f"data: took the middle out of {cut} prompts with more than {config.max_prompt} tokens")
            run.log("cut", rows=cut)
        if empty:
            say(f"data: left out {empty} rows whose answer is empty")
            run.log("empty", rows=empty)
    with meter("own prompts", config.prompts, min(len(read_records(own_path)), config.prompts)) as bar:
        own = self_written(
            writer, own_path, config.prompts, config.seed, config.max_prompt, config.max_response, bar,
            config.system,
        )  # fmt: skip
    if len(own) + len(rows) < 4:
        raise FirstError("too few prompts to train on; ask for more with --prompts or give --data")
    run.log("prompts", own=len(own), rows=len(rows))
    return own + rows


def local(run: Run, path: Path, rows: int) -> Path:
    """Return a data file; of a data set of the Hub, twice the wanted rows, among which to draw."""
    return local_file(path, run.folder, 2 * rows) if is_hub(path) else path


def finish(
    run: Run, base: Base, records: Sequence[Record], started: float, accelerator: Accelerator
) -> dict[str, Any]:
    """Routers, adapter and calibration, from the prompts that ``gather`` found."""
    config = run.config
    depth = Depth(base, checkpointing=config.checkpointing)
    parts = split(records, config.held_out, config.seed, config.most_held_out)
    training, held = ([Example(r.prompt, r.response, r.kind) for r in part] for part in parts)
    adapter = make_adapter(config, base)
    with accelerator.main_process_first():  # the others find on disk what it made
        depth.stand_in = stand_ins = fitted(run, depth, training)
        choice = choose(run, depth, training, held)
    result: dict[str, Any] = {"stages": ["prompts", *choice.stages], "steps": choice.steps}
    teacher = depth
    if adapter is not None and config.lora_steps:
        teacher = full_depth_teacher(depth, config.teacher)
        found, choice = adapted(run, depth, adapter, choice, training, held, teacher, accelerator)
        result |= found
        result["steps"] += choice.steps
        result["stages"].append("adapter")
        before = choice.routers
        choice = reconsider(run, depth, choice, judge_by(config, teacher), held, "after stage L")
        if choice.routers is not before:
            result |= held_out_figures(config, judge(depth, choice.policy(depth.n_layer), teacher, held))
    elif choice.routers is None:
        result |= held_out_figures(config, judge(depth, choice.policy(depth.n_layer), teacher, held))
    else:
        result["loss"] = choice.loss
    if stand_ins is not None and config.stand_in_steps:
        masks = masks_of(run, depth, choice, held)
        found = train_stand_ins(run, depth, stand_ins, masks, training, held, teacher, accelerator)
        result |= {"stand_ins": found, **held_out_figures(config, found["after"])}
        result["steps"] += config.stand_in_steps
        result["stages"].append("stand-ins")
    if adapter is not None and run.writes:
        adapter.save(run.folder)
    calibrated = None
    if choice.routers is not None:
        calibrated, figures = calibrate_routers(run, depth, teacher, choice.routers, held)
        result |= figures
        result["stages"].append("calibrate")
    result |= {"layers": choice.layers, "wall_s": round(time.monotonic() - started, 1)}
    routers = choice.routers
    if routers is None and stand_ins is not None and choice.layers:
        # A control's stand-ins need routers beside them; those of other layers would never be run.
        order = run.load(FIXED) if config.mask == "fixed" else choice.layers
        routers = constant_routers(order, depth, config.norm, config.norm_eps)
        stand_ins, calibrated = stand_ins.of(choice.layers), (0.5, [])
    if routers is not None and calibrated is not None and run.writes:
        about = provenance(config, records, result)
        maps = None if stand_ins is None else stand_ins_to_file(stand_ins)
        save_run(run.folder, to_file(routers, depth.n_layer, base.fingerprint, *calibrated, about, maps))
    run.log("done", **result)
    run.finish(result)
    if run.writes:
        say(f"report: {write_report(run.folder)}")
    return result


def adapted(
    run: Run,
    depth: Depth,
    adapter: Adapter,
    choice: Choice,
    training: Sequence[Example],
    held: Sequence[Example],
    teacher: Depth,
    accelerator: Accelerator,
) -> tuple[dict[str, Any], Choice]:
    """Train the adapter under the chosen masks; returns its figures and the choice at the end."""

    def masks(again: bool) -> Masks:
        nonlocal choice
        if again:
            choice = reconsider(run, depth, choice, judge_by(run.config, teacher), held, "in stage L")
        return masks_of(run, depth, choice, held)

    found = train_adapter(run, depth, adapter, masks, training, held, teacher, accelerator)
    figures = held_out_figures(run.config, found["after"])
    return {"adapter": found, "steps": run.config.lora_steps, **figures}, choice


def masks_of(run: Run, depth: Depth, choice: Choice, held: Sequence[Example]) -> Masks:
    """Return what training examples leave out, at all budgets that are trained for, and held-out ones."""
    drawn = choice.policy(depth.n_layer, draws(run, depth, choice, held), run.config.seed)
    return drawn, choice.policy(depth.n_layer)


def judge_by(config: TrainConfig, teacher: Depth) -> Depth | None:
    """Return the teacher whose KL judges routers; None where the data's answers do."""
    return None if config.answers == "data" else teacher


def held_out_figures(config: TrainConfig, figures: dict[str, float]) -> dict[str, float]:
    """Return loss and skip fraction of what ``judge`` found."""
    loss = figures["ce" if config.answers == "data" else "kl"]
    return {"loss": loss, "skip_fraction": figures["skip_fraction"]}


def calibrate_routers(
    run: Run,
    depth: Depth,
    teacher: Depth,
    routers: LinearRouters,
    held: Sequence[Example],
) -> tuple[tuple[float, list[tuple[float, float]]], dict[str, Any]]:
    """Return the target's threshold and the budgets' (fraction, threshold), and the figures at them."""
    scores = scores_of(depth, [routers], held)[0]
    threshold = calibrate.threshold_for(scores, run.config.target_skip, depth.n_layer)
    rungs = calibrate.ladder(scores, LADDER, depth.n_layer)
    run.log(
        "scores",
        kinds=[example.kind for example in held],
        layers=routers.layers,
        scores=scores.tolist(),
        ladder=rungs,
        threshold=threshold,
    )
    figures = {
        "skip_fraction": calibrate.skip_fraction(scores, threshold, depth.n_layer),
        "ladder": quality(depth, teacher, routers, rungs, held),
        "adaptivity": adaptivity(depth, teacher, routers, threshold, held, run.load(FIXED)),
    }
    return (threshold, rungs), figures


def fitted(run: Run, depth: Depth, training: Sequence[Example]) -> StandIns | None:
    """Return the stand-ins of ``--routers``, or fit some; None if none are wanted.

    Raises:
        FirstError: if those routers have stand-ins and others are asked for, or have none to train.
    """
    config, device = run.config, depth.base.device
    routers = None if config.routers is None else load_run(config.routers)
    found = None if routers is None else stand_ins_from_file(routers, device)
    if found is not None and config.stand_in_rank:
        raise FirstError(f"{config.routers}: brings stand-ins of its own; leave out --stand-in-rank")
    if found is None and config.stand_in_steps and not config.stand_in_rank:
        raise FirstError(f"{config.routers}: has no stand-ins to train; add --stand-in-rank")
    if found is not None or not config.stand_in_rank or config.mask == "off":
        return found
    stand_ins = unfitted(config, depth, routers).to(device)
    state = run.load("stand-ins")
    if state is not None:
        stand_ins.load_state_dict(state)
        return stand_ins
    some = training[: config.cost_rows]
    with meter("stand-ins", len(some)) as bar:
        fit(depth, some, stand_ins, bar)
    run.save("stand-ins", stand_ins.state_dict())
    return stand_ins


def unfitted(config: TrainConfig, depth: Depth, routers: Routers | None) -> StandIns:
    """Return stand-ins of no effect: for all layers, or those of given routers, normalised as these."""
    n_embd = depth.base.n_embd
    rank = min(config.stand_in_rank, n_embd)
    if routers is None:
        return StandIns(range(1, depth.n_layer), n_embd, rank, config.norm, config.norm_eps)
    return StandIns(routers.layers.tolist(), n_embd, rank, routers.norm, float(routers.norm_eps))


def make_adapter(config: TrainConfig, base: Base) -> Adapter | None:
    """Return the run's adapter, folded in, at ``--start``'s weights; None where there is none."""
    if not config.lora_steps and config.start is None:
        return None
    adapter = Adapter(
        base, config.lora_rank, config.lora_alpha, config.seed, config.rounding, config.round_every
    )
    if config.start is not None:
        adapter.load(config.start)
    adapter.fold()
    return adapter


def quality(
    depth: Depth,
    teacher: Depth,
    routers: LinearRouters,
    rungs: Sequence[tuple[float, float]],
    held: Sequence[Example],
) -> list[dict[str, float]]:
    """Measure held-out prompts at full depth and at some of the budgets, (fraction, threshold)."""
    wanted = [(fraction, threshold) for fraction, threshold in rungs if fraction in REPORTED]
    policies: list[MaskPolicy] = [Fixed([], depth.n_layer)]
    policies += [Routed(routers, [threshold], depth.n_layer) for _, threshold in wanted]
    budgets = [0.0, *(fraction for fraction, _ in wanted)]
    found = judge_each(depth, policies, teacher, held)
    return [{"budget": budget, **row} for budget, row in zip(budgets, found, strict=True)]


def provenance(
    config: TrainConfig, records: Sequence[Record], result: dict[str, Any]
) -> dict[str, TrainValue]:
    """Return what the run's folder and the GGUF file say of how the routers were made."""
    return {
        "method": "FiRST-style",
        "base": Path(config.base).name,
        "seed": config.seed,
        "stages": ", ".join(result["stages"]),
        "steps": result["steps"],
        "prompts": len(records),
        "data": ", ".join(path.parent.name or path.stem for path in config.data),
        "target_skip": config.target_skip,
        "held_out_loss": round(result["loss"], 6),
        "held_out_skip": round(result["skip_fraction"], 6),
    }
