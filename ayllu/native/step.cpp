// One decode step: every thread walks through the layers, phase by phase (phases.h).

#include "scratch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace ayllu {

namespace {

// A prompt's rows pass over the weights of a job more than once: so many bytes of them stay in a near cache.
constexpr size_t JOB_BYTES = 1024 * 1024;
// At the beginning of a piece of weights nothing has been asked for ahead yet: small matrices come in fewer pieces.
constexpr size_t SMALL_BYTES = 128 * 1024;  // of a piece

}  // namespace

Model::Model() : scratch_(new Scratch) {}
Model::~Model() = default;

void Model::run(Task& task, int thread, int threads) const {
    const Batch& batch = task.batch;
    Scratch& s = task.s;
    const Kernels& k = *kernels;
    const size_t n = batch.tokens;
    Walk walk;
    const size_t some = std::max<size_t>(1, n / size_t(threads * 4));  // tokens of one job

    auto piece = [&](const Matrix& w, size_t rows) {
        const size_t each = w.blocks() * w.block_bytes() / size_t(threads * 6) < SMALL_BYTES ? 2 : 6;  // thread's pieces
        const size_t even = std::max<size_t>(1, w.blocks() / (size_t(threads) * each));
        return rows > MOST_ROWS ? std::min(even, std::max<size_t>(2, JOB_BYTES / w.block_bytes())) : even;
    };
    auto product = [&](const Matrix& w, const Rows& x, size_t rows, float* y, size_t stride, bool add) {
        task.phases.run(walk, w.blocks(), piece(w, rows), [&](size_t first, size_t last) {
            k.matmul(w, x.from(0), rows, y, stride, add, first, last);
        });
    };
    // Norm of the residual stream into `s.normed`, in the form for `format`.
    auto normalise = [&](const float* weight, Format format) {
        task.phases.run(walk, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) {
                k.rms_norm(s.x.data() + t * round_up(width, LANES), weight, s.normed.row(t), width, eps);
                s.normed.convert(k, t, width, format);
            }
        });
    };
    auto gated = [&](const float* joint, size_t stride, size_t hidden, Rows& out, size_t rows, Format format) {
        task.phases.run(walk, rows, std::max<size_t>(1, rows / size_t(threads * 4)), [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) {
                k.swiglu(joint + t * stride, joint + t * stride + hidden, out.row(t), hidden);
                out.convert(k, t, hidden, format);
            }
        });
    };
    const size_t x_stride = round_up(width, LANES);

    task.phases.run(walk, n, some, [&](size_t first, size_t last) {
        for (size_t t = first; t < last; ++t) unpack_row(embedding, size_t(batch.ids[t]), s.x.data() + t * x_stride);
    });
    for (size_t index = 0; index < layers.size(); ++index) {
        const Layer& l = layers[index];
        const size_t qkv_stride = round_up(l.qkv.rows, LANES), hidden_in = l.heads * l.dim;
        normalise(l.attention_norm, l.qkv.format);
        product(l.qkv, s.normed, n, s.qkv.data(), qkv_stride, false);
        task.phases.run(walk, n, some, [&](size_t first, size_t last) {
            for (size_t t = first; t < last; ++t) store(batch, l, index, t, s.qkv.data() + t * qkv_stride);
        });
        task.phases.run(walk, task.jobs.size(), 1, [&](size_t first, size_t) {
            attend(task, l, index, first, s.scores[size_t(thread)].data());
        });
        task.phases.run(walk, n, some, [&](size_t first, size_t last) {
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
        task.phases.run(walk, 1, 1, [&](size_t, size_t) {  // choose, and list the pairs of each expert in token order
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
        task.phases.run(walk, pairs, some, [&](size_t first, size_t last) {
            for (size_t p = first; p < last; ++p) s.gathered.copy_row(p, s.normed, size_t(s.pair_token[p]));
        });
        auto each_expert = [&](const std::vector<Matrix>& w, const Rows& x, float* y, size_t y_stride) {
            const size_t blocks = w[0].blocks(), part = std::max<size_t>(1, blocks / 4);
            const size_t parts = (blocks + part - 1) / part;
            task.phases.run(walk, e.count * parts, 1, [&](size_t job, size_t) {
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
        task.phases.run(walk, n, some, [&](size_t first, size_t last) {
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
    task.phases.run(walk, batch.wanted, 1, [&](size_t r, size_t) {
        k.rms_norm(s.x.data() + size_t(batch.wanted_rows[r]) * x_stride, norm, s.normed.row(r), width, eps);
        s.normed.convert(k, r, width, head.format);
    });
    product(head, s.normed, batch.wanted, batch.logits, round_up(head.rows, LANES), false);
    if (thread == 0) task.waited = walk.waited, task.finished = Clock::now();
}

void Model::step(const Batch& batch) {
    Scratch& s = *scratch_;
    const size_t n = batch.tokens, x_stride = round_up(width, LANES);
    const int threads = s.company.threads(thread_count());
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

    Task task{batch, s, Phases(phases), {}, {}, {}};
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
    const Clock::time_point began = Clock::now();
    run_on_threads(
        [](void* data, int thread, int count) {
            const Both& b = *static_cast<Both*>(data);
            b.model->run(*b.task, thread, count);
        },
        &both, threads);
    if (threads > 1) {
        const Clock::time_point ended = Clock::now();
        s.company.learn(ended - began, task.waited + (ended - task.finished));
    }
}

}  // namespace ayllu
