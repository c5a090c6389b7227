"""How large a decoder is and what a token costs, counted from its description alone.

Nothing is built: a model of two trillion parameters is counted as fast as one of two million. Everything
follows from one list, `matrices(config)`: which matrices there are, how many copies are held and how many
of them a token passes (of a hundred experts, eight).

FLOPs: a matrix product takes 2 operations a weight, and training 6 (forward once, backward twice);
attention adds 2 operations for each score and each weighed value (PaLM, 2204.02311, appendix B; Kaplan et
al. 2020, 2001.08361, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from ayllu.model.config import AttentionSpec, LatentSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec


@dataclass(frozen=True)
class Matrix:
    """`held` matrices of (outputs, inputs); a token is multiplied by `used` of them.

    `kind`: "block", "embedding" or "positions" (tables, looked up), "head" (`held` 0 when it is the
    embedding).
    """

    kind: str
    outputs: int
    inputs: int
    held: int = 1
    used: int = 1

    @property
    def size(self) -> int:
        """Weights of one copy."""
        return self.outputs * self.inputs


def matrices(config: ModelConfig) -> list[Matrix]:
    """All matrices of the decoder, block by block."""
    width, vocabulary = config.width, config.vocab_size
    found = [
        Matrix("embedding", vocabulary, width, used=0),
        Matrix("head", vocabulary, width, held=0 if config.tied else 1),
    ]
    if config.positions:
        found.append(Matrix("positions", config.positions, width, used=0))
    for layer in config.layers:
        found += _attention(width, layer.attention) + _mlp(width, layer.mlp)
    return found


def _attention(width: int, spec: AttentionSpec | LatentSpec) -> list[Matrix]:
    out = Matrix("block", width, spec.out_channels)
    if isinstance(spec, AttentionSpec):
        return [Matrix("block", (spec.heads + 2 * spec.kv_heads) * spec.head_dim, width), out]
    queries = spec.heads * (spec.nope_dim + spec.rope_dim)
    if spec.q_rank is None:
        query = [Matrix("block", queries, width)]
    else:
        query = [Matrix("block", spec.q_rank, width), Matrix("block", queries, spec.q_rank)]
    down = Matrix("block", spec.kv_rank + spec.rope_dim, width)
    up = Matrix("block", spec.heads * (spec.nope_dim + spec.v_dim), spec.kv_rank)
    return [*query, down, up, out]


def _mlp(width: int, spec: MLPSpec | MoESpec) -> list[Matrix]:
    if isinstance(spec, MLPSpec):
        return [
            Matrix("block", (2 if spec.gated else 1) * spec.hidden, width),
            Matrix("block", width, spec.hidden),
        ]
    found = [
        Matrix("block", spec.experts, width),
        Matrix("block", 2 * spec.hidden, width, spec.experts, spec.active),
        Matrix("block", width, spec.hidden, spec.experts, spec.active),
    ]
    if spec.shared_hidden:
        found += _mlp(width, MLPSpec(spec.shared_hidden))
    return found


def _vectors(config: ModelConfig) -> int:
    """Weights of norms, and biases."""
    norm = config.width * (2 if config.norm_bias else 1)
    return norm + sum(_layer_vectors(layer, config.width, norm) for layer in config.layers)


def _layer_vectors(layer: LayerSpec, width: int, norm: int) -> int:
    total, spec, mlp = norm if layer.parallel else 2 * norm, layer.attention, layer.mlp
    if isinstance(spec, AttentionSpec):
        total += 2 * spec.head_dim if spec.qk_norm == "rms" else 0
        total += (spec.heads + 2 * spec.kv_heads) * spec.head_dim if spec.bias else 0
        total += width if spec.out_bias else 0
    else:
        total += spec.kv_rank + (spec.q_rank or 0)
        total += spec.kv_rank + spec.rope_dim + (spec.q_rank or 0) + width if spec.bias else 0
    if isinstance(mlp, MLPSpec) and mlp.bias:
        total += (2 if mlp.gated else 1) * mlp.hidden + width
    return total


# ---- parameters and bytes
def parameters(config: ModelConfig) -> int:
    """Weights in all, the embedding counted once when the head is tied to it."""
    return sum(m.size * m.held for m in matrices(config)) + _vectors(config)


def active_parameters(config: ModelConfig) -> int:
    """Weights that one token has to do with: all but the experts that it isn't sent to."""
    unused = sum(m.size * (m.held - m.used) for m in matrices(config) if m.kind == "block")
    return parameters(config) - unused


