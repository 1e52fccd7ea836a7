// Samples: text that goes on from a prompt.
//
// Tokens are read one after another at positions 0, 1, ... of a window of W tokens (-t). When W
// have been read and another is to come, the last W/2 of them are read anew from position 0, and it
// goes on from there. Nothing else is read twice: keys and values of the tokens in the window stay
// in the model (gpt2_read; see data/run.h for what a trainer has to have).
//
// With -sd K text comes in rounds (Leviathan et al., arXiv 2211.17192). The model drafts up to K
// tokens one by one under the pattern -sp, which takes fewer all-reduces. Then it reads all of them
// at once under its own pattern, keeps those that it agrees with, and adds one of its own.
// Sampled text keeps its distribution, and greedy text is that without drafts: to the last token on
// the CPU, where a few tokens at once have the bits of single ones, with folded ranks or two
// processes. With more MPI may add long messages up in another order than short ones, and a GPU's
// products may differ too.
#ifndef SAMPLER_H
#define SAMPLER_H

#include "../tp_blocks.h"
#include "bpe.h"
#include "options.h"

// What a token is drawn from.
typedef struct {
    int V;
    float *weights; // (V) token v has the probability weights[v] / sum
    double sum;     // of all weights
} Distribution;

typedef struct {
    const Options *options;
    Tokenizer tokenizer;
    char *text;             // the prompt; an empty one starts from the end-of-text token
    size_t text_size;
    int32_t *ids;           // its tokens, and then those that are made
    int prompt;             // how many tokens it has
    int64_t update;         // after which the sample is made
    int first, read;        // ids first .. read-1 have been read at positions 0, 1, ...
    float *logits;          // (V)
    int finite;             // whether all logits have been
    Distribution next;      // of the next token,
    Distribution drawn[DRAFTS_MAX]; // and those that drafts were drawn from
    int64_t rounds, drafted, accepted; // rounds with drafts, and their drafts
    double *ms, *comm;      // of each token that is made: all of it, and in its all-reduces
} Sampler;

// ----------------------------------------------------------------------------
// a token from its logits

// The k-th largest of x (n), k at most n. The k largest so far are in heap (k), the least at its
// top: for few of many most of x is only compared with that.
static float kth_largest(const float *x, int n, int k, float *heap) {
    for (int i = 0; i < k; i++) heap[i] = -INFINITY;
    for (int i = 0; i < n; i++) {
        int at = 0;
        if (!(x[i] > heap[0])) continue;
        for (int child = 1; child < k; child = 2 * at + 1) {
            if (child + 1 < k && heap[child + 1] < heap[child]) child++;
            if (heap[child] >= x[i]) break;
            heap[at] = heap[child];
            at = child;
        }
        heap[at] = x[i];
    }
    return heap[0];
}

// What logits (V) say of the next token. Temperature 0 leaves the likeliest, top_k 0 all.
static void distribution_from(Distribution *d, const float *logits, double temperature, int top_k) {
    int likeliest = 0;
    float threshold = -INFINITY, *weights = d->weights;
    for (int v = 1; v < d->V; v++) likeliest = logits[v] > logits[likeliest] ? v : likeliest;
    if (temperature != 0 && top_k > 0 && top_k < d->V) {
        threshold = kth_largest(logits, d->V, top_k, weights);
    }
    float most = logits[likeliest], scale = (float)(1 / fmax(temperature, 1e-30));
    for (int v = 0; v < d->V; v++) {
        float below = (logits[v] - most) * scale, weight = exp_float(below);
        weights[v] = (logits[v] >= threshold) & (below > -87) ? weight : 0;
        if (temperature == 0) weights[v] = v == likeliest;
    }
    d->sum = 0;
    for (int v = 0; v < d->V; v++) d->sum += (double)weights[v];
}

// The token at `u`, which is uniform in [0, 1), where tokens lie in [0, 1) side by side, each as
// wide as it is probable.
static int distribution_draw(const Distribution *d, double u) {
    int drawn = 0;
    double below = 0;
    for (int v = 0; v < d->V; v++) {
        if (d->weights[v] == 0) continue;
        drawn = v;
        below += (double)d->weights[v];
        if (u * d->sum < below) break;
    }
    return drawn;
}

