// Which machine level runs: the best that the processor offers and the compiler could build.

#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

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
#endif

const Kernels* kernels_of(const char* name) {
#if defined(AYLLU_X86_LEVELS)
    __builtin_cpu_init();
    if (!std::strcmp(name, avx512::TABLE.name) && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return &avx512::TABLE;
    if (!std::strcmp(name, avx2::TABLE.name) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        return &avx2::TABLE;
#endif
    return std::strcmp(name, portable::TABLE.name) ? nullptr : &portable::TABLE;
}

const Kernels& kernels() {
    static const Kernels* best = [] {
        for (const char* name : {"AVX-512", "AVX2"})
            if (const Kernels* table = kernels_of(name)) return table;
        return kernels_of("portable");
    }();
    return *best;
}

const Kernels& kernels_at(const char* name) {
    const Kernels* found = *name ? kernels_of(name) : &kernels();
    if (!found) throw std::runtime_error(std::string("this machine can't run ") + name);
    return *found;
}

}  // namespace ayllu
