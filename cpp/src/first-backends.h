#pragma once

// Backends that are libraries of their own (GGML_BACKEND_DL), such as one CPU backend for each kind of processor.

// Loads the best of each kind from the folder that libllama itself lies in, unless some backend is there already.
// Upstream looks beside the executable and in the current folder, which for Python are anyone's. Nothing is done where
// the backends are linked in.
void first_load_backends();
