// The phases of a step: pieces of work that the threads take from a counter, so that a thread that the machine has
// held up gets less.
//
// A phase is over when its pieces are done, not when all threads have arrived: one that the machine has taken off the
// processor holds up nobody unless it was in the middle of a piece. Whoever has to wait for such a piece spins for a
// short while (50 us), because a phase of a small model takes microseconds, and then sleeps (a futex behind
// std::atomic::wait), which leaves its processor to the thread that it waits for.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ayllu {

using Clock = std::chrono::steady_clock;

// One thread's way through the phases: all threads pass the same ones.
struct Walk {
    size_t at = 0;
    Clock::duration waited{};
};

class Phases {
  public:
    explicit Phases(size_t most) : all_(most) {}

    // body(first, last) on pieces of [0, count).
    template <class Body>
    void run(Walk& walk, size_t count, size_t piece, const Body& body) {
        Phase& phase = all_[walk.at++];
        const uint32_t pieces = uint32_t((count + piece - 1) / piece);
        uint32_t done = 0;
        for (;;) {
            const size_t number = phase.next.fetch_add(1, std::memory_order_relaxed);
            if (number >= pieces) break;
            body(number * piece, std::min(number * piece + piece, count));
            ++done;
        }
        if (done && phase.done.fetch_add(done, std::memory_order_acq_rel) + done == pieces)
            phase.done.notify_all();
        else
            wait(walk, phase.done, pieces);
    }

  private:
    static constexpr std::chrono::microseconds PATIENCE{50};
    static constexpr int FREE = 64, SOME = 32;  // pauses of 20 to 60 ns

    struct alignas(64) Phase {
        std::atomic<uint32_t> next{0}, done{0};
    };

    static void wait(Walk& walk, std::atomic<uint32_t>& done, uint32_t pieces) {
        const auto over = [&](int pauses) {
            for (; pauses; --pauses) {
                if (done.load(std::memory_order_acquire) == pieces) return true;
#if defined(__x86_64__)
                _mm_pause();
#endif
            }
            return false;
        };
        if (over(FREE)) return;
        const Clock::time_point began = Clock::now();
        bool met = false;
        while (!met && Clock::now() - began < PATIENCE) met = over(SOME);
        for (uint32_t seen; !met && (seen = done.load(std::memory_order_acquire)) != pieces;)
            done.wait(seen, std::memory_order_acquire);
        walk.waited += Clock::now() - began;
    }

    std::vector<Phase> all_;
};

// Whether other threads help at all. On a busy machine a step of a millisecond may wait many for a thread that gets no
// processor; after such a step the next ones run alone, and then it is tried again, less and less often.
class Company {
  public:
    int threads(int wanted) { return alone_ ? --alone_, 1 : wanted; }
    void learn(Clock::duration step, Clock::duration lost) {
        const bool bad = lost > step / 2;  // with half of the work done by others, alone would have been as fast
        span_ = bad ? std::min(span_ * 2, 256) : 2;
        alone_ = bad ? span_ : 0;
    }

  private:
    int alone_ = 0, span_ = 2;  // steps
};

}  // namespace ayllu
