// The step and the paged cache: a token's keys and values are put into their places, and its queries attend to what
// lies there.

#include <cmath>
#include <cstring>

#include "scalar.h"
#include "scratch.h"

namespace ayllu {

void Model::add_layer(Layer layer) {
    offsets_.push_back(block_bytes_);
    block_bytes_ += layer.kv_heads * 2 * head_bytes(cache_type, round_up(layer.dim, LANES));
    layers.push_back(std::move(layer));
}

uint8_t* Model::cached(size_t block, size_t layer, size_t head) const {
    return cache + block * block_bytes_ + offsets_[layer] +
           head * 2 * head_bytes(cache_type, round_up(layers[layer].dim, LANES));
}

namespace {

void rotate(float* head, const Layer& l, const float* cosine, const float* sine) {
    const size_t half = l.rotary_dim / 2;
    const size_t step = l.interleaved ? 2 : 1, across = l.interleaved ? 1 : half;
    for (size_t i = 0; i < half; ++i) {
        float &a = head[i * step], &b = head[i * step + across];
        const float left = a * cosine[i] - b * sine[i], right = b * cosine[i] + a * sine[i];
        a = left, b = right;
    }
}

// One key or value of a token into its place of a cache block.
void put(uint8_t* to, Format type, size_t dim, size_t padded, size_t slot, const float* x, bool key) {
    if (type == INT8) {
        float top = 0.f;
        for (size_t d = 0; d < dim; ++d) top = std::max(top, std::fabs(x[d]));
        const float inverse = top > 0.f ? 127.f / top : 0.f, scale = top / 127.f;
        std::memcpy(to + padded * CACHE_TOKENS + slot * 4, &scale, 4);
        for (size_t d = 0; d < padded; ++d) {
            const int v = d < dim ? int(std::nearbyint(x[d] * inverse)) : 0;
            if (key)
                to[d / 4 * 64 + slot * 4 + d % 4] = uint8_t(v + 128);
            else
                to[slot * padded + d] = uint8_t(int8_t(v));
        }
        return;
    }
    for (size_t d = 0; d < padded; ++d) {
        const size_t at = key ? d * CACHE_TOKENS + slot : slot * padded + d;
        const float v = d < dim ? x[d] : 0.f;
        if (type == BF16)
            reinterpret_cast<uint16_t*>(to)[at] = narrow(v);
        else
            reinterpret_cast<float*>(to)[at] = v;
    }
}

}  // namespace

// Norm and rotation of a token's queries and keys; keys and values go into the cache.
void Model::store(const Batch& batch, const Layer& l, size_t index, size_t token, float* qkv) const {
    const size_t position = size_t(batch.positions[token]), padded = round_up(l.dim, LANES);
    for (size_t h = 0; h < l.heads + l.kv_heads; ++h) {
        float* head = qkv + h * l.dim;
        const float* weight = h < l.heads ? l.q_norm : l.k_norm;
        if (weight) kernels->rms_norm(head, weight, head, l.dim, eps);
        if (l.rotary) {
            const RotaryTable& table = tables[l.table];
            const size_t at = position * (l.rotary_dim / 2);
            rotate(head, l, table.cosine + at, table.sine + at);
        }
        if (h < l.heads)
            for (size_t d = 0; d < l.dim; ++d) head[d] *= l.scale;
    }
    const int32_t* blocks = batch.block_tables + size_t(batch.sequence[token]) * batch.table_width;
    const size_t block = size_t(blocks[position / CACHE_TOKENS]), slot = position % CACHE_TOKENS;
    for (size_t g = 0; g < l.kv_heads; ++g) {
        uint8_t* keys = cached(block, index, g);
        put(keys, cache_type, l.dim, padded, slot, qkv + (l.heads + g) * l.dim, true);
        put(keys + head_bytes(cache_type, padded), cache_type, l.dim, padded, slot,
            qkv + (l.heads + l.kv_heads + g) * l.dim, false);
    }
}

void Model::attend(Task& task, const Layer& l, size_t index, size_t job_number, float* scratch) const {
    const AttentionJob& job = task.jobs[job_number];
    const Batch& batch = task.batch;
    const size_t group = l.heads / l.kv_heads, padded = round_up(l.dim, LANES);
    const size_t last_position = size_t(batch.positions[job.token + job.tokens - 1]);
    const int32_t* numbers = batch.block_tables + size_t(batch.sequence[job.token]) * batch.table_width;
    std::vector<const uint8_t*> blocks(last_position / CACHE_TOKENS + 1);
    for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = cached(size_t(numbers[b]), index, job.kv_head);
    std::vector<float> padded_rows(MOST_ROWS * padded * 2, 0.f);
    AttentionRows rows{cache_type, padded, 0, {}, {}, {}, {}, blocks.data(), scratch};
    size_t owner[MOST_ROWS];
    auto flush = [&] {
        if (!rows.rows) return;
        kernels->attend(rows);
        for (size_t r = 0; r < rows.rows; ++r)
            std::copy_n(rows.out[r], l.dim,
                        task.s.attended.row(owner[r] / l.heads) + owner[r] % l.heads * l.dim);
        rows.rows = 0;
    };
    const size_t row_width = (l.heads + 2 * l.kv_heads) * l.dim;
    for (size_t t = job.token; t < job.token + job.tokens; ++t) {
        const size_t position = size_t(batch.positions[t]);
        size_t first = 0;
        if (l.window && position + 1 > l.window) first = position + 1 - l.window;
        if (l.chunk) first = std::max(first, position / l.chunk * l.chunk);
        for (size_t h = job.kv_head * group; h < (job.kv_head + 1) * group; ++h) {
            const size_t r = rows.rows++;
            float* query = padded_rows.data() + r * padded;
            std::copy_n(task.s.qkv.data() + t * round_up(row_width, LANES) + h * l.dim, l.dim, query);
            rows.query[r] = query, rows.out[r] = padded_rows.data() + (MOST_ROWS + r) * padded;
            rows.first[r] = first, rows.last[r] = position + 1;
            owner[r] = t * l.heads + h;
            if (rows.rows == MOST_ROWS) flush();
        }
    }
    flush();
}

}  // namespace ayllu
