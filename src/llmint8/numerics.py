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
#: Rows whose largest magnitude is below this are zero: 127 / amax must stay finite in float32.
TINY = 2.0**-100
#: Largest K for which 128 * 127 * K fits int32.
MAX_FEATURES = 131_072
#: The paper's threshold (section 3.2 of arXiv 2208.07339).
DEFAULT_THRESHOLD = 6.0
#: What a user writes for the scale-free outlier rule, and its code in operator arguments.
AUTO = "auto"
AUTO_CODE = -1.0
#: `weight_format` of a row-major int8 weight, as bitsandbytes writes it.
ROW_MAJOR = 0
