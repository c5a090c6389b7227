// The binding of the packed matrices and of the decode step. Addresses come from torch tensors that
// ayllu/engine/executors/native.py keeps alive and whose sizes it has checked.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "step.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace ayllu;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// (data, bias or 0, rows, columns, format)
Matrix matrix(nb::handle h) {
    const nb::tuple t = nb::cast<nb::tuple>(h);
    Matrix m;
    m.data = at<const uint8_t>(nb::cast<Address>(t[0]));
    m.bias = at<const float>(nb::cast<Address>(t[1]));
    m.rows = nb::cast<size_t>(t[2]), m.columns = nb::cast<size_t>(t[3]);
    m.format = Format(nb::cast<int>(t[4]));
    return m;
}

template <class T>
T get(const nb::dict& d, const char* key, T otherwise) {
    return d.contains(key) ? nb::cast<T>(d[key]) : otherwise;
}

const float* floats(const nb::dict& d, const char* key) { return at<const float>(get<Address>(d, key, 0)); }

void read_matrix(const nb::dict& d, const char* key, Matrix& into) {
    if (d.contains(key)) into = matrix(d[key]);
}

Layer layer_of(const nb::dict& d) {
    Layer l;
    l.attention_norm = floats(d, "attention_norm"), l.mlp_norm = floats(d, "mlp_norm");
    l.q_norm = floats(d, "q_norm"), l.k_norm = floats(d, "k_norm");
    read_matrix(d, "qkv", l.qkv), read_matrix(d, "out", l.out);
    read_matrix(d, "gate_up", l.gate_up), read_matrix(d, "down", l.down);
    l.heads = get<size_t>(d, "heads", 0), l.kv_heads = get<size_t>(d, "kv_heads", 0), l.dim = get<size_t>(d, "dim", 0);
    l.window = get<size_t>(d, "window", 0), l.chunk = get<size_t>(d, "chunk", 0), l.scale = get<float>(d, "scale", 1.f);
    l.rotary = get<bool>(d, "rotary", true), l.interleaved = get<bool>(d, "interleaved", false);
    l.rotary_dim = get<size_t>(d, "rotary_dim", 0), l.table = get<size_t>(d, "table", 0);
    if (!d.contains("experts")) return l;
    const nb::dict moe = nb::cast<nb::dict>(d["experts"]);
    Experts& e = l.experts;
    e.count = get<size_t>(moe, "count", 0), e.active = get<size_t>(moe, "active", 0);
    e.sigmoid = get<bool>(moe, "sigmoid", false), e.normalise = get<bool>(moe, "normalise", true);
    e.scale = get<float>(moe, "scale", 1.f);
    e.groups = get<size_t>(moe, "groups", 1), e.active_groups = get<size_t>(moe, "active_groups", 1);
    e.group_top2 = get<bool>(moe, "group_top2", false), e.choice_bias = floats(moe, "choice_bias");
    read_matrix(moe, "router", e.router);
    read_matrix(moe, "shared_gate_up", e.shared_gate_up), read_matrix(moe, "shared_down", e.shared_down);
    for (nb::handle m : nb::cast<nb::list>(moe["gate_up"])) e.gate_up.push_back(matrix(m));
    for (nb::handle m : nb::cast<nb::list>(moe["down"])) e.down.push_back(matrix(m));
    return l;
}

}  // namespace

void bind_engine(nb::module_& m) {
    m.def("runs", [](const std::string& level) { return kernels_of(level.c_str()) != nullptr; });
    m.def("compute_level", [] { return std::string(kernels().name); });
    m.def("packed_bytes", [](size_t rows, size_t columns, int format) {
        return Matrix{nullptr, nullptr, rows, columns, Format(format)}.bytes();
    });
    m.def(
        "pack",
        [](Address weights, bool from_bf16, size_t rows, size_t columns, int format, Address out) {
            pack(at<void>(weights), from_bf16, rows, columns, Format(format), at<uint8_t>(out));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "pack_blocks",
        [](Address blocks, size_t rows, size_t columns, int format, Address out) {
            pack_blocks(at<uint8_t>(blocks), rows, columns, Format(format), at<uint8_t>(out));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def("unpack_rows", [](nb::tuple packed, size_t first, size_t count, Address out) {
        const Matrix w = matrix(packed);
        for (size_t r = 0; r < count; ++r) unpack_row(w, first + r, at<float>(out) + r * w.columns);
    });
    // For tests: one product on one thread at a named level; false where this machine lacks it.
    m.def("matmul_at_level", [](const std::string& level, nb::tuple packed, Address x, size_t rows, Address y) {
        const Kernels* k = kernels_of(level.c_str());
        if (!k) return false;
        const Matrix w = matrix(packed);
        const size_t stride = w.superblocks() * SUPERBLOCK, groups = stride / GROUP;
        std::vector<float> f32(rows * stride, 0.f), scales(rows * groups);
        std::vector<int8_t> q(rows * stride);
        std::vector<int32_t> sums(rows * groups);
        for (size_t r = 0; r < rows; ++r) {
            for (size_t c = 0; c < w.columns; ++c) f32[r * stride + c] = at<float>(x)[r * w.columns + c];
            k->quantise(f32.data() + r * stride, w.columns, q.data() + r * stride, scales.data() + r * groups,
                        sums.data() + r * groups, w.format == INT4 ? 8 : 128);
        }
        const Activations a{f32.data(), q.data(), scales.data(), sums.data(), stride};
        k->matmul(w, a, rows, at<float>(y), round_up(w.rows, LANES), false, 0, w.blocks());
        return true;
    });

    nb::class_<Model>(m, "Model")
        .def("__init__",
             [](Model* self, size_t width, float eps, int cache_type, const std::string& level) {
                 new (self) Model();
                 self->width = width, self->eps = eps, self->cache_type = Format(cache_type);
                 self->kernels = &kernels_at(level.c_str());
             })
        .def("set_outer",
             [](Model& model, nb::tuple embedding, nb::tuple head, Address norm) {
                 model.embedding = matrix(embedding), model.head = matrix(head), model.norm = at<const float>(norm);
             })
        .def("add_layer", [](Model& model, const nb::dict& d) { model.add_layer(layer_of(d)); })
        .def("set_tables",
             [](Model& model, nb::list tables) {
                 model.tables.clear();
                 for (nb::handle h : tables) {
                     const nb::tuple t = nb::cast<nb::tuple>(h);
                     model.tables.push_back({at<float>(nb::cast<Address>(t[0])), at<float>(nb::cast<Address>(t[1]))});
                 }
             })
        .def("set_cache", [](Model& model, Address cache) { model.cache = at<uint8_t>(cache); })
        .def_prop_ro("cache_block_bytes", &Model::cache_block_bytes)
        .def(
            "step",
            [](Model& model, Address ids, Address positions, Address sequence, size_t tokens, Address block_tables,
               size_t table_width, Address wanted_rows, size_t wanted, Address logits) {
                Batch batch;
                batch.tokens = tokens, batch.wanted = wanted, batch.table_width = table_width;
                batch.ids = at<int32_t>(ids), batch.positions = at<int32_t>(positions);
                batch.sequence = at<int32_t>(sequence), batch.block_tables = at<int32_t>(block_tables);
                batch.wanted_rows = at<int32_t>(wanted_rows), batch.logits = at<float>(logits);
                model.step(batch);
            },
            nb::call_guard<nb::gil_scoped_release>());
}
