// One decode step: every thread walks through the layers, and they meet at a barrier after each phase. The jobs of a
// phase (row blocks of a matrix, tokens, key-value heads) are handed out by a counter, so that a thread that the
// machine has held up gets less.

#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

#include "parallel.h"
#include "scalar.h"

namespace ayllu {

namespace {

// All threads wait for the last one. They spin, because a phase of a small model takes microseconds, and yield
// the processor when the others are long in coming.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        if (threads_ == 1) return;
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (uint32_t spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
#if defined(__x86_64__)
            _mm_pause();
#endif
            if (spins > 4000) sched_yield();
        }
    }

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
};

// Activations of some rows in every form that the matrices of the model ask for.
struct Rows {
    size_t stride = 0;
    std::vector<float> f32, scales;
    std::vector<int8_t> q;
    std::vector<int32_t> sums;

    // Layers may differ in width: the stride fits the widest.
    void resize(size_t rows, size_t columns) {
        stride = std::max(stride, round_up(columns, SUPERBLOCK));
        if (f32.size() >= rows * stride) return;
        f32.assign(rows * stride, 0.f), q.assign(rows * stride, 0);
        scales.assign(rows * stride / GROUP, 0.f), sums.assign(rows * stride / GROUP, 0);
    }
    float* row(size_t r) { return f32.data() + r * stride; }
    // From the float32 row to the form for `format`.
    void convert(const Kernels& k, size_t r, size_t columns, Format format) {
        if (format == INT8 || format == INT4) {
            const size_t g = r * stride / GROUP;
            k.quantise(row(r), columns, q.data() + r * stride, scales.data() + g, sums.data() + g,
                       format == INT8 ? 128 : 8);
        }
    }
    void copy_row(size_t to, const Rows& from, size_t r) {
        const size_t groups = stride / GROUP;
        std::copy_n(from.f32.data() + r * stride, stride, f32.data() + to * stride);
        std::copy_n(from.q.data() + r * stride, stride, q.data() + to * stride);
        std::copy_n(from.scales.data() + r * groups, groups, scales.data() + to * groups);
        std::copy_n(from.sums.data() + r * groups, groups, sums.data() + to * groups);
    }
    Activations from(size_t r) const {
        const size_t g = r * stride / GROUP;
        return {f32.data() + r * stride, q.data() + r * stride, scales.data() + g, sums.data() + g, stride};
    }
};

void grow(std::vector<float>& v, size_t n) {
    if (v.size() < n) v.resize(n);
}

}  // namespace

struct Scratch {
    std::vector<float> x, qkv, joint, router, pair_out;  // residual stream, projections, router logits
    Rows normed, attended, hidden, gathered, pair_hidden;
    std::vector<int32_t> chosen, pair_token, pair_slot, expert_start;
    std::vector<float> weights;
    std::vector<std::vector<float>> scores;  // of each thread
};

// Jobs of attention: `rows` (token, head) pairs of one sequence and one key-value head.
struct AttentionJob {
    size_t token, tokens, kv_head;
};

struct Model::Task {
    const Batch& batch;
    Scratch& s;
    Barrier barrier;
    std::vector<std::atomic<uint32_t>> counters;  // one a phase
    std::vector<AttentionJob> jobs;

    Task(const Batch& b, Scratch& scratch, int threads, size_t phases)
        : batch(b), s(scratch), barrier(threads), counters(phases) {}

    // body(first, last) on pieces of [0, count) until none is left; then all threads meet.
    template <class Body>
    void phase(size_t& at, size_t count, size_t piece, const Body& body) {
        std::atomic<uint32_t>& next = counters[at++];
        for (;;) {
            const size_t first = next.fetch_add(1, std::memory_order_relaxed) * piece;
            if (first >= count) break;
            body(first, std::min(first + piece, count));
        }
        barrier.wait();
    }
};

Model::Model() : scratch_(new Scratch) {}
Model::~Model() = default;

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

