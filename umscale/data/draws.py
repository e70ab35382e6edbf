"""Random draws as pure functions of (seed, name, index, position): no state, the same on every machine and version.

Draw c of row i of a stream is SplitMix64 (Steele, Lea & Flood 2014, the finaliser of Stafford's variant 13) at counter
c of a key that is itself the hash of the stream's key and i. So any part of a generated text can be made alone.
"""

from dataclasses import dataclass

import numpy as np

from umscale.rng import derive_seed

_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 to uint64, bijectively (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class Draws:
    """The random draws of rows ``index`` (int64 ``[n]``, not negative) of the named streams of a seed."""

    seed: int
    index: np.ndarray

    def words(self, name: str, *shape: int) -> np.ndarray:
        """Return independent uniform uint64 ``[n, *shape]`` of the stream ``name``."""
        key = np.uint64(derive_seed(self.seed, name))
        keys = mix(key + (self.index.astype(np.uint64) + np.uint64(1)) * _STEP)
        size = int(np.prod(shape, dtype=np.int64))
        counters = np.arange(1, size + 1, dtype=np.uint64) * _STEP
        return mix(keys[:, None] + counters).reshape(len(keys), *shape)

    def below(self, bound: int, name: str, *shape: int) -> np.ndarray:
        """Return int64 ``[n, *shape]`` uniform in [0, bound), up to ``bound`` / 2^32 of bias; ``bound`` <= 2^32."""
        high = self.words(name, *shape) >> np.uint64(32)
        return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """Return float64 ``[n, *shape]`` uniform in [0, 1)."""
        return (self.words(name, *shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def choose(self, bound: int, count: int, name: str, *shape: int) -> np.ndarray:
        """Return int64 ``[n, *shape, count]``: different numbers below ``bound``, in random order."""
        bits = np.uint64(max(1, (bound - 1).bit_length()))
        # A number in the low bits of its word: sorting is several times as fast as argsort, and without ties.
        keyed = (self.words(name, *shape, bound) << bits) | np.arange(bound, dtype=np.uint64)
        keyed.sort(axis=-1)
        return (keyed[..., :count] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
