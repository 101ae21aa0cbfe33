#include "first-strings.h"

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

// gguf.h gives lengths of arrays but none of strings; only a serialized header has them. It is gguf.cpp's own work and
// could be trusted, but every step is checked against its end all the same.

namespace {

// Bytes of a number in a file; 0 for what is no number.
size_t size_of(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:   return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64: return 8;
        default:                return 0;
    }
}

struct header_walker {
    const std::vector<char> & data;
    size_t                    at = 0;
    bool                      ok = true;

    bool step(uint64_t n_bytes) {
        ok = ok && n_bytes <= data.size() - at;
        at += ok ? (size_t) n_bytes : 0;
        return ok;
    }

    template <typename T> T number() {
        T value = 0;
        const size_t start = at;
        if (step(sizeof(T))) {
            memcpy(&value, data.data() + start, sizeof(T));
        }
        return value;
    }

    std::string_view text() {
        const uint64_t size  = number<uint64_t>();
        const size_t   start = at;
        return step(size) ? std::string_view(data.data() + start, (size_t) size) : std::string_view();
    }

    // Steps over a value and returns it if it is one string.
    std::string_view value() {
        gguf_type type = (gguf_type) number<int32_t>();
        if (type == GGUF_TYPE_STRING) {
            return text();
        }
        uint64_t n = 1;
        if (type == GGUF_TYPE_ARRAY) {
            type = (gguf_type) number<int32_t>();
            n    = number<uint64_t>();
        }
        if (type == GGUF_TYPE_STRING) {
            for (uint64_t i = 0; ok && i < n; i++) {
                text();
            }
        } else {
            const size_t size = size_of(type);
            ok = ok && size > 0 && n <= data.size() / size;
            step(ok ? n * size : 0);
        }
        return {};
    }
};

// Upstream pads the header that it gives back to the file's alignment, which may be 2^31.
const size_t MAX_ALIGNMENT = 1 << 20;

bool is_word(std::string_view key) {
    return key == "first.router.norm" || key == "first.pooling" || key == "first.base";
}

} // namespace

bool first_strings_whole(const gguf_context * gguf, std::string & error) {
    if (gguf_get_alignment(gguf) > MAX_ALIGNMENT) {
        error = "general.alignment is above " + std::to_string(MAX_ALIGNMENT);
        return false;
    }
    std::vector<char> data(gguf_get_meta_size(gguf));
    gguf_get_meta_data(gguf, data.data());

    header_walker walker { data };
    walker.step(4 + sizeof(uint32_t) + sizeof(int64_t)); // magic, version, number of tensors
    const int64_t n_kv = walker.number<int64_t>();
    for (int64_t i = 0; walker.ok && i < n_kv; i++) {
        const std::string_view key   = walker.text();
        const std::string_view value = walker.value();
        if (key.substr(0, 6) == "first." && key.find('\0') != key.npos) {
            error = "the name of a first.* key has a zero byte"; // the name itself could steer a terminal
            return false;
        }
        if (is_word(key) && value.find('\0') != value.npos) {
            error = "key " + std::string(key) + " has a zero byte in its value";
            return false;
        }
    }
    if (!walker.ok) {
        error = "the metadata cannot be read";
    }
    return walker.ok;
}
