"""The planted logit: which log-odds of a click each row has, part by part.

A value's latent effects are a hash of (seed, what it is for, token), so that no table of them is kept however
many tokens there are. Shape suffix: R rows.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dmoe.synthetic.draw import BLOCK_ROWS, MISSING, PILOT_STREAM, Columns, blocks
from dmoe.synthetic.spec import Preset, Several

Floats = NDArray[np.float64]
Tokens = NDArray[np.int64]

PILOT_ROWS = 3 * BLOCK_ROWS
PARTS = ("main", "inner", "triple", "numeric", "several")
AFFINITY_RANK = 3
STEEPNESS = 2.0

# A probability is cut to 16 bits of mantissa: few enough distinct values to count them all.
_MANTISSA_CUT = 23 - 16
SMALLEST_PROBABILITY = 2.0**-20
LARGEST_PROBABILITY = 1.0 - 2.0**-16


def key(seed: int, purpose: str) -> np.uint64:
    """64 bits that say what a latent effect is for."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def scramble(token_R: Tokens, purpose: np.uint64) -> NDArray[np.uint64]:
    """A hash of each token: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    bits_R = token_R.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + purpose
    bits_R ^= bits_R >> np.uint64(30)
    bits_R *= np.uint64(0xBF58476D1CE4E5B9)
    bits_R ^= bits_R >> np.uint64(27)
    bits_R *= np.uint64(0x94D049BB133111EB)
    bits_R ^= bits_R >> np.uint64(31)
    return bits_R


def bell(token_R: Tokens, purpose: np.uint64) -> Floats:
    """An effect of mean 0 and variance 1 for each token, nearly normal and within +-3.47.

    The sum of the four 16-bit quarters of its hash (Irwin-Hall).
    """
    bits_R = scramble(token_R, purpose)
    mask = np.uint64(0xFFFF)
    total_R = (bits_R & mask) + ((bits_R >> np.uint64(16)) & mask)
    total_R += ((bits_R >> np.uint64(32)) & mask) + (bits_R >> np.uint64(48))
    # A uniform integer in [0, 65535] has variance (65536^2 - 1) / 12.
    deviation = math.sqrt(4 * (65536.0**2 - 1) / 12)
    return (total_R.astype(np.float64) - 2 * 65535) / deviation


def sign(token_R: Tokens, purpose: np.uint64) -> Floats:
    """+1 or -1 for each token: tokens 2k and 2k + 1, of similar frequency, get opposite signs."""
    up_R = (scramble(token_R >> 1, purpose) >> np.uint64(63)).astype(np.int64)
    return (1 - 2 * ((up_R + token_R) & 1)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class PlantedLogit:
    """The logit of a preset under a seed.

    `bias` plus, for each part, ``scale (raw - mean)`` times the weight that the context gives it.
    """

    preset: Preset
    seed: int
    bias: float
    means: dict[str, float]
    scales: dict[str, float]

    @staticmethod
    def calibrate(preset: Preset, seed: int) -> "PlantedLogit":
        """Parts of the preset's strengths, and the bias of its click rate, on a pilot of other rows."""
        return PlantedLogit.fitted(preset, seed, pilot(preset, seed))

    @staticmethod
    def fitted(preset: Preset, seed: int, pilot: Sequence[Columns]) -> "PlantedLogit":
        """`calibrate` on given rows; `seed` is that of the effects alone."""
        wanted = asdict(preset.strengths)
        raw = [raw_parts(preset, seed, columns) for columns in pilot]
        means = {part: float(np.mean([values[part].mean() for values in raw])) for part in PARTS}
        unscaled = PlantedLogit(preset, seed, 0.0, means, dict.fromkeys(PARTS, 1.0))
        parts = [unscaled.parts(columns) for columns in pilot]
        scales = {}
        logit_R = np.zeros(sum(map(len, pilot)))
        for part in PARTS:
            value_R = np.concatenate([values[part] for values in parts])
            scales[part] = wanted[part] / float(value_R.std()) if wanted[part] else 0.0
            logit_R += scales[part] * value_R
        return PlantedLogit(preset, seed, bias_for(logit_R, preset.click_rate), means, scales)

    def parts(self, columns: Columns) -> dict[str, Floats]:
        """Each part's contribution to the logit of these rows (R,), context weight included."""
        raw = raw_parts(self.preset, self.seed, columns)
        parts = {part: self.scales[part] * (raw[part] - self.means[part]) for part in PARTS}
        lean_R = sign(columns.tokens[self.preset.context], key(self.seed, "context"))
        contrast = self.preset.context_contrast
        parts["inner"] *= 1 + contrast * lean_R
        parts["triple"] *= 1 - contrast * lean_R
        return parts

    def probability_of(self, parts: Mapping[str, Floats]) -> NDArray[np.float32]:
        """P(click) of rows with these parts (R,), cut to 16 bits of mantissa: labels are drawn with it."""
        return cut(sigmoid(self.bias + sum_parts(parts)))


