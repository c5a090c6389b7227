// The router's choice among experts: softmax or sigmoid scores, groups of experts, a bias for the choice alone
// (Shazeer et al. 2017; DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2).

#include <algorithm>
#include <cmath>

#include "step.h"

namespace ayllu {

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
