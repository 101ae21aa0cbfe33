#pragma once

#include <cctype>
#include <locale>
#include <sstream>
#include <string>

// All of text as one number that is not negative, whatever the locale of the program is.
template <typename T>
bool first_parse_number(const std::string & text, T & value) {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    in >> std::noskipws >> value;
    return !text.empty() && std::isdigit((unsigned char) text[0]) && !in.fail() && in.peek() == EOF;
}
