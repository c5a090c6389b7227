"""Countdown with three numbers, by an expert that looks at every line.

The problems are those of `countdown`, their splits too. That expert gives up early, so that RL has something
to find out; where it is the result that counts, this one is practised: lines in the order of the numbers and
signs (the larger two first, then + - * /), none left out, until one hits. Each line follows from the one
before, so there is nothing to remember and no way in a circle, and three numbers have twelve lines at the
most. Last steps are written as Countdown-4 writes them, sign and value, and only when they could be a
target: `98-79=19 3: +22 -16 *57`. Divisions that don't work out are written with what remains, `98/79=1r19`,
`98+79=177 4: /44r1`: where only those that do were written, seven of nine misses of a model of 3 million
parameters were a division that it didn't see (lab log, 2026-11-29). Products by one are tried as well; what
stays out of reach, some 1 % of the deals, needs a fraction or a product above 198 on the way, and there the
answer is an honest "no".
"""

from __future__ import annotations

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem
from ayllu.reason.tasks.countdown import PRODUCT_BOUND, TARGETS, Countdown, pairs
from ayllu.reason.transcript import Kind


def results(x: int, y: int, least: int, most: int) -> list[tuple[str, int, int]]:
    """What can be made of two numbers: sign, value from `least` to `most`, what remains of a division."""
    high, low = max(x, y), min(x, y)
    every = [("+", high + low, 0), ("-", high - low, 0), ("*", high * low, 0)]
    if low > 1:
        every.append(("/", high // low, high % low))
    return [(sign, made, rest) for sign, made, rest in every if least <= made <= most]


class PatientCountdown(Countdown):
    """The levels of `countdown`."""

    family = "countdown3_patient"

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Every line up to the one that hits."""
        target, written = problem.data["target"], list[str]()
        for x, y, left in pairs(tuple(problem.data["numbers"])):
            for sign, value, remains in results(x, y, 1, PRODUCT_BOUND):
                if remains:
                    written.append(f"{x}{sign}{y}={value}r{remains}")
                    continue
                line = f"{x}{sign}{y}={value} {left}:"
                for then, made, rest in results(value, left, *TARGETS):
                    line += f" {then}{made}" + (f"r{rest}" if rest else "")
                    if made == target and not rest:
                        written.append(line + "!")
                        sides = [f"({x}{sign}{y})", str(left)]
                        if then in "-/" and value < left:
                            sides.reverse()
                        return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, then.join(sides))]
                written.append(line)
        return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, self.gives_up)]
