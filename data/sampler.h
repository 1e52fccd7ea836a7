// Samples: text that goes on from a prompt, a token at a time.
//
// Tokens are read one after another at positions 0, 1, ... of a window of W tokens (-t). When W
// have been read and another is to come, the last W/2 of them are read anew from position 0, and it
// goes on from there. Nothing else is read twice: keys and values of the tokens in the window stay
// in the model (gpt2_read; see data/run.h for what a trainer has to have).
#ifndef SAMPLER_H
#define SAMPLER_H

#include "../tp_blocks.h"
#include "bpe.h"
#include "options.h"

typedef struct {
    Tokenizer tokenizer;
    char *text;              // the prompt; an empty one starts from the end-of-text token
    size_t text_size;
    int32_t *ids;            // its tokens, and then those that are made
    int prompt;              // how many tokens it has
    int first, read;         // ids first .. read-1 have been read at positions 0, 1, ...
    float *logits, *scratch; // (V)
    double *ms, *comm;       // of each token that is made: all of it, and in its all-reduces
} Sampler;

// ----------------------------------------------------------------------------
// a token from its logits

static int compare_descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

// Draws a token from logits (V): `u` uniform in [0, 1), temperature 0 takes the likeliest, top_k 0
// means all. scratch (V).
static int token_draw(const float *logits, float *scratch, int V, double temperature, int top_k,
                      double u) {
    int likeliest = 0, drawn = -1;
    double sum = 0, below = 0;
    for (int v = 1; v < V; v++) likeliest = logits[v] > logits[likeliest] ? v : likeliest;
    if (temperature == 0) return likeliest;
    float threshold = -INFINITY;
    if (top_k > 0 && top_k < V) {
        memcpy(scratch, logits, (size_t)V * sizeof(float));
        qsort(scratch, (size_t)V, sizeof(float), compare_descending);
        threshold = scratch[top_k - 1];
    }
    for (int v = 0; v < V; v++) {
        double p = logits[v] >= threshold
                       ? exp(((double)logits[v] - (double)logits[likeliest]) / temperature)
                       : 0;
        scratch[v] = (float)p;
        sum += (double)scratch[v];
    }
    for (int v = 0; v < V; v++) {
        if (scratch[v] == 0) continue;
        drawn = v;
        below += (double)scratch[v];
        if (u * sum < below) break;
    }
    return drawn < 0 ? likeliest : drawn;
}

// ----------------------------------------------------------------------------
// the prompt

// All of standard input, which rank 0 reads for all processes.
static void prompt_read(Sampler *s, const Mesh *mesh) {
    const size_t most = INT_MAX / 2;
    size_t room = 0;
    for (ssize_t got = 1; mesh->rank == 0 && got > 0; s->text_size += (size_t)got) {
        if (s->text_size == room) {
            room = 2 * room + 4096;
            s->text = (char *)realloc(s->text, room);
            if (!s->text) fail("-gp -: out of memory for a prompt of %zu bytes", room);
        }
        got = read(STDIN_FILENO, s->text + s->text_size, room - s->text_size);
        if (got < 0) fail("-gp -: cannot read standard input: %s", strerror(errno));
        if (s->text_size > most) fail("-gp -: a prompt of more than %zu bytes", most);
    }
    if (mesh->rank == 0 && !s->text_size) fail("-gp -: standard input is empty");
    processes_broadcast(mesh, &s->text_size, sizeof s->text_size);
    if (mesh->rank) s->text = ALLOC(char, s->text_size, "prompt");
    processes_broadcast(mesh, s->text, s->text_size);
}

// Reads the tokenizer at `path` and the prompt, for a model of V tokens. All processes take part.
static void sampler_open(Sampler *s, const Options *o, const char *path, int V, const Mesh *mesh) {
    tokenizer_open(&s->tokenizer, path);
    if (s->tokenizer.V != V) {
        fail("-tk %s: a vocabulary of %d, but the model has %d", path, s->tokenizer.V, V);
    }
    if (!strcmp(o->prompt, "-")) {
        prompt_read(s, mesh);
    } else {
        s->text = strdup(o->prompt);
        s->text_size = strlen(o->prompt);
    }
    size_t made = (size_t)o->sample_tokens;
    s->ids = ALLOC(int32_t, s->text_size + 1 + made, "sample");
    s->ids[0] = s->tokenizer.end_of_text;
    s->prompt = 1;
    if (s->text_size) s->prompt = tokenizer_encode(&s->tokenizer, s->text, s->text_size, s->ids);
    s->logits = ALLOC(float, (size_t)V, "sample");
    s->scratch = ALLOC(float, (size_t)V, "sample");
    s->ms = ALLOC(double, made, "sample");
    s->comm = ALLOC(double, made, "sample");
}

static void sampler_close(Sampler *s) {
    tokenizer_close(&s->tokenizer);
    free(s->text);
    free(s->ids);
    free(s->logits);
    free(s->scratch);
    free(s->ms);
    free(s->comm);
}

// ----------------------------------------------------------------------------
// the window

// Which token stands at position 0 when n have been read.
static int window_first(int n, int W) {
    int step = W - W / 2;
    return n <= W ? 0 : (n - W + step - 1) / step * step;
}

// Brings the model to have read tokens 0 .. n-1, and takes the logits of what comes next.
static void sampler_read(Sampler *s, GPT2 *m, int n, int W) {
    int first = window_first(n, W);
    if (first != s->first) s->read = first;
    s->first = first;
    gpt2_read(m, s->ids + s->read, n - s->read, s->read - first, 1);
    s->read = n;
    logits_collect(m, 0, s->logits);
}

static int compare_ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The value below which a share of n sorted ones lie; 0 for none.
static double share_below(const double *sorted, int n, double share) {
    int i = (int)ceil(share * n) - 1;
    if (n <= 0) return 0;
    return sorted[i < 0 ? 0 : i];
}

#endif