// The token that p has in place of `draft`, which was drawn from q at u; the same one if p accepts
// it. p is lost. The token is p's whatever q is (arXiv 2211.17192, appendix A.1): a draft x is
// accepted with probability min(1, a), a = p(x)/q(x); else the token comes from max(0, p - q). All
// three take a uniform number, and u serves for each: r, where u lies within x, is uniform and
// independent of x; of the r >= a, which reject, so is (r - a)/(1 - a). Thus the text is that of
// plain sampling if q is p, and also where p has nothing of a q that is sure.
static int draft_check(Distribution *p, const Distribution *q, int draft, double u) {
    double scale = p->sum / q->sum, below = 0, sum = 0, wide = (double)q->weights[draft];
    for (int v = 0; v < draft; v++) below += (double)q->weights[v];
    double r = (u * q->sum - below) / wide, a = (double)p->weights[draft] / (wide * scale);
    if (r < a || a >= 1) return draft;
    for (int v = 0; v < p->V; v++) {
        double left = (double)p->weights[v] - (double)q->weights[v] * scale;
        p->weights[v] = left > 0 ? (float)left : 0;
        sum += (double)p->weights[v];
    }
    p->sum = sum;
    return sum > 0 ? distribution_draw(p, (r - a) / (1 - a)) : draft; // 0: p is q but for rounding
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

static Distribution distribution_over(int V) {
    Distribution d = {V, ALLOC(float, (size_t)V, "sample"), 0};
    return d;
}

// Memory for what options ask for, of a model of V tokens after a prompt of at most `prompt`.
static void sampler_create(Sampler *s, const Options *o, int V, size_t prompt) {
    size_t made = (size_t)o->sample_tokens;
    s->options = o;
    s->ids = ALLOC(int32_t, prompt + made, "sample");
    s->logits = ALLOC(float, (size_t)V, "sample");
    s->next = distribution_over(V);
    for (int i = 0; i < o->drafts; i++) s->drawn[i] = distribution_over(V);
    s->ms = ALLOC(double, made, "sample");
    s->comm = ALLOC(double, made, "sample");
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
    sampler_create(s, o, V, s->text_size + 1);
    s->ids[0] = s->tokenizer.end_of_text;
    s->prompt = 1;
    if (s->text_size) s->prompt = tokenizer_encode(&s->tokenizer, s->text, s->text_size, s->ids);
}

static void sampler_close(Sampler *s) {
    tokenizer_close(&s->tokenizer);
    free(s->text);
    free(s->ids);
    free(s->logits);
    free(s->next.weights);
    for (int i = 0; i < DRAFTS_MAX; i++) free(s->drawn[i].weights);
    free(s->ms);
    free(s->comm);
}

// ----------------------------------------------------------------------------
// the window, and rounds in it

// Which token stands at position 0 when n have been read.
static int window_first(int n, int W) {
    int step = W - W / 2;
    return n <= W ? 0 : (n - W + step - 1) / step * step;
}

// The distribution of the token after the one in this row of those that were just read.
static void sampler_next(Sampler *s, GPT2 *m, int row, Distribution *next) {
    const Options *o = s->options;
    logits_collect(m, row, s->logits);
    for (int v = 0; v < next->V; v++) s->finite &= isfinite(s->logits[v]) != 0;
    distribution_from(next, s->logits, o->temperature, (int)o->top_k);
}

// The random number of token n: the same one whether it is drafted, checked or just drawn.
static double sampler_uniform(const Sampler *s, int n) {
    return random_uniform(random_bits((uint64_t)s->options->seed, RANDOM_SAMPLE,
                                      (uint64_t)s->update, (uint64_t)n));
}

// Drafts tokens n .. n+count-1. What it reads is read again by the check, to the same places.
static void sampler_draft(Sampler *s, GPT2 *m, int n, int count) {
    gpt2_take_pattern(m, s->options->draft_pattern);
    for (int i = 0; i < count; i++) {
        int last = n + i - 1;
        gpt2_read(m, s->ids + last, 1, last - s->first, 1);
        sampler_next(s, m, 0, &s->drawn[i]);
        s->ids[n + i] = distribution_draw(&s->drawn[i], sampler_uniform(s, n + i));
    }
    gpt2_take_pattern(m, m->config.pattern);
}

// Begins the sample after so many updates.
static void sampler_start(Sampler *s, int64_t update) {
    s->update = update;
    s->first = 0;
    s->read = 0;
    s->finite = 1;
    s->rounds = 0;
    s->drafted = 0;
    s->accepted = 0;
}

// Goes on from n tokens by up to `most`; returns by how many. Without drafts that is 1: where the
// window has no room for them, and where more is to be read than the last token, the prompt or what
// a window begins with. Drafts need the model's own keys and values of all before.
static int sampler_round(Sampler *s, GPT2 *m, int n, int most) {
    int W = (int)s->options->length, drafts = (int)s->options->drafts;
    int first = window_first(n, W), made = 0, same = 1;
    if (first != s->first) s->read = first;
    s->first = first;
    if (drafts > first + W - n) drafts = first + W - n; // further on another token is at position 0
    if (drafts > most - 1) drafts = most - 1;
    if (n == s->prompt || s->read < n - 1) drafts = 0;
    if (drafts > 0) sampler_draft(s, m, n, drafts);
    gpt2_read(m, s->ids + s->read, n + drafts - s->read, s->read - first, drafts + 1);
    while (same) {
        int32_t *token = &s->ids[n + made], drafted = *token;
        double u = sampler_uniform(s, n + made);
        int checks = made < drafts;
        sampler_next(s, m, made, &s->next);
        *token = checks ? draft_check(&s->next, &s->drawn[made], drafted, u)
                        : distribution_draw(&s->next, u);
        same = checks && *token == drafted;
        made++;
    }
    s->rounds += drafts > 0;
    s->drafted += drafts;
    s->accepted += made - 1;
    s->read = n + made - 1;
    return made;
}

// The value below which a share of n sorted ones lie; 0 for none.
static double quantile(const double *sorted, int n, double share) {
    int i = (int)ceil(share * n) - 1;
    if (n <= 0) return 0;
    return sorted[i < 0 ? 0 : i];
}

#endif
