"""Branch and bound: is an expression of real variables anywhere negative?

Boxes whose bounds leave it open are halved, in a variable in which the whole line is short, across the side that
leaves least to do, until bounds show them not to be negative or a point in them is (Hansen and Walster, Global
Optimization Using Interval Analysis, 2004).  A narrow dip is found wherever it is: bounds of a box that holds it
know of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sympy import Expr, Symbol

from theory.enclosure import Enclosure
from theory.intervals import LINE, Interval, around

ROUNDING = 1e-12
"""Part of the absolute values of all terms that counts as rounding."""

FARTHEST = 1e30
"""Boxes that are halved reach this far; what is beyond no float computation can use."""

NEGLIGIBLE = 1e-15
"""A value below 0 by less than this is 0, whatever it is made of: parameters come rounded, and tails underflow."""

NARROW = 1e-13
"""Boxes narrower than this in every variable are not halved any more."""

POLISHING = 60
"""Halvings of the step in the search for the lowest value near a place that is negative."""


@dataclass(frozen=True)
class Verdict:
    """What is known of the sign.

    Attributes
    ----------
    proved
        The expression is nowhere negative.
    place, value
        Where it is, and how much; None where no such place was found.
    """

    proved: bool
    place: Mapping[Symbol, float] | None = None
    value: float | None = None


PROVED = Verdict(True)
OPEN = Verdict(False)

Condition = tuple[Expr, bool]
"""An argument of a step, and whether it is positive: only such places count."""


def side_of(symbol: Symbol, conditions: Sequence[Condition]) -> Interval:
    """Where a variable may lie by the conditions that are on it alone."""
    low, high = LINE
    for argument, positive in conditions:
        offset = argument - symbol
        if offset.is_Rational:
            start, end = around(Fraction(int(-offset.p), int(offset.q)))
            low, high = (max(low, start), high) if positive else (low, min(high, end))
    return low, high


def is_positive_on(forms: Sequence[Enclosure], box: Sequence[Interval], strictly: bool) -> bool:
    """Whether bounds by any of the forms show it not to be negative, or positive."""
    lowest = max(form.bounds(box)[0] for form in forms)
    return lowest > 0.0 or (lowest == 0.0 and not strictly)


class Search:
    """Boxes of the variables that are halved until nothing negative is left in them, or a point is found.

    Parameters
    ----------
    forms
        Enclosures of the expression whose sign is asked for, and of others of the same sign.
    slopes
        Enclosures of its derivatives by each of the variables.
    variables, conditions
        Variables of the enclosures, and enclosures of what must be positive (True) or negative.
    strictly
        Whether 0 counts as negative.
    """

    def __init__(
        self,
        forms: Sequence[Enclosure],
        slopes: Sequence[Enclosure],
        variables: Sequence[Symbol],
        conditions: Sequence[tuple[Enclosure, bool]],
        strictly: bool,
    ) -> None:
        self.forms, self.slopes, self.conditions = forms, slopes, conditions
        self.variables, self.strictly = variables, strictly
        self.cost = sum(len(form) for form in (*self.forms, *(c for c, _ in self.conditions)))
        self.slope_cost = sum(len(slope) for slope in self.slopes) + len(self.forms[0])

    def run(self, budget: int, *, refute: bool = True) -> Verdict:
        """Breadth first: what is left after a round is where bounds are still negative.  ``refute``: look at points, too."""
        boxes = deque([tuple((-FARTHEST, FARTHEST) for _ in self.variables)])
        complete, lowest = True, math.inf
        while boxes and budget > 0:
            box = boxes.popleft()
            budget -= self.slope_cost + self.cost
            middle = [_middle(interval) for interval in box]
            if refute and self.conditions_hold(middle) and (value := self.value(middle)) < lowest:
                # Down from the lowest place so far: what is negative may be much smaller than what is low.
                lowest = value
                budget -= POLISHING * len(box) * self.cost
                found = self.negative_at(middle)
                if found is not None:
                    return found
            if self.is_positive_to_rounding(box, self.forms[0].bounds(box)[0]) or self.is_positive_by_slope(box):
                continue
            sides = sorted(range(len(box)), key=lambda k, box=box: math.asinh(box[k][0]) - math.asinh(box[k][1]))
            cuts = [parts for k in sides if (parts := _halves(box, k))]
            left = [[part for part in parts if self.is_open(part)] for parts in cuts]
            budget -= 2 * len(cuts) * self.cost
            complete &= bool(cuts)
            # Across the side that leaves least to do; the sides come in order of length.
            boxes.extend(min(left, key=len, default=[]))
        return PROVED if complete and not boxes else OPEN

    def is_open(self, box: Sequence[Interval]) -> bool:
        """Whether bounds leave room for something negative where the conditions are met."""
        return self.allowed(box) and not is_positive_on(self.forms, box, self.strictly)

    def allowed(self, box: Sequence[Interval]) -> bool:
        """Whether the conditions are met somewhere in the box."""
        for argument, positive in self.conditions:
            low, high = argument.bounds(box)
            if (high <= 0.0) if positive else (low >= 0.0):
                return False
        return True

    def value(self, point: Sequence[float]) -> float:
        """The expression at a point, rounded up."""
        return self.forms[0].bounds([(x, x) for x in point])[1]

    def negative_at(self, point: Sequence[float]) -> Verdict | None:
        """The verdict if the expression is negative beyond rounding at a point, or at the lowest nearby; None if not."""
        if not self.conditions_hold(point):
            return None
        nearby = self.lowest(point)
        for place in (nearby, point):
            if self.is_negative(place):
                low, high = self.forms[0].bounds([(x, x) for x in place])
                return Verdict(False, dict(zip(self.variables, place, strict=True)), 0.5 * (low + high))
        return None

    def conditions_hold(self, point: Sequence[float]) -> bool:
        for argument, positive in self.conditions:
            low, high = argument.bounds([(x, x) for x in point])
            if not (low > 0.0 if positive else high < 0.0):
                return False
        return True

    def is_negative(self, point: Sequence[float]) -> bool:
        upper = self.value(point)
        if self.strictly:
            return upper <= 0.0
        return upper < -NEGLIGIBLE and upper < -ROUNDING * self.forms[0].magnitude([(x, x) for x in point])

    def lowest(self, place: Sequence[float]) -> list[float]:
        """The lowest value near a place, by a search along the axes; the place itself if there is none near."""
        best, value = list(place), self.value(place)
        for k in range(len(best)):
            step = 0.25 * max(1.0, abs(best[k]))
            for _ in range(POLISHING):
                points = [[*best[:k], moved, *best[k + 1 :]] for moved in (best[k] - step, best[k] + step)]
                least = min(
                    ((self.value(point), point) for point in points if self.conditions_hold(point)), default=None
                )
                if least is not None and least[0] < value:
                    value, best = least
                else:
                    step *= 0.5
        far = any(abs(x - start) > max(1.0, abs(start)) for x, start in zip(best, place, strict=True))
        return list(place) if far else best

    def is_positive_by_slope(self, box: Sequence[Interval]) -> bool:
        """The mean value form: value in the middle plus bounds of the slopes times the distance, and rounding."""
        if any(high - low > 1.0 + 0.5 * abs(low + high) for low, high in box):
            return False
        middles = [_middle(interval) for interval in box]
        lowest = self.forms[0].bounds([(x, x) for x in middles])[0]
        for slope, middle, (low, high) in zip(self.slopes, middles, box, strict=True):
            steepest = max(map(abs, slope.bounds(box)))
            if steepest > 0.0:
                lowest -= steepest * max(high - middle, middle - low) * (1.0 + ROUNDING)
        return self.is_positive_to_rounding(box, lowest)

    def is_positive_to_rounding(self, box: Sequence[Interval], lowest: float) -> bool:
        """Whether the lowest value in a box is not negative; half of what may be called negative is left to be found."""
        if self.strictly:
            return lowest > 0.0
        if lowest >= -0.5 * NEGLIGIBLE:
            return True
        return lowest > -math.inf and lowest >= -0.5 * ROUNDING * self.forms[0].magnitude(box)


def _middle(interval: Interval) -> float:
    """The middle in a variable that is the logarithm far out; -1, 0 and 1 come first."""
    low, high = interval
    if low == 0.0 and high > 2.0:
        return 1.0
    if high == 0.0 and low < -2.0:
        return -1.0
    middle = math.sinh(0.5 * (math.asinh(low) + math.asinh(high)))
    return middle if low < middle < high else 0.5 * (low + high)


def _halves(box: Sequence[Interval], k: int) -> list[tuple[Interval, ...]]:
    """The box cut in two across side k; nothing if that is too narrow."""
    low, high = box[k]
    middle = _middle(box[k])
    if high - low <= NARROW * max(1.0, abs(low), abs(high)) or not low < middle < high:
        return []
    return [(*box[:k], part, *box[k + 1 :]) for part in ((low, middle), (middle, high))]