def embedding_parameters(config: ModelConfig) -> int:
    """Weights of the token table, the position table and an own head."""
    return sum(m.size * m.held for m in matrices(config) if m.kind != "block")


# Bits of a weight in a matrix, the scales of groups included. Rows that don't fill groups of 32 stay in 16
# bits, norms and biases in 32.
WEIGHT_BITS: dict[str, float] = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "int8": 8.5,  # groups of 32 with a 16-bit scale, like GGUF's Q8_0
    "int4": 4.5,  # groups of 32 with a 16-bit scale, like GGUF's Q4_0
}
CACHE_BYTES: dict[str, float] = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0}


def weight_bytes(config: ModelConfig, kind: str, *, active: bool = False) -> int:
    """Bytes of all weights in the format `kind`; `active`: those that are read for one token.

    The tables are read one row a token, the head as a whole.
    """
    total = 4 * _vectors(config)
    for m in matrices(config):
        copies = m.used if active else m.held
        packed = m.inputs % 32 == 0 or WEIGHT_BITS[kind] >= 16
        total += int(m.size * copies * (WEIGHT_BITS[kind] if packed else 16) / 8)
    return total


def cache_elements(config: ModelConfig, length: int) -> int:
    """Numbers that a text of `length` tokens keeps in the caches of all layers; a window or a chunk keeps
    no more than its own tokens."""
    return sum(spec.cache.elements * _kept(spec, length) for spec in config.attentions)


def cache_bytes(config: ModelConfig, length: int, kind: str) -> int:
    """Bytes of the cache after `length` tokens, its numbers in `kind`."""
    return int(cache_elements(config, length) * CACHE_BYTES[kind])


def cache_growth(config: ModelConfig, kind: str) -> int:
    """Bytes that one more token adds while the text is shorter than every window."""
    return cache_bytes(config, 1, kind)


def longest_cache(config: ModelConfig, room: int, kind: str) -> int:
    """The most tokens, up to the context, whose cache fits into `room` bytes."""
    low, high = 0, config.context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache_bytes(config, middle, kind) <= room else (low, middle - 1)
    return low


def _kept(spec: AttentionSpec | LatentSpec, length: int) -> int:
    return min(length, spec.window or length, spec.chunk or length)


# ---- operations
def forward_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of one token forward, on average over a text of `length` tokens."""
    products = sum(2.0 * m.size * m.used for m in matrices(config))
    return products + sum(2.0 * _score_channels(spec) * _seen(spec, length) for spec in config.attentions)


def train_flops_per_token(config: ModelConfig, length: int) -> float:
    """Operations of forward and backward for one token in a row of `length`: three times forward.

    With plain attention this is 6 for each weight of a matrix product (the embedding look-up is none, the
    head is one), and 12 * length * width for scores and values, halved by causality.
    """
    return 3.0 * forward_flops_per_token(config, length)


def _score_channels(spec: AttentionSpec | LatentSpec) -> int:
    """Products for one pair of tokens: query with key, weight with value, over all heads."""
    if isinstance(spec, AttentionSpec):
        return 2 * spec.heads * spec.head_dim
    return spec.heads * (spec.nope_dim + spec.rope_dim + spec.v_dim)


def _seen(spec: AttentionSpec | LatentSpec, length: int) -> float:
    """How many tokens a token sees on average: the mean over the text of min(position, window), or of the
    position in its chunk, with positions as a continuum, so that plain attention gives length / 2."""
    if spec.chunk is not None and spec.chunk < length:
        whole, rest = divmod(length, spec.chunk)
        return (whole * spec.chunk**2 + rest**2) / 2 / length
    if spec.window is not None and spec.window < length:
        return spec.window - spec.window**2 / 2 / length
    return length / 2
