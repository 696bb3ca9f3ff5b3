"""Random numbers without a generator: a number is a function of what it is for.

Every draw is a hash of integers that name it (seed, epoch, repeat, identity, slot, purpose), computed for whole arrays
at once. Nothing is saved or advanced, so a draw depends neither on the number of workers nor on what else is drawn.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]

# Increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014; finaliser variant 13 of D. Stafford).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def words(*parts: ArrayLike) -> Words:
    """One pseudo-random 64-bit word for each element of the broadcast integer arrays `parts`.

    >>> words(1, [2, 3]).tolist() == [words(1, 2).item(), words(1, 3).item()]
    True
    >>> words(1, 2).item() == words(2, 1).item()
    False
    """
    state: Words = np.zeros((), np.uint64)
    for part in parts:
        value = np.asarray(part)
        if value.dtype.kind not in "iu":
            raise ValueError(f"draws are named by integers, got an array of {value.dtype}")
        state = _mixed(state ^ value.astype(np.uint64))
    return state


def uniforms(*parts: ArrayLike) -> NDArray[np.float64]:
    """One pseudo-random number in [0, 1) for each element of the broadcast integer arrays `parts`."""
    return (words(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: Words) -> Words:
    with np.errstate(over="ignore"):
        state = state + _INCREMENT
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
