#include "first-backends.h"

#ifdef GGML_BACKEND_DL

#include "ggml-backend.h"

#include <filesystem>
#include <string>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

// Path of the library that this function is linked into; empty if the system does not tell.
static std::filesystem::path own_path() {
#ifdef _WIN32
    HMODULE module = nullptr;
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(flags, (LPCWSTR) &first_load_backends, &module)) {
        return {};
    }
    std::wstring path(32768, L'\0');
    path.resize(GetModuleFileNameW(module, path.data(), (DWORD) path.size()));
    return path;
#else
    Dl_info info;
    if (dladdr((const void *) &first_load_backends, &info) == 0 || info.dli_fname == nullptr) {
        return {};
    }
    return info.dli_fname;
#endif
}

void first_load_backends() {
    if (ggml_backend_reg_count() > 0) {
        return;
    }
    const std::filesystem::path folder = own_path().parent_path();
    if (!folder.empty()) {
        ggml_backend_load_all_from_path((const char *) folder.u8string().c_str());
    }
}

#else

void first_load_backends() {
}

#endif
