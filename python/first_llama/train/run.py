"""A training run's folder: settings, log, versions and checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import weakref
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from first_llama.claim import claim
from first_llama.errors import FirstError
from first_llama.train.config import TrainConfig

#: Settings that change how a run is computed but not what it computes.
NEUTRAL = {"threads", "checkpoint_every", "micro", "checkpointing"}

RESULT_FILE = "result.json"


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the settings that a run keeps in its folder; empty if it does not, or there is none."""
    path = _settings_file(folder)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def load_checkpoint(folder: Path, name: str) -> Any:
    """Return what a run saved by a name, or None."""
    path = _checkpoint_file(folder, name)
    return torch.load(path, weights_only=True) if path.exists() else None


def _checkpoint_file(folder: Path, name: str) -> Path:
    return folder / "checkpoint" / f"{name}.pt"


def _settings_file(folder: Path) -> Path:
    return folder / "checkpoint" / "settings.json"


class Run:
    """A run's folder."""

    def __init__(self, folder: Path, config: TrainConfig, writes: bool = True) -> None:
        """Make the folder, or take one that the same settings made; of many processes one ``writes``.

        Raises:
            FirstError: if the folder cannot be made, or holds another run, or another process writes there.
        """
        self.folder, self.config, self.writes = folder, config, writes
        self.checkpoint = folder / "checkpoint"
        try:
            self.checkpoint.mkdir(parents=True, exist_ok=True)
            if writes:
                lock = (self.checkpoint / "lock").open("wb")
                weakref.finalize(self, lock.close)
                claim(lock, folder)
        except OSError as error:
            raise FirstError(f"{folder}: cannot make the folder ({error.strerror})") from None
        self._settle()

    def _settle(self) -> None:
        """Make sure that what is in the folder came from the same settings (threads do not matter)."""
        now = self.config.model_dump(mode="json", exclude=NEUTRAL)
        before = settings_of(self.folder)
        if before:
            # A setting that the run's version did not know had what is now its default.
            plain = TrainConfig.model_construct(base=self.config.base).model_dump(mode="json")
            changed = sorted(name for name in now if before.get(name, plain[name]) != now[name])
            if changed:
                names = ", ".join(changed)
                raise FirstError(
                    f"{self.folder} holds a run with other settings ({names}); choose another folder"
                )
        if self.writes:
            replace_text(_settings_file(self.folder), json.dumps(now, indent=2) + "\n")

    def log(self, stage: str, **values: Any) -> None:
        """Append one record to log.jsonl."""
        if not self.writes:
            return
        line = json.dumps({"stage": stage, "time": round(time.time(), 1), **values})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, name: str, value: Any) -> None:
        """Write a checkpoint whole or not at all."""
        if not self.writes:
            return
        path = _checkpoint_file(self.folder, name)
        part = path.with_suffix(".part")
        torch.save(value, part)
        os.replace(part, path)

    def step(self, name: str, record: dict[str, float], steps: int, state: Callable[[], Any]) -> None:
        """Log a step of a stage, and save the stage's state by its name when it is time, or was the last."""
        self.log(name, **record)
        if record["step"] % self.config.checkpoint_every == 0 or record["step"] == steps:
            self.save(name, state())

    def load(self, name: str) -> Any:
        """Return a checkpoint, or None."""
        return load_checkpoint(self.folder, name)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        if self.writes:
            replace_text(self.folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def circumstances(config: TrainConfig) -> dict[str, Any]:
    """Return what a run's numbers depend on besides its settings: versions, threads, the data's hashes."""
    packages = ("first-llama", "torch", "transformers", "peft", "accelerate", "numpy", "gguf")
    return {
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "data": {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in config.data if path.is_file()
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
