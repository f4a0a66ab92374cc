"""Every constant of the numeric contract, once. The contract itself is docs/numerics.md."""

#: Largest magnitude of an int8 code; -128 never occurs in a weight.
CODE_MAX = 127
#: Base of the two int8 digits of an activation: q = lo + DIGIT_BASE * hi.
DIGIT_BASE = 256
#: Largest magnitude of a quantised outlier activation: 127 * 256, so that both digits fit int8.
OUTLIER_MAX = CODE_MAX * DIGIT_BASE
#: Range of the scaled magnitudes by which the automatic rule compares a row's elements.
MAGNITUDE_MAX = 32767
#: The automatic rule: an outlier exceeds this many times the mean magnitude of its row.
AUTO_FACTOR = 8
#: The share of a layer's columns that may have a second weight digit.
OUTLIER_COLUMN_SHARE = 0.02
#: Rows whose largest magnitude is below this are zero: 127 / amax must stay finite in float32.
TINY = 2.0**-100
#: Largest K for which 128 * 127 * K fits int32.
MAX_FEATURES = 131_072
#: The paper's threshold (section 3.2 of arXiv 2208.07339); also that of a configuration which names none.
PAPER_THRESHOLD = 6.0
#: Where nothing else is asked for; why, docs/accuracy.md says under "Which threshold".
DEFAULT_THRESHOLD = 6.0
#: What a user writes for the scale-free outlier rule, and its code in operator arguments.
AUTO = "auto"
AUTO_CODE = -1.0
#: `weight_format` of a row-major int8 weight, as bitsandbytes writes it.
ROW_MAJOR = 0

# Float arithmetic of the decoder (docs/numerics.md, "Decoder"). Every value is a float32.
#: Partial sums of a float sum: element i goes to lane i mod LANES.
LANES = 16
#: Elements whose products attention adds in two chains, of even and of odd ones.
PAIR_BLOCK = 32
#: Smaller bfloat16 magnitudes count as zero in attention.
SPECK = 2.0**-50
#: Arguments of the exponential outside of these give 0, and the value at the upper end.
EXP_RANGE = (-87.0, 88.0)
#: 1 / ln 2; ln 2 as a number of few bits, so that small multiples are exact, and the rest.
LOG2_E = float.fromhex("0x1.715476p+0")
LN2_HIGH, LN2_LOW = float.fromhex("0x1.63p-1"), float.fromhex("-0x1.bd0106p-13")
#: Of a float32.
EXPONENT_BIAS = 127
#: (e^r - 1 - r) / r² for |r| <= ln 2 / 2, from the constant on; relative error of e^r 3e-9.
EXP_POLYNOMIAL = (0.4999999403953552, 0.1666651964187622, 0.04166839271783829, 0.008368780836462975,
                  0.0013814467238262296)  # fmt: skip
#: ln(erfc(z) e^z² / t) for t = 1 / (1 + z / 2), z >= 0, from the constant on; error 4e-8.
ERFC_POLYNOMIAL = (-1.2654201984405518, 0.9980717897415161, 0.39142826199531555, 0.011855486780405045,
                   0.06776737421751022, -0.2047463059425354, -0.5465987324714661, 1.0449073314666748,
                   -0.6335616707801819, 0.13629665970802307)  # fmt: skip
SQRT_HALF = float.fromhex("0x1.6a09e6p-1")
#: 2 √(2 / π) and the factor of the cube in the tanh form of GELU.
GELU_TANH_SCALE = float.fromhex("0x1.988454p+0")
GELU_TANH_CUBIC = float.fromhex("0x1.6e4e26p-5")
#: Elements of an optimizer's state that share one absmax (section 2.1 of arXiv 2110.02861).
OPTIMIZER_BLOCK = 256
#: Tensors with fewer elements keep their optimizer state in 32 bits (the same paper's released code).
MIN_8BIT_SIZE = 4096
#: Blocks of optimizer state whose largest magnitude is below this are zero: 1 / absmax must stay finite.
SMALLEST_NORMAL = 2.0**-126
#: Elements of a 4-bit weight that share one scale (section 4 of arXiv 2305.14314).
FOURBIT_BLOCK = 64
#: Scales of 4-bit blocks are no smaller where something is divided by them, as in bitsandbytes.
SMALLEST_SCALE = 1e-38
#: NF4, normalised quantiles of the normal distribution (appendix E of the same paper), as published.
NF4_VALUES = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
              -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
              0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
              0.7229568362236023, 1.0)  # fmt: skip
#: Magnitudes of FP4 in the order of its three bits, in twelfths of the largest.
FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
