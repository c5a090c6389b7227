// Attention for training: rows of bfloat16 or float32 become float32 panels, on which the kernels of flash.h work.
//
// One piece of work is a key-value head of one row of the batch, with all the query heads that look at it. Pieces
// differ (packed rows hold documents of any length), so threads take the next one when they are done; every piece
// writes to places of its own, and the result doesn't depend on who took which.

#include <algorithm>
#include <atomic>
#include <new>
#include <utility>

#include "kernel_table.h"
#include "kernels.h"
#include "parallel.h"
#include "scalar.h"

namespace ayllu {

// x (rows, dim), its rows `stride` apart -> wide (rows, padded), zeros behind dim.
template <class T>
CLONES static void widen_rows(const T* x, size_t rows, size_t dim, size_t stride, float* wide, size_t padded) {
    for (size_t r = 0; r < rows; ++r) {
        for (size_t i = 0; i < dim; ++i) wide[r * padded + i] = widen(x[r * stride + i]);
        std::fill(wide + r * padded + dim, wide + (r + 1) * padded, 0.f);
    }
}

template <class T>
CLONES static void narrow_rows(const float* wide, size_t rows, size_t dim, size_t padded, T* x, size_t stride) {
    for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < dim; ++i) put(x[r * stride + i], wide[r * padded + i]);
}

// (rows, padded) -> (padded, to_row)
static void turn(const float* from, size_t rows, size_t padded, float* to, size_t to_row) {
    for (size_t r = 0; r < rows; ++r)
        for (size_t i = 0; i < padded; ++i) to[i * to_row + r] = from[r * padded + i];
}

// A thread's memory for panels, from a border of 64 bytes on; what is in it is left over from before.
static float* room_for(size_t floats) {
    constexpr std::align_val_t line{64};
    struct Room {
        float* at = nullptr;
        size_t floats = 0;
        ~Room() { ::operator delete[](at, line); }
    };
    thread_local Room room;
    if (room.floats < floats) {
        ::operator delete[](std::exchange(room.at, nullptr), line);
        room.floats = 0;
        room.at = static_cast<float*>(::operator new[](floats * sizeof(float), line));
        room.floats = floats;
    }
    return room.at;
}

// The panels of one piece of work.
struct Panels {
    explicit Panels(const Heads& h)
        : length(h.length), dim(round_up(h.dim, LANES)), turned_row(round_up(h.length, LANES) + LANES) {
        const size_t flat = length * dim, turned = dim * turned_row, looks = 2 * FLASH_QUERIES * turned_row;
        float* at = room_for(8 * flat + 2 * turned + looks);
        const auto take = [&](size_t n) { return std::exchange(at, at + n); };
        q = take(flat), k = take(flat), v = take(flat), y = take(flat), k_turned = take(turned);
        dq = take(flat), dk = take(flat), dv = take(flat), dy = take(flat), v_turned = take(turned);
        scratch = take(looks);
    }
    size_t length, dim, turned_row;
    float *q, *k, *v, *y, *k_turned, *dq, *dk, *dv, *dy, *v_turned, *scratch;

    FlashRow row(const int32_t* starts, float* log_sums) const {
        return {length, dim, turned_row, starts, q, k, v, k_turned, v_turned, dy, y, log_sums, dq, dk, dv, scratch};
    }
};

template <class Body>
static void each_piece(const Heads& h, const Body& body) {
    const size_t pieces = h.batches * h.kv_heads;
    const size_t threads = std::min(pieces, size_t(thread_count()));
    std::atomic<size_t> next{0};
    parallel_rows(threads, [&](size_t, size_t, int) {
        Panels panels(h);
        for (size_t piece; (piece = next++) < pieces;) body(panels, piece / h.kv_heads, piece % h.kv_heads);
    }, 2);
}

// Those of key-value head `kv` of all rows of the batch, into their panels.
template <class T>
static void keys_and_values(const Heads& h, const T* k, const T* v, size_t kv, Panels& p) {
    const size_t first = kv * h.length * h.dim;
    widen_rows(k + first, h.length, h.dim, h.dim, p.k, p.dim);
    widen_rows(v + first, h.length, h.dim, h.dim, p.v, p.dim);
    turn(p.k, h.length, p.dim, p.k_turned, p.turned_row);
}

template <class T>
void Training<T>::attention(const Kernels& level, const Heads& h, const T* q, const T* k, const T* v,
                            const int32_t* starts, T* y, float* log_sums) {
    const size_t group = h.heads / h.kv_heads, size = h.length * h.dim;
    each_piece(h, [&](Panels& p, size_t b, size_t g) {
        keys_and_values(h, k, v, b * h.kv_heads + g, p);
        for (size_t head = g * group; head < (g + 1) * group; ++head) {
            const size_t own = b * h.heads + head;
            widen_rows(q + own * size, h.length, h.dim, h.dim, p.q, p.dim);
            level.flash_forward(p.row(starts + b * h.length, log_sums + own * h.length));
            narrow_rows(p.y, h.length, h.dim, p.dim, y + (b * h.length * h.heads + head) * h.dim, h.heads * h.dim);
        }
    });
}

template <class T>
void Training<T>::attention_backward(const Kernels& level, const Heads& h, const T* dy, const T* q, const T* k,
                                     const T* v, const int32_t* starts, float* log_sums, T* dq, T* dk, T* dv) {
    const size_t group = h.heads / h.kv_heads, size = h.length * h.dim;
    each_piece(h, [&](Panels& p, size_t b, size_t g) {
        const size_t kv = b * h.kv_heads + g;
        keys_and_values(h, k, v, kv, p);
        turn(p.v, h.length, p.dim, p.v_turned, p.turned_row);
        std::fill(p.dk, p.dk + h.length * p.dim, 0.f);
        std::fill(p.dv, p.dv + h.length * p.dim, 0.f);
        for (size_t head = g * group; head < (g + 1) * group; ++head) {
            const size_t own = b * h.heads + head;
            widen_rows(q + own * size, h.length, h.dim, h.dim, p.q, p.dim);
            widen_rows(dy + (b * h.length * h.heads + head) * h.dim, h.length, h.dim, h.heads * h.dim, p.dy, p.dim);
            level.flash_backward(p.row(starts + b * h.length, log_sums + own * h.length));
            narrow_rows(p.dq, h.length, h.dim, p.dim, dq + own * size, h.dim);
        }
        narrow_rows(p.dk, h.length, h.dim, p.dim, dk + kv * size, h.dim);
        narrow_rows(p.dv, h.length, h.dim, p.dim, dv + kv * size, h.dim);
    });
}

#define FOR_TYPE(T)                                                                                            \
    template void Training<T>::attention(const Kernels&, const Heads&, const T*, const T*, const T*,           \
                                         const int32_t*, T*, float*);                                          \
    template void Training<T>::attention_backward(const Kernels&, const Heads&, const T*, const T*, const T*,  \
                                                  const T*, const int32_t*, float*, T*, T*, T*)
FOR_TYPE(uint16_t);
FOR_TYPE(float);

}  // namespace ayllu
