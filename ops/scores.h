// Which keys a query sees, and how a product becomes a score. src/cpu/attention.rs is the reference.
#ifndef SPARK_SCORES_H
#define SPARK_SCORES_H

#include "tokens.h"

// Positions from `start` to below `end`.
struct Keys {
    u32 start, end;

    SPARK_FN bool contains(u32 t) const { return start <= t && t < end; }
};

// Keys that new token `i` sees; none if it is padding.
SPARK_FN Keys seen_by(const SparkCall& call, const Sequence& s, u32 i) {
    const u32 query = s.past + i;
    Keys keys = {0, call.causal ? query + 1 : s.past + s.valid};
    if (call.window && query + 1 > call.window) keys.start = query + 1 - call.window;
    if (i >= s.valid) keys.start = keys.end = 0;
    return keys;
}

// Keys of piece `split` that any of the new tokens `first` to below `end` sees. The pieces begin at the first key that
// any query of the sequence sees. Where value rows are rotated, the last piece has the new keys, whose values are not,
// and the others have the stored ones.
SPARK_FN Keys keys_of(const SparkCall& call, const Sequence& s, u32 first, u32 end, u32 split) {
    if (end > s.valid) end = s.valid;
    if (first >= end) return {0, 0};
    const u32 origin = seen_by(call, s, 0).start;
    // 64 bits: the last piece may extend far beyond the keys.
    u64 from = origin + (u64)split * call.split_keys, to = from + call.split_keys;
    if (call.value_rotated) {
        const bool is_last = split + 1 == call.splits;
        from = is_last ? s.past : from;
        to = is_last ? s.past + s.valid : to < s.past ? to : s.past;
    }
    Keys keys = {seen_by(call, s, first).start, seen_by(call, s, end - 1).end};
    if (keys.start < from) keys.start = from < keys.end ? (u32)from : keys.end;
    if (keys.end > to) keys.end = (u32)to;
    if (keys.end < keys.start) keys.end = keys.start;
    return keys;
}

// Position from which on keys are dense: those in past_key_recent, and the new ones.
SPARK_FN u32 first_dense(const SparkCall& call, const Sequence& s) {
    if (!call.past_recent) return s.past;
    return s.past < call.recent_window ? 0 : s.past - call.recent_window;
}

// Position from which on keys before `first_dense` may be dense in the tail of a shared buffer.
SPARK_FN u32 first_in_tail(const SparkCall& call, const Sequence& s) {
    const u32 dense = first_dense(call, s);
    return s.tail < dense ? dense - s.tail : 0;
}

// Score of a key from its product with a query, without softcap and bias.
SPARK_FN float scaled(const SparkCall& call, float dot) {
    return least(greatest(dot * call.scale, -FLOAT_MAX), FLOAT_MAX);
}

// Whether scores are more than scaled products.
SPARK_FN bool has_more(const SparkCall& call) { return call.softcap > 0.0f || call.bias; }

// Score of the key at position `t` for query head `head` of new token `i`, from its scaled product; NO_SCORE if it is
// masked.
SPARK_FN float with_more(const SparkCall& call, const Sequence& s, float score, u32 head, u32 i, u32 t) {
    if (call.softcap > 0.0f) score = call.softcap * tanh_of(score / call.softcap);
    if (call.bias) {
        const i64 at = s.index * call.bias_batch + head * call.bias_head + i * call.bias_token + t;
        const float bias = read_one(call.scalar, call.bias, at);
        if (!(bias > NO_SCORE)) return NO_SCORE;
        score = least(greatest(score + bias, -FLOAT_MAX), FLOAT_MAX);
    }
    return score;
}

#endif
