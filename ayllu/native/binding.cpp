// The one binding file. Addresses come from torch tensors, whose types and shapes ayllu/native/ops.py
// has checked; nothing else may call these functions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"

namespace nb = nanobind;
void bind_engine(nb::module_& m);  // binding_engine.cpp
using Address = uintptr_t;
using namespace nb::literals;

template <class T>
static T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

static const char* machine_level() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return "AVX-512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "AVX2";
#endif
    return "portable";
}

// The training kernels for activations of one type.
template <class T>
static void bind_training(nb::module_ m) {
    using Kernels = ayllu::Training<T>;
    using nb::gil_scoped_release;
    m.def(
        "cross_entropy",
        [](Address logits, Address targets, Address weights, Address losses, Address entropies, size_t rows,
           size_t vocab) {
            Kernels::cross_entropy(at<T>(logits), at<int64_t>(targets), at<float>(weights), at<float>(losses),
                                 at<float>(entropies), rows, vocab);
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "rms_norm",
        [](Address x, Address w, Address y, Address scales, float eps, size_t rows, size_t width) {
            Kernels::rms_norm(at<T>(x), at<float>(w), at<T>(y), at<float>(scales), eps, rows, width);
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "rms_norm_backward",
        [](Address dy, Address x, Address w, Address scales, Address dx, Address dw, size_t rows, size_t width) {
            Kernels::rms_norm_backward(at<T>(dy), at<T>(x), at<float>(w), at<float>(scales),
                                     at<T>(dx), at<float>(dw), rows, width);
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "swiglu",
        [](Address gate_up, Address y, size_t rows, size_t hidden) {
            Kernels::swiglu(at<T>(gate_up), at<T>(y), rows, hidden);
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "swiglu_backward",
        [](Address dy, Address gate_up, Address d, size_t rows, size_t hidden) {
            Kernels::swiglu_backward(at<T>(dy), at<T>(gate_up), at<T>(d), rows, hidden);
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "attention",
        [](Address q, Address k, Address v, Address starts, Address y, Address log_sums, size_t batches, size_t length,
           size_t heads, size_t kv_heads, size_t dim, const std::string& level) {
            const ayllu::Heads h{batches, length, heads, kv_heads, dim, 0.f, 1.f};
            Kernels::attention(ayllu::kernels_at(level.c_str()), h, at<T>(q), at<T>(k), at<T>(v),
                               at<int32_t>(starts), at<T>(y), at<float>(log_sums));
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "attention_backward",
        [](Address dy, Address q, Address k, Address v, Address starts, Address log_sums, Address dq, Address dk,
           Address dv, size_t batches, size_t length, size_t heads, size_t kv_heads, size_t dim,
           const std::string& level) {
            const ayllu::Heads h{batches, length, heads, kv_heads, dim, 0.f, 1.f};
            Kernels::attention_backward(ayllu::kernels_at(level.c_str()), h, at<T>(dy), at<T>(q), at<T>(k),
                                        at<T>(v), at<int32_t>(starts), at<float>(log_sums), at<T>(dq), at<T>(dk),
                                        at<T>(dv));
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "split_heads",
        [](Address qkv, Address q_weight, Address k_weight, Address cosine, Address sine, Address q, Address k,
           Address v, Address scales, size_t batches, size_t length, size_t heads, size_t kv_heads, size_t dim,
           float eps, float query_scale) {
            const ayllu::Heads h{batches, length, heads, kv_heads, dim, eps, query_scale};
            Kernels::split_heads(h, at<T>(qkv), at<float>(q_weight), at<float>(k_weight), at<float>(cosine),
                               at<float>(sine), at<T>(q), at<T>(k), at<T>(v), at<float>(scales));
        },
        nb::call_guard<gil_scoped_release>());
    m.def(
        "split_heads_backward",
        [](Address dq, Address dk, Address dv, Address qkv, Address q_weight, Address k_weight, Address cosine,
           Address sine, Address scales, Address d, Address d_weights, size_t batches, size_t length, size_t heads,
           size_t kv_heads, size_t dim, float eps, float query_scale) {
            const ayllu::Heads h{batches, length, heads, kv_heads, dim, eps, query_scale};
            Kernels::split_heads_backward(h, at<T>(dq), at<T>(dk), at<T>(dv), at<T>(qkv),
                                        at<float>(q_weight), at<float>(k_weight), at<float>(cosine), at<float>(sine),
                                        at<float>(scales), at<T>(d), at<float>(d_weights));
        },
        nb::call_guard<gil_scoped_release>());
}

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);
    using nb::gil_scoped_release;
    m.def("machine_level", &machine_level);
    bind_engine(m);
    m.def("use_openmp", &ayllu::use_openmp, "library"_a, "threads"_a);
    m.def("thread_count", &ayllu::thread_count);
    bind_training<uint16_t>(m.def_submodule("bf16"));
    bind_training<float>(m.def_submodule("f32"));
    m.def(
        "sample",
        [](Address logits, Address temperatures, Address uniforms, Address tokens, Address logprobs, size_t rows,
           size_t vocab) {
            ayllu::sample(at<float>(logits), at<float>(temperatures), at<double>(uniforms), at<int64_t>(tokens),
                          at<float>(logprobs), rows, vocab);
        },
        nb::call_guard<gil_scoped_release>());
}
