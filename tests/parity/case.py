"""One row of the parity table: a tiny configuration and what is special about its text."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """`keys`: of transformers' config class. `model_type`: its name there, where it isn't the family's.

    `without`: keys that switch off what the row is about; with the same weights the judge's logits must
    then change, or the row would compare nothing. `length`: tokens of the text.

    `shortest`, `longest`: the lengths between which a text's beginning is computed as it is within the
    whole text. Some scalings of rotary positions choose their frequencies by the length of the whole text,
    and a cache keeps keys that were turned by those of the length of then: step-by-step decoding and
    batches of different lengths are compared within these bounds.
    """

    keys: dict[str, Any]
    without: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""
    length: int = 40
    shortest: int = 1
    longest: int | None = None
