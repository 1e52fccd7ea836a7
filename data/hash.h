// XXH64, the 64-bit hash by which a file is known again: `xxhsum -H1 FILE` prints the same. It
// finds damage, not forgery. Streaming, with seed 0, as specified in
// github.com/Cyan4973/xxHash, doc/xxhash_spec.md; the names of the steps are the specification's.
#ifndef HASH_H
#define HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HASH_STRIPE = 32 }; // bytes: 8 for each of four lanes, which do not wait for each other

typedef struct {
    uint64_t lanes[4];
    uint64_t bytes;             // so far
    uint8_t stripe[HASH_STRIPE]; // those of them that do not fill one yet
} Hash;

static const uint64_t HASH_PRIME1 = 0x9E3779B185EBCA87u, HASH_PRIME2 = 0xC2B2AE3D27D4EB4Fu,
                      HASH_PRIME3 = 0x165667B19E3779F9u, HASH_PRIME4 = 0x85EBCA77C2B2AE63u,
                      HASH_PRIME5 = 0x27D4EB2F165667C5u;

static uint64_t hash_rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t hash_round(uint64_t lane, uint64_t word) {
    return hash_rotate(lane + word * HASH_PRIME2, 31) * HASH_PRIME1;
}

static uint64_t hash_word(const uint8_t *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static Hash hash_begin(void) {
    Hash h = {{HASH_PRIME1 + HASH_PRIME2, HASH_PRIME2, 0, 0 - HASH_PRIME1}, 0, {0}};
    return h;
}

static void hash_stripes(Hash *h, const uint8_t *at, size_t count) {
    uint64_t a = h->lanes[0], b = h->lanes[1], c = h->lanes[2], d = h->lanes[3];
    for (; count > 0; count--, at += HASH_STRIPE) {
        a = hash_round(a, hash_word(at));
        b = hash_round(b, hash_word(at + 8));
        c = hash_round(c, hash_word(at + 16));
        d = hash_round(d, hash_word(at + 24));
    }
    h->lanes[0] = a;
    h->lanes[1] = b;
    h->lanes[2] = c;
    h->lanes[3] = d;
}

static void hash_add(Hash *h, const void *data, size_t bytes) {
    const uint8_t *at = (const uint8_t *)data;
    size_t held = h->bytes % HASH_STRIPE, room = HASH_STRIPE - held;
    h->bytes += bytes;
    if (bytes < room) {
        memcpy(h->stripe + held, at, bytes);
        return;
    }
    if (held) {
        memcpy(h->stripe + held, at, room);
        hash_stripes(h, h->stripe, 1);
        at += room;
        bytes -= room;
    }
    hash_stripes(h, at, bytes / HASH_STRIPE);
    memcpy(h->stripe, at + bytes / HASH_STRIPE * HASH_STRIPE, bytes % HASH_STRIPE);
}

// The hash of all bytes so far; more may follow.
static uint64_t hash_value(const Hash *h) {
    static const int turns[4] = {1, 7, 12, 18};
    const uint8_t *at = h->stripe, *end = at + h->bytes % HASH_STRIPE;
    uint64_t x = 0;
    for (int i = 0; i < 4; i++) x += hash_rotate(h->lanes[i], turns[i]);
    for (int i = 0; i < 4; i++) x = (x ^ hash_round(0, h->lanes[i])) * HASH_PRIME1 + HASH_PRIME4;
    if (h->bytes < HASH_STRIPE) x = HASH_PRIME5;
    x += h->bytes;
    for (; end - at >= 8; at += 8) {
        x = hash_rotate(x ^ hash_round(0, hash_word(at)), 27) * HASH_PRIME1 + HASH_PRIME4;
    }
    if (end - at >= 4) {
        uint32_t half;
        memcpy(&half, at, sizeof half);
        x = hash_rotate(x ^ half * HASH_PRIME1, 23) * HASH_PRIME2 + HASH_PRIME3;
        at += 4;
    }
    for (; at < end; at++) x = hash_rotate(x ^ *at * HASH_PRIME5, 11) * HASH_PRIME1;
    x = (x ^ x >> 33) * HASH_PRIME2;
    x = (x ^ x >> 29) * HASH_PRIME3;
    return x ^ x >> 32;
}

static uint64_t hash_of(const void *data, size_t bytes) {
    Hash h = hash_begin();
    hash_add(&h, data, bytes);
    return hash_value(&h);
}

#endif