void Model::run(Task& task, int thread, int threads) const {
    const Batch& batch = task.batch;
    Scratch& s = task.s;
    const Kernels& k = *kernels;
    const size_t n = batch.tokens;
    size_t at = 0;
    const size_t some = std::max<size_t>(1, n / size_t(threads * 4));  // tokens of one job

    auto piece = [&](size_t blocks) { return std::max<size_t>(1, blocks / size_t(threads * 6)); };
    auto product = [&](const Matrix& w, const Rows& x, size_t rows, float* y, size_t stride, bool add) {
        task.phase(at, w.blocks(), piece(w.blocks()), [&](size_t first, size_t last) {
            k.matmul(w, x.from(0), rows, y, stride, add, first, last);
        });
    };
    // Norm of the residual stream into `s.normed`, in the form for `format`.
    auto normalise = [&](const float* weight, Format format) {
        task.phase(at, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) {
                k.rms_norm(s.x.data() + t * round_up(width, LANES), weight, s.normed.row(t), width, eps);
                s.normed.convert(k, t, width, format);
            }
        });
    };
    auto gated = [&](const float* joint, size_t stride, size_t hidden, Rows& out, size_t rows, Format format) {
        task.phase(at, rows, std::max<size_t>(1, rows / size_t(threads * 4)), [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) {
                k.swiglu(joint + t * stride, joint + t * stride + hidden, out.row(t), hidden);
                out.convert(k, t, hidden, format);
            }
        });
    };
    const size_t x_stride = round_up(width, LANES);

    task.phase(at, n, some, [&](size_t first, size_t last) {
        for (size_t t = first; t < last; ++t) unpack_row(embedding, size_t(batch.ids[t]), s.x.data() + t * x_stride);
    });
    for (size_t index = 0; index < layers.size(); ++index) {
        const Layer& l = layers[index];
        const size_t qkv_stride = round_up(l.qkv.rows, LANES), hidden_in = l.heads * l.dim;
        normalise(l.attention_norm, l.qkv.format);
        product(l.qkv, s.normed, n, s.qkv.data(), qkv_stride, false);
        task.phase(at, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) store(batch, l, index, t, s.qkv.data() + t * qkv_stride);
        });
        task.phase(at, task.jobs.size(), 1, [&](size_t first, size_t) {
            attend(task, l, index, first, s.scores[size_t(thread)].data());
        });
        task.phase(at, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) s.attended.convert(k, t, hidden_in, l.out.format);
        });
        product(l.out, s.attended, n, s.x.data(), x_stride, true);

        if (!l.experts.count) {
            const size_t hidden = l.down.columns, stride = round_up(l.gate_up.rows, LANES);
            normalise(l.mlp_norm, l.gate_up.format);
            product(l.gate_up, s.normed, n, s.joint.data(), stride, false);
            gated(s.joint.data(), stride, hidden, s.hidden, n, l.down.format);
            product(l.down, s.hidden, n, s.x.data(), x_stride, true);
            continue;
        }
        const Experts& e = l.experts;
        const size_t pairs = n * e.active, hidden = e.down[0].columns, stride = round_up(2 * hidden, LANES);
        const size_t router_stride = round_up(e.count, LANES);
        normalise(l.mlp_norm, e.gate_up[0].format);
        product(e.router, s.normed, n, s.router.data(), router_stride, false);
        task.phase(at, 1, 1, [&](size_t, size_t) {  // choose, and list the pairs of each expert in token order
            for (size_t t = 0; t < n; ++t)
                choose_experts(e, s.router.data() + t * router_stride, s.chosen.data() + t * e.active,
                               s.weights.data() + t * e.active);
            std::fill_n(s.expert_start.begin(), e.count + 1, 0);
            for (size_t p = 0; p < pairs; ++p) ++s.expert_start[size_t(s.chosen[p]) + 1];
            for (size_t i = 0; i < e.count; ++i) s.expert_start[i + 1] += s.expert_start[i];
            std::vector<int32_t> next(s.expert_start.begin(), s.expert_start.begin() + long(e.count));
            for (size_t p = 0; p < pairs; ++p) {
                const int32_t slot = next[size_t(s.chosen[p])]++;
                s.pair_slot[p] = slot, s.pair_token[size_t(slot)] = int32_t(p / e.active);
            }
        });
        task.phase(at, pairs, some, [&](size_t first, size_t last) {
            for (size_t p = first; p < last; ++p) s.gathered.copy_row(p, s.normed, size_t(s.pair_token[p]));
        });
        auto each_expert = [&](const std::vector<Matrix>& w, const Rows& x, float* y, size_t y_stride) {
            const size_t blocks = w[0].blocks(), part = std::max<size_t>(1, blocks / 4);
            const size_t parts = (blocks + part - 1) / part;
            task.phase(at, e.count * parts, 1, [&](size_t job, size_t) {
                const size_t expert = job / parts, first = job % parts * part;
                const size_t begin = size_t(s.expert_start[expert]), end = size_t(s.expert_start[expert + 1]);
                if (begin < end)
                    k.matmul(w[expert], x.from(begin), end - begin, y + begin * y_stride, y_stride, false, first,
                             std::min(first + part, blocks));
            });
        };
        each_expert(e.gate_up, s.gathered, s.joint.data(), stride);
        gated(s.joint.data(), stride, hidden, s.pair_hidden, pairs, e.down[0].format);
        each_expert(e.down, s.pair_hidden, s.pair_out.data(), x_stride);
        task.phase(at, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t)
                for (size_t i = 0; i < e.active; ++i) {
                    const float weight = s.weights[t * e.active + i];
                    const float* y = s.pair_out.data() + size_t(s.pair_slot[t * e.active + i]) * x_stride;
                    float* x = s.x.data() + t * x_stride;
                    for (size_t c = 0; c < width; ++c) x[c] += weight * y[c];
                }
        });
        if (e.shared_gate_up.rows) {
            const size_t wide = e.shared_down.columns, shared_stride = round_up(2 * wide, LANES);
            product(e.shared_gate_up, s.normed, n, s.joint.data(), shared_stride, false);
            gated(s.joint.data(), shared_stride, wide, s.hidden, n, e.shared_down.format);
            product(e.shared_down, s.hidden, n, s.x.data(), x_stride, true);
        }
    }
    task.phase(at, batch.wanted, 1, [&](size_t r, size_t) {
        k.rms_norm(s.x.data() + size_t(batch.wanted_rows[r]) * x_stride, norm, s.normed.row(r), width, eps);
        s.normed.convert(k, r, width, head.format);
    });
    product(head, s.normed, batch.wanted, batch.logits, round_up(head.rows, LANES), false);
}