def pilot(preset: Preset, seed: int) -> list[Columns]:
    """The rows that a preset is calibrated on, of streams that no row of the log comes from."""
    return list(blocks(preset, seed, PILOT_ROWS, PILOT_STREAM, telling=True))


def raw_parts(preset: Preset, seed: int, columns: Columns) -> dict[str, Floats]:
    """The parts before scaling and context, each (R,)."""
    tokens = columns.tokens
    rows = len(columns)
    main_R, inner_R, triple_R, numeric_R, several_R = (np.zeros(rows) for _ in PARTS)
    for column in preset.categorical:
        if not column.main:
            continue
        # By the clock: an hour column counts hours since the log's start.
        token_R = tokens[column.name] % 24 if column.text == "hour" else tokens[column.name]
        main_R += column.main * bell(token_R, key(seed, f"main/{column.name}"))
    for left, right in preset.pairs:
        for component in range(preset.rank):
            purpose = f"inner/{left}/{right}/{component}"
            inner_R += bell(tokens[left], key(seed, purpose + "/left")) * bell(
                tokens[right], key(seed, purpose + "/right")
            )
    for names in preset.triples:
        product_R = np.ones(rows)
        for name in names:
            product_R *= preset.triple_mean + sign(tokens[name], key(seed, f"triple/{'/'.join(names)}/{name}"))
        triple_R += product_R
    for number, name in preset.numeric_pairs:
        purpose = f"numeric/{number}/{name}"
        threshold_R = 0.7 * bell(tokens[name], key(seed, purpose + "/threshold"))
        amplitude_R = bell(tokens[name], key(seed, purpose + "/amplitude"))
        step_R = amplitude_R * np.tanh(STEEPNESS * (columns.numbers[number] - threshold_R))
        numeric_R += np.nan_to_num(step_R, nan=0.0)
    for several in preset.several:
        several_R += _several_part(several, seed, tokens)
    return {"main": main_R, "inner": inner_R, "triple": triple_R, "numeric": numeric_R, "several": several_R}


def _several_part(column: Several, seed: int, tokens: Mapping[str, Tokens]) -> Floats:
    """The mean effect of a row's tokens, and of their affinity to the column that they share with; 0 without any."""
    token_RL = tokens[column.name]
    present_RL = token_RL != MISSING
    effect_RL = column.main * bell(token_RL, key(seed, f"several/{column.name}"))
    if column.shares is not None:
        for component in range(AFFINITY_RANK):
            purpose = affinity_purpose(seed, column.shares, component)
            effect_RL = effect_RL + bell(token_RL, purpose) * bell(tokens[column.shares], purpose)[:, None]
    mean_R: Floats = (effect_RL * present_RL).sum(1) / np.maximum(present_RL.sum(1), 1)
    return mean_R


def affinity_purpose(seed: int, column: str, component: int) -> np.uint64:
    return key(seed, f"affinity/{column}/{component}")


def sum_parts(parts: Mapping[str, Floats]) -> Floats:
    return parts["main"] + parts["inner"] + parts["triple"] + parts["numeric"] + parts["several"]


def sigmoid(logit_R: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit_R))


def cut(probability_R: Floats) -> NDArray[np.float32]:
    """Probabilities within 2^-20 and 1 - 2^-16, cut to 16 bits of mantissa."""
    clipped_R = np.clip(probability_R, SMALLEST_PROBABILITY, LARGEST_PROBABILITY).astype(np.float32)
    bits_R = clipped_R.view(np.uint32) >> np.uint32(_MANTISSA_CUT) << np.uint32(_MANTISSA_CUT)
    return bits_R.view(np.float32)


def rank_key(probability_R: NDArray[np.float32]) -> NDArray[np.int64]:
    """The position of each cut probability among all possible ones, from 0."""
    lowest = int(np.float32(SMALLEST_PROBABILITY).view(np.uint32)) >> _MANTISSA_CUT
    return (probability_R.view(np.uint32) >> np.uint32(_MANTISSA_CUT)).astype(np.int64) - lowest


NUM_RANK_KEYS = 20 << 16


def bias_for(logit_R: Floats, rate: float, weight_R: Floats | None = None) -> float:
    """The b for which the (weighted) mean of sigmoid(b + logit) is the rate, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(np.average(sigmoid(middle + logit_R), weights=weight_R)) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
