#!/usr/bin/env bash
# A wheel as its user meets it: scripts/wheel_check.sh WHEEL [CPU ...]
# Installs it with the default model into an empty environment where no compiler is on PATH, asks it something, and says
# how long that took. With names of x86-64 processors (Nehalem Haswell) it answers on each of them, under qemu-x86_64-static.
set -euo pipefail

wheel=$(realpath "${1:?usage: scripts/wheel_check.sh WHEEL [CPU ...]}")
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
qemu=$(command -v qemu-x86_64-static || true)
python=${PYTHON:-python3}
binding=$(sed -nE 's/.*"(llama-cpp-python==[0-9.]+)".*/\1/p' "$(dirname "$0")/../pyproject.toml")

now() {
    date +%s.%N
}

"$python" -m venv "$work/venv"
# what pip needs to find its packages, and nothing else
settings=(HOME="$work" PATH="$work/venv/bin")
while IFS='=' read -r name value; do
    settings+=("$name=$value")
done < <(env | grep -E '^(PIP_|HTTPS?_PROXY|https?_proxy|SSL_)' || true)
bare() {
    env -i "${settings[@]}" "$@"
}

for tool in cc gcc c++ g++ clang cmake ninja make; do
    if bare /bin/sh -c "command -v $tool" > /dev/null; then
        echo "error: $tool is on the PATH of the empty environment" >&2
        exit 1
    fi
done
start=$(now)
bare pip install --quiet --config-settings=wheel.cmake=false "$binding" "$wheel[demo]"
installed=$(now)
cd "$work"
bare first-llama run -n 64 --temp 0 "Why is the sky blue?"
answered=$(now)
bare first-llama run -n 64 --temp 0 "Why is the sky blue?" > /dev/null
again=$(now)
bare first-llama doctor
echo "$start $installed $answered $again" | awk '{ printf "seconds: %.1f to install, %.1f to the first answer after that, %.1f for the next one\n", $2 - $1, $3 - $2, $4 - $3 }'

for cpu in "$@"; do
    [ -n "$qemu" ] || { echo "error: qemu-x86_64-static is missing (Debian: apt install qemu-user-static)" >&2; exit 1; }
    echo "== $cpu"
    bare "$qemu" -cpu "$cpu" "$work/venv/bin/python" -m first_llama doctor 2> /dev/null | grep -E '^(CPU backend|features)'
    bare "$qemu" -cpu "$cpu" "$work/venv/bin/python" -m first_llama run -n 16 --temp 0 "Why is the sky blue?" 2> /dev/null
done
