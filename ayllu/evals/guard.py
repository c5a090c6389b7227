"""The stage `guard`: a run whose practice stands in an official test set is refused before it begins.

A recipe has it when it has its table:

    [guard]
    examined = ["data/eval"]

It looks at problems of every family that any later stage practises (sft, rl, expert, verifier, distill), with
the evidence of `evals/contamination.py`. The pretraining text has a guard of its own (`evaluation` in the
table `[text]`), which leaves documents out instead of refusing. Rows of others (`sft.gsm8k`) need a guard; a
guarded run with text of others needs that one as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ayllu.errors import RecipeValueError
from ayllu.evals.contamination import practised_texts, refuse_overlap
from ayllu.reason.practice import read_rows
from ayllu.stage import StageContext, free

CODE_VERSION = 3  # 3: texts are compared in one form


@dataclass(frozen=True)
class GuardSettings:
    """What the practice is compared with."""

    examined: tuple[str, ...] = free((), "folders of official test sets that practice must not overlap")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for text of others that is compared with nothing."""
        text = tables.get("text")
        if not self.examined or text is None or text.evaluation:
            return
        if tuple(text.corpus) != tuple(type(text)().corpus):
            raise RecipeValueError(
                "guard.examined: practice is compared with test sets, and text of your own isn't",
                fix='name the files of the test sets in [text] too: evaluation = ["FILE"]',
            )


class Practising(Protocol):
    """Settings of a stage that samples problems; without families those of SFT."""

    @property
    def families(self) -> dict[str, float]: ...


class Practised(Protocol):
    """Settings of SFT and RL."""

    def shares(self) -> dict[str, float]: ...


class Supervised(Practised, Protocol):
    """Settings of SFT, which also name the user's own rows."""

    @property
    def gsm8k(self) -> tuple[str, ...]: ...


def guard(
    context: StageContext,
    settings: GuardSettings,
    *,
    sft: Supervised,
    rl: Practised,
    expert: Practising | None = None,
    verifier: Practising | None = None,
    distill: Practising | None = None,
) -> dict[str, Any]:
    """Compare; what was compared. Raises ContaminationError, RecipeValueError without a folder,
    InputNotFoundError for one without tests."""
    if not settings.examined:
        raise RecipeValueError(
            "guard.examined: no folder", fix="name the folders of the test sets, or leave [guard] out"
        )
    read_rows(context.root, sft.gsm8k)
    further = [stage.families for stage in (expert, verifier, distill) if stage]
    wanted = {name for shares in (sft.shares(), rl.shares(), *further) for name, n in shares.items() if n}
    practised = practised_texts(dict.fromkeys(sorted(wanted), 1.0), context.seed)
    counted = refuse_overlap(practised, [context.root / folder for folder in settings.examined])
    context.progress.finish(f"no overlap of {len(wanted)} families with {counted:,} official test texts")
    return {"families": sorted(wanted), "official_texts": counted}
