// One decode step of a whole model in one call: the families of Llama, Mistral, Qwen and Mixtral, dense or with
// experts. A batch is ragged: any number of sequences, each with one new token or a stretch of its prompt.
#pragma once

#include <memory>
#include <vector>

#include "kernel_table.h"

namespace ayllu {

struct Experts {
    size_t count = 0, active = 0;  // count 0: a dense layer
    bool sigmoid = false, normalise = true;
    float scale = 1.f;
    size_t groups = 1, active_groups = 1;
    bool group_top2 = false;
    Matrix router;                      // float32
    const float* choice_bias = nullptr;
    std::vector<Matrix> gate_up, down;
    Matrix shared_gate_up, shared_down;  // rows 0: none
};

struct Layer {
    const float *attention_norm = nullptr, *mlp_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
    Matrix qkv, out, gate_up, down;
    Experts experts;
    size_t heads = 0, kv_heads = 0, dim = 0;
    size_t window = 0, chunk = 0;  // 0: unlimited
    float scale = 1.f;
    bool rotary = true, interleaved = false;
    size_t rotary_dim = 0, table = 0;
};

struct RotaryTable {
    const float *cosine = nullptr, *sine = nullptr;  // (positions, rotary_dim / 2)
};

struct Batch {
    size_t tokens = 0, wanted = 0, table_width = 0;
    const int32_t *ids = nullptr, *positions = nullptr;
    const int32_t* sequence = nullptr;      // of each token; the tokens of a sequence stand together, in order
    const int32_t* block_tables = nullptr;  // (sequences, table_width): block numbers
    const int32_t* wanted_rows = nullptr;   // tokens whose logits are wanted
    float* logits = nullptr;                // (wanted, vocabulary rounded up to 16)
};

class Model {
  public:
    size_t width = 0;
    float eps = 1e-6f;
    Matrix embedding, head;
    const float* norm = nullptr;
    std::vector<Layer> layers;
    std::vector<RotaryTable> tables;
    Format cache_type = BF16;
    uint8_t* cache = nullptr;  // (blocks, layers, kv heads, keys and values)
    const Kernels* kernels = nullptr;

    Model();
    ~Model();
    void add_layer(Layer layer);  // after cache_type is set; all layers have the same number of kv heads
    size_t cache_block_bytes() const { return block_bytes_; }
    void step(const Batch& batch);

  private:
    struct Task;  // what the threads of one step share
    void run(Task& task, int thread, int threads) const;
    uint8_t* cached(size_t block, size_t layer, size_t head) const;
    void store(const Batch& batch, const Layer& layer, size_t index, size_t token, float* qkv) const;
    void attend(Task& task, const Layer& layer, size_t index, size_t job, float* scratch) const;
    std::unique_ptr<struct Scratch> scratch_;
    std::vector<size_t> offsets_;  // of each layer in a cache block
    size_t block_bytes_ = 0;
};

// The router's choice for one token: `active` experts, best first, and their weights.
void choose_experts(const Experts& experts, const float* logits, int32_t* chosen, float* weights);

}  // namespace ayllu
