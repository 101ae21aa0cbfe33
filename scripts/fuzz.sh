#!/usr/bin/env bash
# Fuzzes both readers of model files: scripts/fuzz.sh SECONDS [FOLDER]
# Each runs for so many seconds; inputs that reached something new stay in FOLDER (build/fuzz), as does an input that
# fails. A reader that cannot be fuzzed here is skipped, with a line that says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: scripts/fuzz.sh SECONDS [FOLDER]}
folder=${2:-build/fuzz}
mkdir -p "$folder/python" "$folder/cpp"
common=("-max_total_time=$seconds" "-dict=$folder/gguf.dict" "-artifact_prefix=$folder/" -print_final_stats=1 "-seed=${FUZZ_SEED:-0}" -max_len=32768)

# the newest clang that can link a fuzzer, "" if there is none
find_clang() {
    local name scratch
    scratch=$(mktemp -d)
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char *, unsigned long) { return 0; }' > "$scratch/t.cpp"
    for name in clang++ $(compgen -c clang++- | grep -E '^clang\+\+-[0-9]+$' | sort -u -t- -k2 -rn); do
        if "$name" -fsanitize=fuzzer,address,undefined "$scratch/t.cpp" -o "$scratch/t" 2> /dev/null; then
            echo "$name"
            break
        fi
    done
    rm -rf "$scratch"
}

python -m tests.fuzz.seeds "$folder"

if python -c "import atheris" 2> /dev/null; then
    echo "== the Python reader, $seconds s"
    python -m tests.fuzz.fuzz_reader "$folder/python" "$folder/seeds" "${common[@]}"
else
    echo "== the Python reader: skipped, atheris is not installed (pip install atheris; Linux or macOS, Python 3.11 to 3.13)"
fi

clang=$(find_clang)
if [ -n "$clang" ]; then
    echo "== the C++ reader, $seconds s"
    tree=${FIRST_LLAMA_CPP_DIR:-$(scripts/unpacked_tree.sh)}
    cmake -S . -B "$folder/build" -DFIRST_BUILD_FUZZ=ON ${tree:+"-DFIRST_LLAMA_CPP_DIR=$(realpath "$tree")"} \
        -DCMAKE_C_COMPILER="${clang/++/}" -DCMAKE_CXX_COMPILER="$clang" > "$folder/build.log"
    cmake --build "$folder/build" --target fuzz_metadata >> "$folder/build.log"
    program=$folder/build/lib/fuzz_metadata
    "$program" "$folder/cpp" "$folder/seeds" "$folder/python" "${common[@]}"
    echo "== both readers on all of these files"
    python -m tests.fuzz.compare "$program" "$folder/seeds" "$folder/python" "$folder/cpp"
else
    echo "== the C++ reader: skipped, no clang that links fuzzers (Debian: apt install clang libclang-rt-dev)"
fi
