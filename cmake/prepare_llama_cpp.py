"""Lays out the patched llama.cpp tree that CMake compiles.

The tree comes from the pinned llama-cpp-python source distribution, fetched with pip and checked by its hash,
or from a folder that the user names. The patches of cpp/patches are applied to pristine copies of the files
they touch, and a file is written only if its content changes, so that running this again changes nothing and
rebuilds nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import patch_ng

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PREFIX = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
NOT_NEEDED = ("docs", "media", "models", ".git", ".github", "build")


class PrepareError(Exception):
    """Something that the person who builds has to mend; the message is one line."""


def say(message: str) -> None:
    """Print a line of progress; pip shows it with -v."""
    print(f"first-llama: {message}", flush=True)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_sdist(folder: Path) -> Path:
    """Return the pinned source distribution in folder, fetching it if it is not there yet."""
    target = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    if target.exists() and sha256_of(target) == SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fetching {PACKAGE} {VERSION} (73 MB) with pip")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        # its metadata is static, so the build backend that runs this script is all that pip needs
        command += ["--no-build-isolation", "--dest", scratch, f"{PACKAGE}=={VERSION}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise PrepareError(
                f"cannot fetch {PACKAGE} {VERSION}: {reason}; check the package index, or build from a local"
                " llama.cpp tree with -DFIRST_LLAMA_CPP_DIR=FOLDER"
            )
        fetched = next(Path(scratch).glob("*.tar.gz"), None)
        if fetched is None:
            raise PrepareError(f"pip fetched no source distribution of {PACKAGE} {VERSION}")
        digest = sha256_of(fetched)
        if digest != SHA256:
            raise PrepareError(
                f"{fetched.name} has SHA-256 {digest}, expected {SHA256}: not building from it"
            )
        fetched.replace(target)
    return target


def extract(sdist: Path, pristine: Path) -> None:
    """Unpack the llama.cpp tree of the source distribution into the folder pristine."""
    say("unpacking llama.cpp")
    scratch = pristine.with_name(pristine.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        # the safe filter came with security releases of each Python; without it the checked hash has to do
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        for member in archive:
            if not member.name.startswith(PREFIX):
                continue
            member.name = member.name[len(PREFIX) :]
            if member.name and member.name.split("/")[0] not in NOT_NEEDED:
                archive.extract(member, scratch)
    scratch.rename(pristine)


def copy_tree(source: Path, pristine: Path) -> None:
    """Copy a user's llama.cpp tree, so that theirs is never changed."""
    if not (source / "src" / "llama-graph.cpp").is_file():
        raise PrepareError(f"{source} is not a llama.cpp source tree (no src/llama-graph.cpp)")
    say(f"copying llama.cpp from {source}")

    def not_needed(folder: str, _: list[str]) -> set[str]:
        # at the top only: src/models is llama.cpp's graphs
        return set(NOT_NEEDED) if Path(folder) == source else set()

    shutil.copytree(source, pristine, dirs_exist_ok=True, ignore=not_needed)


def patched_contents(pristine: Path, patches: list[Path]) -> dict[str, bytes]:
    """Return path -> new content for every file that the patches touch."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        touched: set[str] = set()
        for patch in patches:
            files = set(re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.MULTILINE))
            for file in files - touched:
                if not (pristine / file).is_file():
                    raise PrepareError(f"{patch.name} does not apply: llama.cpp has no {file}")
                (scratch / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(pristine / file, scratch / file)
            touched |= files
            parsed = patch_ng.fromfile(str(patch))
            if not parsed or not parsed.apply(strip=1, root=str(scratch)):
                raise PrepareError(
                    f"{patch.name} does not apply to this llama.cpp tree; see CONTRIBUTING.md to refresh it"
                )
        return {file: (scratch / file).read_bytes() for file in touched}


def write_if_changed(path: Path, content: bytes) -> None:
    """Write content to path unless it is there already; the time stamp then stays, and nothing is rebuilt."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def mirror(pristine: Path, patched: Path, replaced: dict[str, bytes]) -> None:
    """Make patched a copy of pristine with the replaced files exchanged."""
    for path in pristine.rglob("*"):
        relative = path.relative_to(pristine)
        target = patched / relative
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif relative.as_posix() in replaced:
            write_if_changed(target, replaced[relative.as_posix()])
        elif not target.is_file() or target.stat().st_mtime != path.stat().st_mtime:
            shutil.copy2(path, target)


def prepare(out: Path, source: Path | None, patches: list[Path]) -> None:
    """Make out/pristine and out/patched."""
    pristine = out / "pristine"
    origin = f"folder {source}" if source else f"{PACKAGE} {VERSION} {SHA256}"
    stamp = out / "origin.txt"
    if not stamp.is_file() or stamp.read_text() != origin or source:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(pristine, ignore_errors=True)
        if source:
            copy_tree(source, pristine)
        else:
            extract(fetch_sdist(out), pristine)
        stamp.write_text(origin)
    say("applying " + ", ".join(patch.name for patch in patches))
    mirror(pristine, out / "patched", patched_contents(pristine, patches))


def main() -> int:
    """Run from CMakeLists.txt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make pristine/ and patched/ in")
    parser.add_argument("--source", type=Path, help="llama.cpp tree to use instead of the pinned release")
    parser.add_argument("--patches", type=Path, nargs="+", required=True, help="folders of *.patch files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        patches = [path for folder in arguments.patches for path in sorted(folder.glob("*.patch"))]
        prepare(arguments.out, arguments.source, patches)
    except (PrepareError, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
