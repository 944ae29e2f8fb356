"""Which images a report shows where there are more than it can hold: the best, the worst and some at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from transfiner_refine.report.scenes import Scene

__all__ = ["choose"]


def choose(scenes: Sequence[Scene], limit: int, *, seed: int = 0) -> tuple[list[Scene], str]:
    """At most ``limit`` images, in the order they came, and a sentence that says how they were chosen.

    With truth a third are those with the largest gains, a third those with the largest losses, and the rest
    random; without, half are those that changed most. What is random keeps the choice honest.

    Args:
        scenes: all images.
        limit: most images to show; 0 for all.
        seed: of the random ones.
    """
    if limit == 0 or len(scenes) <= limit:
        return list(scenes), ""
    numbers = range(len(scenes))
    gains = {n: [shown.gain for shown in scenes[n].instances if shown.gain is not None] for n in numbers}
    known = [n for n in numbers if gains[n]]
    chosen: dict[int, None] = {}  # an ordered set
    if known:
        share = limit // 3
        best = sorted(known, key=lambda n: -max(gains[n]))
        worst = sorted(known, key=lambda n: min(gains[n]))
        chosen.update(dict.fromkeys(best[:share]))
        chosen.update(dict.fromkeys(worst[:share]))
        how = f"{share} with the largest gains, {share} with the largest losses, the others at random"
    else:
        changed = [max(shown.changed for shown in scene.instances) for scene in scenes]
        chosen.update(dict.fromkeys(sorted(numbers, key=lambda n: -changed[n])[: limit // 2]))
        how = f"{limit // 2} that changed most, the others at random"
    rest = [n for n in numbers if n not in chosen]
    chosen.update(dict.fromkeys(random.Random(seed).sample(rest, limit - len(chosen))))
    return [scenes[n] for n in sorted(chosen)], f"{limit} of {len(scenes)} images: {how}."
