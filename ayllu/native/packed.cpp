// Packing and unpacking; the layouts are described in packed.h.

#include "packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "scalar.h"

namespace ayllu {

float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        const float small = float(mantissa) * 0x1p-24f;
        return sign ? -small : small;
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_half(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000;
    const float a = std::fabs(x);
    if (!(a < 65520.f)) return uint16_t(sign | (std::isnan(x) ? 0x7e00 : 0x7bff));  // infinity: the largest number
    if (a < 0x1p-14f) return uint16_t(sign | uint32_t(std::nearbyint(a * 0x1p24f)));
    uint32_t v = std::bit_cast<uint32_t>(a);
    v += 0xfff + ((v >> 13) & 1);
    return uint16_t(sign | ((v - 0x38000000u) >> 13));
}

namespace {

// What a group of weights becomes: integers from -most..most (int4: -8..7) and their scale.
struct Group {
    int8_t q[GROUP];
    uint16_t scale;
};

float rounded(const float* x, float scale, int low, int high, int8_t* q) {
    const float inverse = scale > 0.f ? 1.f / scale : 0.f;
    float error = 0.f;
    for (size_t i = 0; i < GROUP; ++i) {
        const int v = std::clamp(int(std::nearbyint(std::clamp(x[i] * inverse, -1000.f, 1000.f))), low, high);
        q[i] = int8_t(v);
        const float d = x[i] - float(v) * scale;
        error += d * d;
    }
    return error;
}

// int8: the largest magnitude becomes 127. int4: -8 is there and 8 isn't, so that both signs of the scale's end are
// worth a try, and a slightly smaller scale often loses less on the many than it costs on the largest.
Group quantised(const float* x, Format format) {
    Group best{};
    float top = 0.f;
    for (size_t i = 0; i < GROUP; ++i) top = std::max(top, std::fabs(x[i]));
    if (format == INT8) {
        best.scale = float_to_half(top / 127.f);
        rounded(x, half_to_float(best.scale), -127, 127, best.q);
        return best;
    }
    float least = INFINITY;
    int8_t q[GROUP];
    for (int step = 0; step <= 24; ++step) {
        const uint16_t half = float_to_half(top / (5.6f + 0.1f * float(step)));
        const float error = rounded(x, half_to_float(half), -8, 7, q);
        if (error < least) {
            least = error, best.scale = half;
            std::memcpy(best.q, q, GROUP);
        }
        // The mirrored code: a negative scale lets the largest positive weight be the -8.
        const uint16_t mirrored = half | 0x8000;
        const float other = [&] {
            float flipped[GROUP];
            for (size_t i = 0; i < GROUP; ++i) flipped[i] = -x[i];
            return rounded(flipped, half_to_float(half), -8, 7, q);
        }();
        if (other < least) {
            least = other, best.scale = mirrored;
            std::memcpy(best.q, q, GROUP);
        }
    }
    return best;
}

void put_group(uint8_t* superblock, Format format, size_t lane, size_t half, const Group& group) {
    std::memcpy(superblock + (half * LANES + lane) * 2, &group.scale, 2);
    uint8_t* lines = superblock + 64;
    for (size_t i = 0; i < GROUP; ++i) {
        if (format == INT8) {
            lines[(half * 8 + i / 4) * 64 + lane * 4 + i % 4] = uint8_t(int(group.q[i]) + 128);
        } else {
            uint8_t& byte = lines[i / 4 * 64 + lane * 4 + i % 4];
            const uint8_t nibble = uint8_t(int(group.q[i]) + 8);
            byte = half ? uint8_t((byte & 0x0f) | nibble << 4) : uint8_t((byte & 0xf0) | nibble);
        }
    }
}

}  // namespace

void pack(const void* weights, bool from_bf16, size_t rows, size_t columns, Format format, uint8_t* out) {
    Matrix shape{out, nullptr, rows, columns, format};
    const size_t padded = shape.superblocks() * SUPERBLOCK;
    parallel_rows(
        shape.blocks(),
        [&](size_t first, size_t last, int) {
            std::vector<float> row(padded, 0.f);
            for (size_t block = first; block < last; ++block) {
                uint8_t* base = out + block * shape.block_bytes();
                std::memset(base, 0, shape.block_bytes());
                for (size_t lane = 0; lane < LANES; ++lane) {
                    const size_t r = block * LANES + lane;
                    if (r < rows && from_bf16) {
                        const uint16_t* source = static_cast<const uint16_t*>(weights) + r * columns;
                        for (size_t k = 0; k < columns; ++k) row[k] = widen(source[k]);
                    } else if (r < rows) {
                        std::memcpy(row.data(), static_cast<const float*>(weights) + r * columns, columns * 4);
                    } else {
                        std::fill(row.begin(), row.end(), 0.f);
                    }
                    if (format == F32) {
                        float* lines = reinterpret_cast<float*>(base);
                        for (size_t k = 0; k < padded; ++k) lines[k * LANES + lane] = row[k];
                    } else if (format == BF16) {
                        uint16_t* lines = reinterpret_cast<uint16_t*>(base);
                        for (size_t k = 0; k < padded; ++k)
                            lines[k / 2 * 32 + lane * 2 + k % 2] = narrow(row[k]);
                    } else {
                        for (size_t g = 0; g < padded / GROUP; ++g)
                            put_group(base + g / 2 * superblock_bytes(format), format, lane, g % 2,
                                      quantised(row.data() + g * GROUP, format));
                    }
                }
            }
        },
        2);
}

void pack_blocks(const uint8_t* blocks, size_t rows, size_t columns, Format format, uint8_t* out) {
    Matrix shape{out, nullptr, rows, columns, format};
    const size_t block_size = format == INT8 ? 34 : 18, a_row = columns / GROUP;
    parallel_rows(
        shape.blocks(),
        [&](size_t first, size_t last, int) {
            for (size_t block = first; block < last; ++block) {
                uint8_t* base = out + block * shape.block_bytes();
                std::memset(base, 0, shape.block_bytes());
                for (size_t lane = 0; lane < LANES; ++lane) {
                    const size_t r = block * LANES + lane;
                    for (size_t g = 0; g < shape.superblocks() * 2; ++g) {
                        Group group{};
                        if (r < rows && g < a_row) {
                            const uint8_t* stored = blocks + (r * a_row + g) * block_size;
                            std::memcpy(&group.scale, stored, 2);
                            for (size_t i = 0; i < GROUP; ++i) {
                                if (format == INT8)
                                    group.q[i] = int8_t(stored[2 + i]);
                                else
                                    group.q[i] = int8_t((i < 16 ? stored[2 + i] & 15 : stored[i - 14] >> 4) - 8);
                            }
                        }
                        put_group(base + g / 2 * superblock_bytes(format), format, lane, g % 2, group);
                    }
                }
            }
        },
        2);
}

void unpack_row(const Matrix& m, size_t row, float* out) {
    const uint8_t* base = m.data + row / LANES * m.block_bytes();
    const size_t lane = row % LANES;
    if (m.format == F32) {
        const float* lines = reinterpret_cast<const float*>(base);
        for (size_t k = 0; k < m.columns; ++k) out[k] = lines[k * LANES + lane];
        return;
    }
    if (m.format == BF16) {
        const uint16_t* lines = reinterpret_cast<const uint16_t*>(base);
        for (size_t k = 0; k < m.columns; ++k) out[k] = widen(lines[k / 2 * 32 + lane * 2 + k % 2]);
        return;
    }
    for (size_t k = 0; k < m.columns; ++k) {
        const uint8_t* superblock = base + k / SUPERBLOCK * superblock_bytes(m.format);
        const size_t half = k % SUPERBLOCK / GROUP, i = k % GROUP;
        uint16_t scale;
        std::memcpy(&scale, superblock + (half * LANES + lane) * 2, 2);
        const uint8_t* lines = superblock + 64;
        int q;
        if (m.format == INT8) {
            q = int(lines[(half * 8 + i / 4) * 64 + lane * 4 + i % 4]) - 128;
        } else {
            const uint8_t byte = lines[i / 4 * 64 + lane * 4 + i % 4];
            q = int(half ? byte >> 4 : byte & 15) - 8;
        }
        out[k] = float(q) * half_to_float(scale);
    }
}

}  // namespace ayllu
