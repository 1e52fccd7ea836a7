// Text into token ids: characters, or byte pairs as GPT-2's encoder (tiktoken's "gpt2") makes them.
//
// Byte pairs: the text is cut into pieces (a contraction, a word with the space before it, a
// number, other characters, white space). In a piece, the two neighbours whose bytes together are
// the token with the lowest id become that token, the leftmost of equals first, until no two make
// one. The tokens' bytes are all that it takes: GPT-2's tokens are numbered in the order in which
// their merges were learned.
#ifndef BPE_H
#define BPE_H

#include "tokenizer.h"
#include "unicode.h"

static void utf8_check(const char *text, size_t length) {
    const char *wrong;
    for (size_t at = 0, n; at < length; at += n) {
        if (utf8_read(text + at, length - at, &n, &wrong) >= 0) continue;
        fail("-gp: found byte 0x%02X at offset %zu of the prompt, expected UTF-8: %s",
             (unsigned char)text[at], at, wrong);
    }
}

// ----------------------------------------------------------------------------
// pieces, of text that is UTF-8: '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|
// \s+(?!\S)|\s+

enum { KIND_OTHER, KIND_LETTER, KIND_NUMBER, KIND_SPACE };

// Code point c is in a table of n edges if an odd number of them are not beyond it.
static int unicode_is(const int32_t *edges, size_t n, int32_t c) {
    size_t first = 0, end = n; // edges before `first` are not beyond c, those from `end` on are
    while (first < end) {
        size_t middle = (first + end) / 2;
        if (edges[middle] <= c) first = middle + 1;
        else end = middle;
    }
    return first & 1;
}

#define UNICODE_IS(edges, c) unicode_is(edges, sizeof edges / sizeof *edges, c)

static int character_kind(const char *text, size_t left, size_t *length) {
    const char *wrong;
    int32_t c = utf8_read(text, left, length, &wrong);
    if (UNICODE_IS(UNICODE_LETTERS, c)) return KIND_LETTER;
    if (UNICODE_IS(UNICODE_NUMBERS, c)) return KIND_NUMBER;
    return UNICODE_IS(UNICODE_SPACES, c) ? KIND_SPACE : KIND_OTHER;
}

// Length of the first piece of `left` bytes.
static size_t piece_length(const char *text, size_t left) {
    static const char *const contractions[] = {"'s", "'d", "'m", "'t", "'ll", "'ve", "'re"};
    for (size_t i = 0; i < sizeof contractions / sizeof *contractions; i++) {
        size_t n = strlen(contractions[i]);
        if (n <= left && !memcmp(text, contractions[i], n)) return n;
    }
    size_t begin = text[0] == ' ' && left > 1, length, last = 0, end;
    int kind = character_kind(text + begin, left - begin, &length);
    if (kind == KIND_SPACE) begin = 0;
    for (end = begin; end < left; end += length) {
        if (character_kind(text + end, left - end, &length) != kind) break;
        last = end;
    }
    // The last of several spaces goes with what follows them.
    return kind == KIND_SPACE && end < left && last > 0 ? last : end;
}

// ----------------------------------------------------------------------------
// tokens by their bytes

typedef struct {
    const Tokenizer *tokenizer;
    int32_t *slots; // token + 1, or 0; a token is in the first free slot from its hash on
    size_t mask, longest;
} TokenIndex;

static size_t index_slot(const TokenIndex *index, const void *bytes, size_t length) {
    uint64_t hash = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    }
    const Tokenizer *t = index->tokenizer;
    size_t slot = (hash ^ hash >> 32) & index->mask;
    for (; index->slots[slot]; slot = (slot + 1) & index->mask) {
        size_t start = t->start[index->slots[slot] - 1];
        if (t->start[index->slots[slot]] - start != length) continue;
        if (!memcmp(t->bytes + start, bytes, length)) break;
    }
    return slot;
}

// The token of these bytes, or -1.
static int32_t index_find(const TokenIndex *index, const void *bytes, size_t length) {
    return length > index->longest ? -1 : index->slots[index_slot(index, bytes, length)] - 1;
}

// Without token `except`. Of tokens with the same bytes the first is found.
static TokenIndex index_make(const Tokenizer *tokenizer, int except) {
    TokenIndex index = {tokenizer, NULL, 1, 0};
    while (index.mask < 2 * (size_t)tokenizer->V) index.mask *= 2;
    index.slots = ALLOC(int32_t, index.mask, "tokenizer");
    index.mask--;
    for (int i = 0; i < tokenizer->V; i++) {
        size_t start = tokenizer->start[i], length = tokenizer->start[i + 1] - start;
        if (i == except) continue;
        if (length > index.longest) index.longest = length;
        size_t slot = index_slot(&index, tokenizer->bytes + start, length);
        if (!index.slots[slot]) index.slots[slot] = i + 1;
    }
    return index;
}

// ----------------------------------------------------------------------------
// merges, in n log n for a piece of any length

// A token of a piece, at its first byte: its neighbours begin at `before` and `after`, and `pair`
// is what it and the one after it make, or -1.
typedef struct {
    int32_t id, pair;
    uint32_t before, after;
} PieceToken;