void Model::step(const Batch& batch) {
    Scratch& s = *scratch_;
    const size_t n = batch.tokens, x_stride = round_up(width, LANES);
    const int threads = thread_count();
    size_t phases = 4, longest = 0;
    for (size_t t = 0; t < n; ++t) longest = std::max(longest, size_t(batch.positions[t]) + 1);
    grow(s.x, n * x_stride);
    s.normed.resize(std::max(n, batch.wanted), width);
    for (const Layer& l : layers) {
        phases += 20;
        grow(s.qkv, n * round_up(l.qkv.rows, LANES));
        s.attended.resize(n, l.heads * l.dim);
        if (!l.experts.count) {
            grow(s.joint, n * round_up(l.gate_up.rows, LANES));
            s.hidden.resize(n, l.down.columns);
            continue;
        }
        const Experts& e = l.experts;
        const size_t pairs = n * e.active, hidden = e.down[0].columns;
        grow(s.router, n * round_up(e.count, LANES));
        grow(s.joint, std::max(pairs * round_up(2 * hidden, LANES), n * round_up(e.shared_gate_up.rows, LANES)));
        grow(s.pair_out, pairs * x_stride), grow(s.weights, pairs);
        s.gathered.resize(pairs, width), s.pair_hidden.resize(pairs, hidden);
        if (e.shared_down.rows) s.hidden.resize(n, e.shared_down.columns);
        for (auto* v : {&s.chosen, &s.pair_token, &s.pair_slot})
            if (v->size() < pairs) v->resize(pairs);
        if (s.expert_start.size() < e.count + 1) s.expert_start.resize(e.count + 1);
    }
    s.scores.resize(size_t(threads));
    for (auto& scores : s.scores) grow(scores, MOST_ROWS * round_up(longest, CACHE_TOKENS));

    Task task(batch, s, threads, phases);
    // A stretch of a few tokens of one sequence shares the keys that it reads.
    for (size_t t = 0; t < n;) {
        size_t end = t + 1;
        while (end < n && batch.sequence[end] == batch.sequence[t] && end - t < 8) ++end;
        for (size_t g = 0; g < layers[0].kv_heads; ++g) task.jobs.push_back({t, end - t, g});
        t = end;
    }
    struct Both {
        const Model* model;
        Task* task;
    } both{this, &task};
    run_on_threads(
        [](void* data, int thread, int count) {
            const Both& b = *static_cast<Both*>(data);
            b.model->run(*b.task, thread, count);
        },
        &both, threads);
}

void choose_experts(const Experts& e, const float* logits, int32_t* chosen, float* weights) {
    std::vector<float> scores(e.count), ranked(logits, logits + e.count);
    if (e.sigmoid) {
        for (size_t i = 0; i < e.count; ++i) scores[i] = 1.f / (1.f + std::exp(-logits[i]));
    } else {
        const float top = *std::max_element(logits, logits + e.count);
        float sum = 0.f;
        for (size_t i = 0; i < e.count; ++i) sum += scores[i] = std::exp(logits[i] - top);
        for (float& score : scores) score /= sum;
    }
    if (e.groups > 1 || e.choice_bias) ranked = scores;
    if (e.choice_bias)
        for (size_t i = 0; i < e.count; ++i) ranked[i] += e.choice_bias[i];
    if (e.groups > 1) {
        const size_t size = e.count / e.groups;
        std::vector<float> worth(e.groups);
        for (size_t g = 0; g < e.groups; ++g) {
            std::vector<float> own(ranked.begin() + long(g * size), ranked.begin() + long((g + 1) * size));
            std::sort(own.rbegin(), own.rend());
            worth[g] = own[0] + (e.group_top2 && size > 1 ? own[1] : 0.f);
        }
        std::vector<size_t> order(e.groups);
        for (size_t g = 0; g < e.groups; ++g) order[g] = g;
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return worth[a] > worth[b]; });
        for (size_t i = e.active_groups; i < e.groups; ++i)
            std::fill_n(ranked.begin() + long(order[i] * size), size, -INFINITY);
    }
    float sum = 0.f;
    for (size_t i = 0; i < e.active; ++i) {  // equal scores: the lower number first
        const size_t best = size_t(std::max_element(ranked.begin(), ranked.end()) - ranked.begin());
        chosen[i] = int32_t(best), weights[i] = scores[best], sum += scores[best];
        ranked[best] = -INFINITY;
    }
    for (size_t i = 0; i < e.active; ++i) weights[i] *= (e.normalise ? 1.f / (sum + 1e-20f) : 1.f) * e.scale;
}

}  // namespace ayllu
