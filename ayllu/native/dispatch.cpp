// Which machine level runs: the best that the processor offers and the compiler could build.

#include <cstring>
#include <initializer_list>

#if defined(AYLLU_X86_LEVELS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernel_table.h"

namespace ayllu {

namespace portable {
extern const Kernels TABLE;
}
#if defined(AYLLU_X86_LEVELS)
namespace avx2 {
extern const Kernels TABLE;
}
namespace avx512 {
extern const Kernels TABLE;
}
namespace amx {
extern const Kernels TABLE;
}

namespace {
// Linux gives a process the tile registers when it asks for them.
bool tiles_allowed() {
#if defined(__linux__)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}
bool has_avx512() {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}
bool has_amx() {
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    static const bool allowed = (d >> 24 & 1) && (d >> 25 & 1) && tiles_allowed();
    return allowed && has_avx512();
}
}  // namespace
#endif

const Kernels* kernels_of(const char* name) {
#if defined(AYLLU_X86_LEVELS)
    __builtin_cpu_init();
    if (!std::strcmp(name, amx::TABLE.name) && has_amx()) return &amx::TABLE;
    if (!std::strcmp(name, avx512::TABLE.name) && has_avx512()) return &avx512::TABLE;
    if (!std::strcmp(name, avx2::TABLE.name) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &avx2::TABLE;
#endif
    return std::strcmp(name, portable::TABLE.name) ? nullptr : &portable::TABLE;
}

const Kernels& kernels() {
    static const Kernels* best = [] {
        for (const char* name : {"AMX", "AVX-512", "AVX2"})
            if (const Kernels* table = kernels_of(name)) return table;
        return kernels_of("portable");
    }();
    return *best;
}

}  // namespace ayllu
