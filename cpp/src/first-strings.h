#pragma once

// Zero bytes in strings: what the getters of gguf.h cannot show.

#include "gguf.h"

#include <string>

// Looks for a zero byte in the name of a first.* key, or in the value of one that a reader compares with a word. The
// getters return C strings, so "rms\0x" would pass for "rms", and the key "first.threshold\0x" for "first.threshold".
// Returns false and says where in error if there is one.
bool first_strings_whole(const struct gguf_context * gguf, std::string & error);
