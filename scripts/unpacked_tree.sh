#!/usr/bin/env bash
# Prints where an installation from this folder unpacked llama.cpp, or nothing; a build that is told so need not fetch it.
cd "$(dirname "$0")/.." || exit
for tree in "$PWD"/build/py3-*/llama.cpp/pristine; do
    [ -f "$tree/src/llama-graph.cpp" ] && echo "$tree" && exit
done
exit 0
