"""One step's work for an executor: a ragged batch over the paged cache.

Any number of sequences, each with one new token or a stretch of its prompt (continuous batching, Orca, Yu et
al. 2022; chunked prefill, Sarathi, Agrawal et al. 2023). Keys and values live in blocks of `BLOCK` tokens
that a sequence's table lists (PagedAttention, Kwon et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK = 16  # tokens

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """All arrays are int32. The tokens of a sequence stand together, in order of position.

    `tokens_T`, `positions_T`: what is stored and where. `sequence_T`: each token's row of `tables_SW`, whose
    entry j is the block that holds positions 16j to 16j + 15. `wanted_L`: the tokens (indices into T,
    ascending) whose logits are asked for.
    """

    tokens_T: Int32
    positions_T: Int32
    sequence_T: Int32
    tables_SW: Int32
    wanted_L: Int32
