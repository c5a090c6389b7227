"""Countdown with three numbers, by an expert that looks at every line.

The problems are those of `countdown`, their splits too. That expert gives up early, so that RL has something
to find out; where it is the result that counts, this one is practised: lines in the order of the numbers and
signs (the larger two first, then + - * /), none left out, until one hits. Each line follows from the one
before, so there is nothing to remember and no way in a circle, and three numbers have twelve lines at the
most. Products by one are tried as well; what stays out of reach, some 1 % of the deals, needs a fraction or a
product above 198 on the way, and there the answer is an honest "no".
"""

from __future__ import annotations

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem
from ayllu.reason.tasks.countdown import Countdown, lines
from ayllu.reason.transcript import Kind


class PatientCountdown(Countdown):
    """The levels of `countdown`."""

    family = "countdown3_patient"

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Every line up to the one that hits."""
        target, written = problem.data["target"], list[str]()
        for tries in lines(tuple(problem.data["numbers"]), ones=True):
            line = f"{tries[0].inner}={tries[0].value}"
            for attempt in tries:
                line += f" {attempt.outer}={attempt.result}"
                if attempt.result == target:
                    written.append(line + "!")
                    return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, attempt.expression())]
            written.append(line)
        return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, "no")]
