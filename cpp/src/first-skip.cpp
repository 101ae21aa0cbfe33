// What to skip, as people write it: on a command line or in the environment variable FIRST_SKIP.

#include "first-context.h"

#include "first-parse.h"
#include "first-routers.h"

#include "llama-impl.h"

#include <cmath>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

static bool parse_layers(const std::string & text, std::vector<int32_t> & layers) {
    std::istringstream parts(text);
    std::string part;
    while (std::getline(parts, part, ',')) {
        int32_t il = 0;
        if (!first_parse_number(part, il)) {
            return false;
        }
        layers.push_back(il);
    }
    return !layers.empty() && text.back() != ',';
}

int32_t first_context::skip_auto() {
    if (!routers->valid) {
        return set_mode(FIRST_MODE_OFF);
    }
    const int32_t res = set_threshold(NAN);
    return res == FIRST_OK ? set_mode(FIRST_MODE_THRESHOLD) : res;
}

int32_t first_context::skip_fraction(const std::string & text) {
    float fraction = 0.0f;
    if (!first_parse_number(text, fraction) || !(fraction <= 1.0f)) {
        return FIRST_ERROR_ARGUMENT;
    }
    if (!routers->valid) {
        return FIRST_ERROR_NO_ROUTERS;
    }
    const int32_t res = set_budget(fraction);
    return res == FIRST_OK ? set_mode(FIRST_MODE_BUDGET) : res;
}

int32_t first_context::skip_layers(const std::string & text) {
    std::vector<int32_t> layers;
    if (!parse_layers(text, layers)) {
        return FIRST_ERROR_ARGUMENT;
    }
    const int32_t res = set_mask(layers.data(), (int32_t) layers.size());
    return res == FIRST_OK ? set_mode(FIRST_MODE_LIST) : res;
}

static const char * reason(int32_t error) {
    switch (error) {
        case FIRST_ERROR_NO_ROUTERS: return "a fraction needs routers in the model file; list the layers instead";
        case FIRST_ERROR_LAYER:      return "one of these layers may not be skipped, or no layer of its kind would remain";
        default:                     return "give auto, off, a fraction such as 0.2, or layers such as 3,5,7";
    }
}

int32_t first_context::set_skip(const std::string & text) {
    int32_t res;
    if (text == "auto") {
        res = skip_auto();
    } else if (text == "off") {
        res = set_mode(FIRST_MODE_OFF);
    } else if (text.find('.') != std::string::npos) {
        res = skip_fraction(text);
    } else {
        res = skip_layers(text);
    }
    if (res != FIRST_OK) {
        LLAMA_LOG_ERROR("first: skip %s: %s\n", text.c_str(), reason(res));
    }
    return res;
}
