#!/usr/bin/env bash
# Another release of llama-cpp-python: does the patch fit its llama.cpp, and do the oracles hold with its binding?
#   scripts/try_release.sh                 the newest release
#   scripts/try_release.sh 0.3.35 -x       that one; what follows goes to pytest
# Hunks that only moved are placed by patch(1), and the patch for that release is left in build/release/VERSION/patches.
# It wants this repository's [test] extra, CMake and patch. Nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:-}
[ $# = 0 ] || shift
patch=$PWD/cpp/patches/0001-hooks.patch
work=$PWD/build/release/${version:-newest}
tree=$work/source/vendor/llama.cpp
mkdir -p "$work"

echo "== fetching llama-cpp-python ${version:-(newest)}"
rm -rf "$work/sdist" "$work/source"
pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$work/sdist" "llama-cpp-python${version:+==$version}"
mkdir "$work/source"
tar -xzf "$work"/sdist/*.tar.gz --strip-components=1 -C "$work/source"
ls "$work/sdist"

echo "== the patch on its llama.cpp"
rm -rf "$work/a" "$work/b" "$work/patches"
mkdir "$work/a" "$work/b" "$work/patches"
while read -r file; do
    for side in a b; do
        mkdir -p "$work/$side/$(dirname "$file")"
        cp "$tree/$file" "$work/$side/$file"
    done
done < <(sed -nE 's|^\+\+\+ b/([^[:space:]]+).*|\1|p' "$patch")
if ! (cd "$work/b" && patch -p1 --fuzz=3 --no-backup-if-mismatch < "$patch"); then
    echo "error: these hunks have to be placed by hand, see CONTRIBUTING.md:" >&2
    find "$work/b" -name '*.rej' -exec cat {} + >&2
    exit 1
fi
(cd "$work" && LC_ALL=C diff -ru a b | sed -E 's/^((---|\+\+\+) [^\t]*)\t.*/\1/' > patches/0001-hooks.patch) || true

echo "== building it, patched and unpatched"
cmake -S . -B "$work/build" -DFIRST_LLAMA_CPP_DIR="$tree" -DFIRST_PATCHES="$work/patches" -DFIRST_BUILD_STOCK=ON \
    -DPython3_EXECUTABLE="$(command -v python)"
cmake --build "$work/build" --target first --parallel "$(getconf _NPROCESSORS_ONLN)"
cmake --install "$work/build" --prefix "$work/install" > /dev/null

echo "== its binding with that library, against the unpatched one and files without the blocks"
rm -rf "$work/python"
mkdir "$work/python"
cp -r "$work/source/llama_cpp" "$work/python/llama_cpp"
export PYTHONPATH=$work/python FIRST_LLAMA_LIB=$work/install/first_llama/lib
python -c 'import first_llama, llama_cpp; first_llama.Llama; print("llama_cpp", llama_cpp.__version__, llama_cpp.__file__)'
# two of the tests there want llama.cpp's tools
python -m pytest -q tests/cpp tests/test_llama.py tests/test_llama_reuse.py \
    --ignore tests/cpp/test_architectures.py --ignore tests/cpp/test_quantize.py "$@"
