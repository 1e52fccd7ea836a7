// Tokenizer files: turning token ids into text. The way back is bpe.h.
//
// Header of 256 uint32 ([0] 20240328, [1] 2, [2] vocabulary size, [3] end-of-text token), then for
// each token a length byte and its bytes. Character vocabularies and GPT-2's byte-pair vocabulary
// use the same format.
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "files.h"

enum { TOKENIZER_MAGIC = 20240328, TOKENIZER_VERSION = 2 };

typedef struct {
    int V;
    int end_of_text;      // starts a text when there is no prompt
    unsigned char *bytes; // of all tokens, one after the other
    size_t *start;        // (V + 1): token i is bytes[start[i]] .. bytes[start[i + 1] - 1]
    char held[5];         // a character of which not all bytes were printed yet, and a 0
    size_t held_count;
} Tokenizer;

static void tokenizer_close(Tokenizer *tokenizer) {
    free(tokenizer->bytes);
    free(tokenizer->start);
    memset(tokenizer, 0, sizeof *tokenizer);
}

static void tokenizer_open(Tokenizer *tokenizer, const char *path) {
    File file;
    int32_t header[HEADER_INTS];
    memset(tokenizer, 0, sizeof *tokenizer);
    file_open(&file, path, "a tokenizer file");
    header_read(&file, header, TOKENIZER_MAGIC, TOKENIZER_VERSION, TOKENIZER_VERSION,
                "a tokenizer file");
    if (header[2] < 1 || header[2] > 65536) {
        fail("%s: vocabulary of %d, expected 1 to 65536", path, header[2]);
    }
    if (header[3] < 0 || header[3] >= header[2]) {
        fail("%s: end-of-text token %d, expected 0 to %d", path, header[3], header[2] - 1);
    }
    tokenizer->V = header[2];
    tokenizer->end_of_text = header[3];
    tokenizer->bytes = ALLOC(unsigned char, file.size, "tokenizer");
    tokenizer->start = ALLOC(size_t, (size_t)tokenizer->V + 1, "tokenizer");
    size_t left = file.size - HEADER_BYTES, used = 0;
    for (int i = 0; i < tokenizer->V; i++) {
        unsigned char length = 0;
        if (left) {
            file_read(&file, &length, 1);
            left--;
        }
        if (!length || length > left) {
            fail("%s: token %d of %d is %s", path, i, tokenizer->V,
                 length ? "cut off" : "missing or empty");
        }
        file_read(&file, tokenizer->bytes + used, length);
        left -= length;
        used += length;
        tokenizer->start[i + 1] = used;
    }
    if (left) fail("%s: %zu bytes too many after the last of %d tokens", path, left, tokenizer->V);
    file_close(&file);
}

// Ends the character that is held. What a terminal would not show becomes U+FFFD, but for white
// space.
static void tokenizer_print_end(Tokenizer *tokenizer, FILE *out) {
    char *held = tokenizer->held;
    size_t count = tokenizer->held_count;
    held[count] = 0;
    tokenizer->held_count = 0;
    int is_space = count == 1 && held[0] >= '\t' && held[0] <= '\r';
    if (is_space || text_shown(held) == count) fwrite(held, 1, count, out);
    else fputs("\xEF\xBF\xBD", out);
}

// Prints a piece of a sample. It may begin and end inside a character, as tokens of byte pairs do:
// a character is printed when its last byte is here.
static void tokenizer_print_text(Tokenizer *tokenizer, const char *text, size_t size, FILE *out) {
    for (size_t i = 0; i < size; i++) {
        int goes_on = ((unsigned char)text[i] & 0xC0) == 0x80;
        if (tokenizer->held_count && !goes_on) tokenizer_print_end(tokenizer, out);
        tokenizer->held[tokenizer->held_count++] = text[i];
        size_t length = utf8_length((unsigned char)tokenizer->held[0]);
        if (tokenizer->held_count >= length) tokenizer_print_end(tokenizer, out);
    }
}

static void tokenizer_print(Tokenizer *tokenizer, int id, FILE *out) {
    size_t start = tokenizer->start[id], size = tokenizer->start[id + 1] - start;
    tokenizer_print_text(tokenizer, (const char *)tokenizer->bytes + start, size, out);
}

#endif
