#!/usr/bin/env bash
# The whole library under AddressSanitizer and UndefinedBehaviorSanitizer, in every test that runs it.
#   scripts/sanitized.sh                 all of them
#   scripts/sanitized.sh tests/cpp -x    what follows goes to pytest instead
# It wants gcc and this repository's [test] extra, CMake and Ninja. Nothing is installed; everything is in build/sanitized.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/sanitized
# Left out: what wants llama.cpp's tools, and what starts them, since those here would not be sanitized.
tests=(tests/cpp tests/test_llama.py tests/test_llama_features.py tests/test_llama_reuse.py tests/test_llama_speculation.py
    tests/test_llama_turns.py tests/test_library.py tests/bench tests/cli/test_run.py tests/cli/test_chat.py
    --ignore tests/cpp/test_rpc.py --ignore tests/cpp/test_architectures.py --ignore tests/bench/test_clients.py)

echo "== building with sanitizers"
tree=$(scripts/unpacked_tree.sh)
cmake -G Ninja -S . -B "$work" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFIRST_BUILD_STOCK=ON \
    -DLLAMA_SANITIZE_ADDRESS=ON -DLLAMA_SANITIZE_UNDEFINED=ON -DGGML_SANITIZE_ADDRESS=ON -DGGML_SANITIZE_UNDEFINED=ON \
    -DPython3_EXECUTABLE="$(command -v python)" ${tree:+-DFIRST_LLAMA_CPP_DIR="$tree"}
cmake --build "$work" --target first --parallel "$(getconf _NPROCESSORS_ONLN)"
cmake --install "$work" --prefix "$work/install" > /dev/null

echo "== tests with the sanitized library"
export FIRST_LLAMA_LIB=$work/install/first_llama/lib
[ $# = 0 ] && set -- "${tests[@]}"
# upstream's reader holds a file's number in an enum before it looks whether there is such a type
echo "enum:gguf.cpp" > "$work/ubsan.txt"
# Python itself frees nothing at its end. A report of UBSan ends the process as one of ASan does, so no test can miss it.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:max_allocation_size_mb=6144
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:suppressions=$work/ubsan.txt
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    python -m pytest -q -p no:cacheprovider "$@"
echo "sanitized: all of it passed"
