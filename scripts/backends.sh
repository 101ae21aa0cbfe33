#!/usr/bin/env bash
# The oracles on another of ggml's backends: switched off it is the unpatched library there, and a mask is a file
# without those blocks, with all layers on the device and with the last ones.
#   scripts/backends.sh vulkan          the first Vulkan device; Mesa's software driver is one
#   scripts/backends.sh blas            OpenBLAS: the matrix products of prompts
#   scripts/backends.sh cuda -x         or hip, metal, sycl; what follows goes to pytest
#   CMAKE_ARGS=-DVulkan_INCLUDE_DIR=... scripts/backends.sh vulkan    other switches of CMake's
# It wants this repository's [test] extra, CMake, and what ggml wants of the system: for Vulkan on Debian
# libvulkan-dev, glslc, spirv-headers and mesa-vulkan-drivers (Debian 12's Vulkan headers are too old: those of
# Debian 13's libvulkan-dev, unpacked anywhere, will do), for BLAS libopenblas-dev and pkg-config.
# Nothing is installed; everything is in build/backends.
set -euo pipefail
cd "$(dirname "$0")/.."

backend=${1:-}
case $backend in
    blas) switches=(-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS) ;;
    vulkan | cuda | hip | metal | sycl) switches=("-DGGML_$(tr a-z A-Z <<< "$backend")=ON") ;;
    *)
        echo "usage: scripts/backends.sh vulkan|blas|cuda|hip|metal|sycl [arguments of pytest]" >&2
        exit 2
        ;;
esac
shift
work=$PWD/build/backends/$backend

echo "== building for $backend, patched and unpatched"
tree=$(scripts/unpacked_tree.sh)
# shellcheck disable=SC2086
cmake -S . -B "$work" ${CMAKE_ARGS:-} -DFIRST_BUILD_STOCK=ON -DPython3_EXECUTABLE="$(command -v python)" "${switches[@]}" \
    ${tree:+-DFIRST_LLAMA_CPP_DIR="$tree"}
cmake --build "$work" --target first --parallel "$(getconf _NPROCESSORS_ONLN)"
cmake --install "$work" --prefix "$work/install" > /dev/null
export FIRST_LLAMA_LIB=$work/install/first_llama/lib
# left to itself ggml passes over software drivers
[ "$backend" = vulkan ] && export GGML_VK_VISIBLE_DEVICES=${GGML_VK_VISIBLE_DEVICES:-0}
found=$(python -m first_llama doctor)
echo "$found"
if ! grep -qE '^devices .*(GPU|accelerator)' <<< "$found"; then
    echo "error: the library finds no device for $backend" >&2
    exit 1
fi

echo "== $backend: the tests"
if [ "$backend" = blas ]; then
    # On this processor every test may use it. In one, the last kept layer has all rows of a prompt here and one row there:
    # BLAS computes the first in F32, the CPU's kernel the second with activations of 8 bits.
    tests=(tests/cpp/test_{oracle,skip,route,rows,sequences,shift,state}.py tests/test_llama.py
        --deselect "tests/cpp/test_oracle.py::test_smollm2_mask_equals_removed_blocks[[3, 4, 5, 12, 16, 17, 18, 26, 29]]")
else
    tests=(tests/cpp/test_device.py)
fi
FIRST_TEST_DEVICE=1 python -m pytest -q -p no:cacheprovider "${tests[@]}" "$@"
echo "$backend: all of it passed"