typedef struct {
    TokenIndex index;
    PieceToken *tokens;
    uint64_t *heap; // pairs that can be merged, (what they make, place): the lowest first
    size_t heap_count;
} Merger;

static void heap_push(Merger *m, uint64_t key) {
    size_t at = m->heap_count++;
    for (; at > 0 && m->heap[(at - 1) / 2] > key; at = (at - 1) / 2) {
        m->heap[at] = m->heap[(at - 1) / 2];
    }
    m->heap[at] = key;
}

static uint64_t heap_pop(Merger *m) {
    size_t count = --m->heap_count, at = 0, child = 1;
    uint64_t *heap = m->heap, top = heap[0], key = heap[count];
    for (; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
    return top;
}

static void pair_find(Merger *m, const char *piece, size_t length, uint32_t at) {
    PieceToken *token = &m->tokens[at];
    token->pair = -1;
    if (token->after == length) return;
    size_t end = m->tokens[token->after].after;
    token->pair = index_find(&m->index, piece + at, end - at);
    if (token->pair >= 0) heap_push(m, (uint64_t)token->pair << 32 | at);
}

// Returns how many tokens there are. The heap is empty before and after.
static int piece_encode(Merger *m, const char *piece, size_t length, int32_t *ids) {
    PieceToken *tokens = m->tokens;
    ids[0] = index_find(&m->index, piece, length); // nearly all are one token
    if (ids[0] >= 0) return 1;
    for (uint32_t i = 0; i < length; i++) {
        PieceToken token = {index_find(&m->index, piece + i, 1), -1, i - 1, i + 1};
        tokens[i] = token;
    }
    for (uint32_t i = 0; i < length; i++) pair_find(m, piece, length, i);
    while (m->heap_count) {
        uint64_t key = heap_pop(m);
        uint32_t at = (uint32_t)key, second = tokens[at].after;
        if (tokens[at].pair != (int32_t)(key >> 32)) continue; // a neighbour was merged since
        tokens[at].id = tokens[at].pair;
        tokens[at].after = tokens[second].after;
        tokens[second].pair = -1;
        if (tokens[at].after < length) tokens[tokens[at].after].before = at;
        pair_find(m, piece, length, at);
        if (at > 0) pair_find(m, piece, length, tokens[at].before);
    }
    int count = 0;
    for (size_t i = 0; i < length; i = tokens[i].after) ids[count++] = tokens[i].id;
    return count;
}

// ----------------------------------------------------------------------------
// a text

// 1 if every byte is a token, so that byte pairs can write any text; 0 if every token is a
// character. Anything else is an error.
static int tokenizer_is_bpe(const Tokenizer *tokenizer) {
    int seen[256] = {0}, bytes = 0, other = -1;
    size_t length = 0;
    const char *wrong;
    for (int i = 0; i < tokenizer->V; i++) {
        const unsigned char *token = tokenizer->bytes + tokenizer->start[i];
        size_t left = tokenizer->start[i + 1] - tokenizer->start[i];
        if (left == 1) bytes += !seen[token[0]]++;
        if (utf8_read((const char *)token, left, &length, &wrong) < 0 || length != left) other = i;
    }
    if (bytes < 256 && other >= 0) {
        fail("-gp: prompts need a vocabulary of characters or of byte pairs; token %d of this "
             "tokenizer is not one character, and only %d of 256 bytes are tokens", other, bytes);
    }
    return bytes == 256;
}

// Encodes a text of `length` bytes; ids has room for as many tokens. Returns how many there are.
static int tokenizer_encode(const Tokenizer *tokenizer, const char *text, size_t length,
                            int32_t *ids) {
    if (length > INT_MAX) fail("-gp: a prompt of %zu bytes, expected at most %d", length, INT_MAX);
    utf8_check(text, length);
    int bpe = tokenizer_is_bpe(tokenizer), end = tokenizer->end_of_text, count = 0;
    // No text is the end of a text, unless that is a byte or a character like any other.
    int special = bpe && tokenizer->start[end + 1] - tokenizer->start[end] > 1;
    Merger m = {index_make(tokenizer, special ? end : -1), NULL, NULL, 0};
    size_t at = 0, n = 0;
    if (bpe) {
        m.tokens = ALLOC(PieceToken, length, "prompt");
        m.heap = ALLOC(uint64_t, 2 * length, "prompt"); // a merge takes one and adds at most two
        for (; at < length; at += n) {
            n = piece_length(text + at, length - at);
            count += piece_encode(&m, text + at, n, ids + count);
        }
    } else {
        for (; at < length; at += n) {
            n = utf8_length((unsigned char)text[at]);
            ids[count] = index_find(&m.index, text + at, n);
            if (ids[count++] < 0) break;
        }
    }
    free(m.index.slots);
    free(m.tokens);
    free(m.heap);
    if (at < length) {
        const char *wrong;
        int32_t c = utf8_read(text + at, n, &n, &wrong);
        fail("-gp: '%.*s' (U+%04X) at offset %zu of the prompt is not in the vocabulary", (int)n,
             text + at, (unsigned)c, at);
    }
    return count;
}

#endif
