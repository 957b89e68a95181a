// Magnitudes of pruned channels that are drawn from a distribution (docs/operators.md). src/method/recovery.rs is the
// reference: the same numbers for the same positions and channels.
#ifndef SPARK_DRAWS_H
#define SPARK_DRAWS_H

#ifndef SPARK_NUMBERS_H
#error "include rows.h instead"
#endif

// Quantiles at (i + 1/2) / 64, in 4096ths, their mean square 1: of the exponential and of the half-normal distribution.
SPARK_TABLE(u16, EXPONENTIAL_DRAWS, 64) = {
    23,   70,   117,  166,  215,  265,  316,  367,  420,  474,  528,  584,  640,  698,   757,   817,
    879,  941,  1006, 1071, 1138, 1207, 1277, 1349, 1422, 1498, 1575, 1655, 1737, 1821,  1908,  1997,
    2089, 2184, 2283, 2384, 2490, 2599, 2712, 2830, 2953, 3081, 3215, 3355, 3503, 3658,  3822,  3995,
    4180, 4376, 4587, 4814, 5059, 5327, 5622, 5950, 6319, 6741, 7233, 7825, 8565, 9557, 11063, 14301,
};
SPARK_TABLE(u16, NORMAL_DRAWS, 64) = {
    40,   121,  202,  282,  363,  444,  525,  607,  688,  770,  853,  935,  1018, 1101, 1185, 1269,
    1354, 1440, 1526, 1612, 1700, 1788, 1877, 1967, 2058, 2149, 2242, 2337, 2432, 2529, 2627, 2726,
    2827, 2930, 3035, 3142, 3251, 3362, 3476, 3593, 3712, 3835, 3961, 4091, 4225, 4364, 4508, 4658,
    4814, 4978, 5150, 5331, 5523, 5728, 5949, 6188, 6449, 6740, 7069, 7450, 7909, 8495, 9329, 10950,
};

// What the recovery magnitude of the row at `position` is multiplied by for channel `j`, if it is drawn.
SPARK_FN float drawn(u32 recover, u32 position, u32 j) {
    u32 x = 256 * position + j;
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    const u32 at = (x ^ x >> 16) >> 26;
    return (float)(recover == SPARK_RECOVER_NORMAL ? NORMAL_DRAWS[at] : EXPONENTIAL_DRAWS[at]) * (1.0f / 4096.0f);
}

#endif
