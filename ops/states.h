// Partial softmax states (Milakov and Gimelshein 2018; FlashInfer's attention state) in the workspace: for every query
// and every piece of its keys, the weighted sum of values, float32 [queries, splits, D], and after all of them the
// greatest score and the sum of exponentials, float32 [queries, splits, 2]. A query is (sequence of the launch, query
// head, new token). Sums of rotated values stay rotated: of all pieces but the last one.
#ifndef SPARK_STATES_H
#define SPARK_STATES_H

#include "rows.h"
#include "tokens.h"

SPARK_FN i64 state_index(const SparkCall& call, u32 sequence, u32 head, u32 i, u32 split) {
    return (((i64)sequence * call.query_heads + head) * call.new_tokens + i) * call.splits + split;
}

SPARK_FN float* state_values(const SparkCall& call, i64 state) {
    return (float*)call.workspace + state * call.head_dim;
}

// Greatest score, sum.
SPARK_FN float* state_scalars(const SparkCall& call, i64 state) {
    const i64 states = (i64)call.sequences * call.query_heads * call.new_tokens * call.splits;
    return (float*)call.workspace + states * call.head_dim + state * 2;
}

// exp(from - to) for a greatest score `to` not below `from`; 0 if no key was seen, without a branch.
SPARK_FN float rescale(float from, float to) { return exp_of(from > NO_SCORE ? from - to : -1000.0f); }

// Writes eight channels of a query's result: the output if its keys are in one piece, else the state of the piece.
SPARK_FN void write_result(const SparkCall& call, u32 head, u32 i, u32 split, u32 octet, float max, float sum,
                           const float (&weighted)[8]) {
    if (call.splits == 1) {
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
        float x[8];
        SPARK_UNROLL
        for (u32 k = 0; k < 8; ++k) x[k] = weighted[k] * factor;
        const i64 at = token_at(call.output, call.first_sequence + block_z(), head, i);
        write_octet(call.scalar, (void*)call.output.data, at + 8 * octet, x);
        return;
    }
    const i64 state = state_index(call, block_z(), head, i, split);
    write_octet(SPARK_FLOAT32, state_values(call, state), 8 * octet, weighted);
    if (octet == 0) {
        store(state_scalars(call, state), max);
        store(state_scalars(call, state) + 1, sum);
    }
}

// The same for two channels from an even one on, of T float16 or bfloat16.
SPARK_FN void write_pair(const SparkCall& call, u32 head, u32 i, u32 split, u32 first, float max, float sum,
                         const float (&weighted)[2]) {
    if (call.splits == 1) {
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f, low = weighted[0] * factor, high = weighted[1] * factor;
        const i64 at = token_at(call.output, call.first_sequence + block_z(), head, i) + first;
        const bool halves = call.scalar == SPARK_FLOAT16;
        const u32 first_bits = halves ? to_finite_half(low) : to_brain(low);
        const u32 second_bits = halves ? to_finite_half(high) : to_brain(high);
        store((u32*)((u16*)call.output.data + at), first_bits | second_bits << 16);
        return;
    }
    const i64 state = state_index(call, block_z(), head, i, split);
    store(state_values(call, state) + first, weighted[0]);
    store(state_values(call, state) + first + 1, weighted[1]);
    if (first == 0) {
        store(state_scalars(call, state), max);
        store(state_scalars(call, state) + 1, sum);
    }
}

SPARK_CONSTANT u32 MERGE_WAVES = SPARK_BLOCK_WAVES;

// Adds the weighted sums of pieces `from` to below `to`, from state `first` on, to channels that a wave shares.
SPARK_FN void add_states(const SparkCall& call, i64 first, u32 from, u32 to, float max, float (&x)[CHUNKS]) {
    for (u32 n = from; n < to; ++n) {
        const float weight = rescale(load(state_scalars(call, first + n)), max);
        const float* values = state_values(call, first + n);
        SPARK_UNROLL
        for (u32 c = 0; c < CHUNKS; ++c) {
            const u32 j = c * WAVE + lane();
            if (j < call.head_dim) x[c] = fused(weight, load(values + j), x[c]);
        }
    }
}

// Merges the states of a query into its output, one wave per query. Blocks: x = MERGE_WAVES queries (head, token), z =
// sequence.
SPARK_FN void merge_states(const SparkCall& call) {
    const u32 query = block_x() * MERGE_WAVES + wave();
    if (query >= call.query_heads * call.new_tokens) return;
    const u32 head = query / call.new_tokens, i = query % call.new_tokens;
    const i64 first = state_index(call, block_z(), head, i, 0);
    const float* scalars = state_scalars(call, first);
    float max = NO_SCORE;
    for (u32 n = lane(); n < call.splits; n += WAVE) max = greatest(max, load(scalars + 2 * n));
    max = greatest_over(max, WAVE);
    float sum = 0.0f;
    for (u32 n = lane(); n < call.splits; n += WAVE) {
        sum += rescale(load(scalars + 2 * n), max) * load(scalars + 2 * n + 1);
    }
    sum = sum_over(sum, WAVE);
    const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
    const i64 at = token_at(call.output, call.first_sequence + block_z(), head, i);
    float x[CHUNKS] = {};
    const u32 rotated = call.value_rotated ? call.splits - 1 : 0;
    add_states(call, first, 0, rotated, max, x);
    if (rotated > 0) rotate_back(call.head_dim, x);
    add_states(call, first, rotated, call.splits, max, x);
    SPARK_UNROLL
    for (u32 c = 0; c < CHUNKS; ++c) {
        const u32 j = c * WAVE + lane();
        if (j < call.head_dim) write_one(call.scalar, (void*)call.output.data, at + j, x[c] * factor);
    }
}

#endif
