/*
What every block pattern would cost on a given network, per update and per generated token, from one
measured run; and what drafts would (-sd), from one measured run more for each pattern that drafts.

  make dev/net/plan
  OMP_NUM_THREADS=1 ./train_gpt2 -e 4x4x128 -b 12 -x 20 -v 0 -o OUT           updates, or
  OMP_NUM_THREADS=1 ./train_gpt2 -e model.bin -x 0 -g 200 -gp TEXT -o OUT     tokens
  dev/net/plan OUT/main.log 5000 1                  5 ms per hop, 1 Gbit/s per link
  dev/net/plan OUT/main.log --network pi5           a network by its name; --help lists them
  dev/net/plan OUT/main.log 5000 1 150              and which pattern keeps to 150 ms
  dev/net/plan OUT/main.log 5000 1 0 sspp tpps      no budget, and two patterns more in the table
  dev/net/plan OUT/main.log DRAFTS/main.log 5000 1  and drafts: DRAFTS as OUT, with -sd 4 -sp p

The run may be of any pattern, with or without -nl and -nb. Where its log has updates, it prints a
table of updates; where it has samples, a table of tokens. Of a run with -pe those updates count
that drew its own pattern.

The log gives the shape, R, the micro-batches of an update, and the milliseconds of an update or a
token without its all-reduces: the median of `ms` - `comm`. `comm` leaves out the sums of a cut
vocabulary (-vp 1) and, of an update, that of partial gradients, whose means the log has in lines of
their own. The number of merges is that of the trainer's own plan_make, the time of an all-reduce
that of its own network_seconds, the same that `-nl` and `-nb` wait for: a ring's. With more than
two ranks other ways to sum take fewer hops, log2(R) of them for a token's few bytes, so measure
with as many as will run: dev/net/bench_allreduce finds the two numbers of a real network.

It prints the patterns by time, with `t` for comparison, then what meets the budget: the pattern
with the most merges. Of t, s and p that is the closest to plain GPT-2; l and d have as many as t,
and are other functions.

It is not a model of compute: that is taken to be the measured one for every pattern (s and p add a
few percent of LayerNorms where ranks are folded into one process). What computes after a wait is
slower, by 15 to 30 us here: where tokens take few milliseconds, measure with an -nl near that of
the network. Only the all-reduces of l and d overlap: each is waited for as far as it takes longer
than the sub-block it is hidden behind, where all compute of an update is taken to be that of
sub-blocks, a third of it forward. Sums over data-parallel replicas count as compute, as they were
measured. Loss is not its subject: a pattern that is faster learns something else. A log of
train_gpt2cu serves too. On a GPU backward merges of t, s and p go on beside weight gradients, which
is not known here: their time is an upper bound.

A token takes as long as its weights take to be read. So where the measured process ran several
ranks, the table of tokens says a second time what it would be with a process for each, on
processors like this one: of the compute, the share of the weights that one rank reads. So a run
with -tp 4 in one process predicts four PCs. The head, which is wte, is cut with -vp 1 only. The
window, and what attention reads of it, is not in that share.

Drafts are those of one model, whose pattern is -p: other rows of the table of tokens are other
models. Of each draft whose predecessors were accepted it takes the same share a to be accepted,
whatever the text: the one with which rounds of a + a^2 + .. + a^K accepted drafts would give what
all logs of the pattern have. A round is K passes over a token under the drafting pattern and one
over K + 1 under -p, whose all-reduces carry K + 1 times the bytes. That pass computes as one over a
token does, and more: what is left of the computing of all logs when each pass over a token is taken
to compute as without drafts, as a line over K where the logs have several K, as a multiple of it
where they have one. It knows of no windows that begin anew, and measures best where none does: with
-g below -t.
*/
#include "../../data/options.h"
#include "../../data/runlog.h"

enum { PATTERNS_MAX = 256, WORD_MAX = PATTERN_MAX + 1 };

// The patterns of the table; those that do not fit L are left out.
static const char *const known_patterns[] = {
    "t", "tstt", "ts", "tsst", "tss", "tsss", "s", "sp", "spps", "sspp", "spp", "sppp", "p", "pp.",
    "ppp.", "pppp.", "pppppp.", "pp.pppppppppp", "l", "d"};

// ----------------------------------------------------------------------------
// networks that have names
//
// An all-reduce of two is two hops.

typedef struct {
    const char *name;
    Network net;
    const char *says; // what the numbers stand for, and who says so
} NamedNetwork;

#define LINE "\n      "
static const NamedNetwork named_networks[] = {
    {"nvlink", {.latency_us = 3.9, .gbits = 3600},
     "8 us: NCCL's own model of a ring by its protocol LL, 6.6 us and 0.6 us per step" LINE
     "(NCCL, src/graph/tuning.cc); NVLink of an H100, 450 GB/s each way"},
    {"pcie", {.latency_us = 4.3, .gbits = 252},
     "9 us: the same model with 1 us per step; PCIe 4.0 x16, 16 lanes of 16 GT/s"},
    {"10gbe", {.latency_us = 10, .gbits = 10}, "20 us, assumed; the link's rate"},
    {"1gbe", {.latency_us = 25, .gbits = 1},
     "50 us, assumed: a message of OpenMPI over TCP was measured at 15 us, or 35 us as cards" LINE
     "come (nw-grid.ac.uk/LivMPI), and here it passes a switch; the link's rate"},
    {"wifi", {.latency_us = 1500, .gbits = 0.2},
     "3 ms, assumed: a ping between two PCs by an access point that is near and idle;" LINE
     "802.11ac at 867 Mbit/s, half of it data (arstechnica.com, How Ars tests Wi-Fi gear)," LINE
     "for sender and receiver in turn"},
    {"pi5", {.latency_us = 174, .gbits = 1},
     "0.37 ms, measured: two Raspberry Pi 5 by Gigabit Ethernet, 2.8 KB; distributed-llama's" LINE
     "pull request 136, version 0.10.6: 23.6 ms per token of Llama 3 8B in 64 sums"},
    {"laptops", {.latency_us = 1083, .gbits = 1},
     "2.2 ms, measured: two MacBooks, 4.3 KB; same place: 139.2 ms per token in 64 sums;" LINE
     "the rate is assumed"},
};
#undef LINE
enum { NAMED_NETWORKS = sizeof named_networks / sizeof *named_networks };

static Network network_named(const char *name) {
    char names[128] = "";
    for (int i = 0; i < NAMED_NETWORKS; i++) {
        if (!strcmp(name, named_networks[i].name)) return named_networks[i].net;
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, " %s", named_networks[i].name);
    }
    fail("--network '%s': expected one of%s; --help says what they stand for", name, names);
}

// ----------------------------------------------------------------------------
// the measured run

typedef struct {
    double *at;
    size_t count, room;
} Series;

// Sums that `ms` has and `comm` has not: a line of the log.
typedef struct { double count, mib, ms; } OtherSums;

// A sample's line: `g:` in data/runlog.h. The last four with -sd.
typedef struct {
    long long made, prompt; // tokens
    double ms, comm;        // per token: medians
    double allreduces;      // and a mean
    double rounds, drafted, accepted;
    double mean;            // ms per token
} Sample;

typedef struct {
    const char *path;
    Options options; // those of `wanted`
    GPT2Config shape;
    int fold;                // ranks in one process, or 0: not said
    size_t element;          // bytes of an activation; gradients and what losses are of take 4
    long long micro_batches; // per update
    Series updates, samples; // ms less comm of every update; per token of every sample
    long long allreduces;    // of an update
    double mib;
    int taught;              // updates had a teacher
    Sample last;
    OtherSums of_update, of_token; // of a cut vocabulary
    OtherSums gradients;           // partial ones, per update
} Measured;

// Every log has the first of them.
static const int wanted[] = {
    O_pattern,   O_tp, O_rule,   O_batch,         O_length,      O_net_latency,
    O_net_gbits, O_vocab_parallel, O_held, O_drafts, O_draft_pattern, O_temperature, O_top_k};
enum { WANTED = sizeof wanted / sizeof *wanted, WANTED_ALWAYS = 7 };
enum { MADE_MIN = 16 }; // tokens of a sample that measures

// The value of "key:value" in a line.
static double line_number(const Measured *m, const char *line, const char *key) {
    char *end;
    const char *found = strstr(line, key);
    double value = found ? strtod(found + strlen(key), &end) : 0;
    if (!found || end == found + strlen(key) || !(value >= 0 && value < 1e12)) {
        fail("%s: a line without a number after '%s': %s", m->path, key + 1, line);
    }
    return value;
}

static void measured_take_option(Measured *m, const char *line) {
    char flag[8], value[WORD_MAX];
    if (sscanf(line, "# %7s %240s", flag, value) != 2) return;
    for (int i = 0; i < WANTED; i++) {
        OptionSpec spec = option_specs[wanted[i]];
        char name[PATH_MAX + 16];
        if (strcmp(flag, spec.flag)) continue;
        snprintf(name, sizeof name, "%s: %s", m->path, flag);
        spec.flag = name;
        // A text stays; these few are never given back.
        option_set(&m->options, &spec, strdup(value));
        m->options.given[wanted[i]] = 1;
    }
}

static void series_add(Series *s, double x) {
    if (s->count == s->room) {
        s->room = 2 * s->room + 64;
        s->at = realloc(s->at, s->room * sizeof *s->at);
        if (!s->at) fail("out of memory: %zu lines", s->room);
    }
    s->at[s->count++] = x;
}

// An update that drew another pattern than -p had other all-reduces.
static void measured_take_update(Measured *m, const char *line) {
    const char *drawn = strstr(line, " pe:"), *own = m->options.pattern;
    m->taught |= strstr(line, " kd:") != NULL;
    if (drawn && (!own || strcmp(drawn + strlen(" pe:"), own))) return;
    series_add(&m->updates, line_number(m, line, " ms:") - line_number(m, line, " comm:"));
    m->allreduces = (long long)line_number(m, line, " ar:");
    m->mib = line_number(m, line, " mb:");
}

static void measured_take_sample(Measured *m, const char *line) {
    m->last = (Sample){.made = (long long)line_number(m, line, " new:"),
                       .prompt = (long long)line_number(m, line, " prompt:"),
                       .ms = line_number(m, line, " ms:"),
                       .comm = line_number(m, line, " comm:"),
                       .allreduces = line_number(m, line, " ar:")};
    series_add(&m->samples, m->last.ms - m->last.comm);
    if (!m->options.drafts) return;
    m->last.rounds = line_number(m, line, " rounds:");
    m->last.drafted = line_number(m, line, " drafted:");
    m->last.accepted = line_number(m, line, " accepted:");
    m->last.mean = line_number(m, line, " mean:");
}

// Passes under the model's own pattern for the last sample, after that over its prompt: each gives
// a token, and those that are checks give the drafts that they accept besides.
static double passes_own(const Sample *s) { return (double)(s->made - 1) - s->accepted; }

static int merges_of(const Measured *m, const char *pattern) {
    Plan plan;
    const Options *o = &m->options;
    plan_make(&plan, pattern, m->shape.L, o->rule, (int)o->tp, m->path);
    int merges = plan.merges;
    plan_free(&plan);
    return merges;
}

// Sums of a cut vocabulary have to be `count` per update or token, or a little more where a window
// is read anew; `bytes` of an update.
static void measured_check_vocabulary(const Measured *m, const char *each, const OtherSums *found,
                                      double count, double bytes) {
    const double anew = 1.02;
    double mib = bytes > 0 ? bytes / (1 << 20) : found->mib;
    if (!m->options.vocab_parallel) return;
    if (!found->count) {
        fail("%s: measured with -vp 1, but no line '# vocabulary per %s: ..', which a run writes "
             "at its end, says what the sums of embedding and head took", m->path, each);
    }
    int is_count = found->count >= count && found->count <= anew * count;
    if (!is_count || !(fabs(found->mib - mib) <= 1e-6)) { // also where one is NaN
        fail("%s: -vp 1 executed %g all-reduces of %g MiB per %s, expected %g of %g; is the log of "
             "another program?", m->path, found->count, found->mib, each, count, mib);
    }
}

static void measured_check_updates(const Measured *m, int merges) {
    const Options *o = &m->options;
    if (m->updates.count < 3)
        fail("%s: %zu updates of -p %s in the last run, expected at least 3; raise -x", m->path,
             m->updates.count, o->pattern);
    long long expected = 2 * merges * m->micro_batches;
    double mib = (double)expected * (double)(o->batch * o->length * m->shape.C) *
                 (double)m->element / (1 << 20);
    if (m->allreduces != expected || fabs(m->mib - mib) > 0.006) {
        fail("%s: -p %s executed %lld all-reduces of %.2f MiB per update, expected %lld of %.2f; "
             "is the log of another program?", m->path, o->pattern, m->allreduces, m->mib, expected,
             mib);
    }
    double micro = (double)m->micro_batches, rows = (double)(o->batch * o->length);
    measured_check_vocabulary(m, "update", &m->of_update, 4 * micro,
                              micro * rows * (2 * m->shape.C * (double)m->element + 3 * 4.0));
}

// A window that is read anew takes more than one pass where it is long: a little above what is
// expected.
static void measured_check_samples(const Measured *m, int merges) {
    const double anew = 1.02, rounding = 1e-5;
    const Options *o = &m->options;
    const Sample *s = &m->last;
    if (s->made < MADE_MIN)
        fail("%s: %lld tokens in the last sample, expected at least %d; raise -g", m->path,
             s->made, MADE_MIN);
    double own = passes_own(s), tokens = (double)(s->made - 1), expected = merges, collected = 2;
    if (s->accepted > s->drafted || s->drafted > s->rounds * (double)o->drafts || s->rounds > own)
        fail("%s: -sd %lld took %g rounds, %g drafts of which %g were accepted, for %lld tokens; "
             "is the log of another program?", m->path, (long long)o->drafts, s->rounds,
             s->drafted, s->accepted, s->made);
    if (o->drafts) {
        expected = (own * merges + s->drafted * merges_of(m, o->draft_pattern)) / tokens;
        collected = (own + 2 * s->drafted + tokens) / tokens; // an embedding per pass, and logits
    }
    if (s->allreduces < expected * (1 - rounding) || s->allreduces > anew * expected)
        fail("%s: -p %s executed %g all-reduces per token, expected %g; is the log of another "
             "program?", m->path, o->pattern, s->allreduces, expected);
    if (m->fold < 1 || o->tp % m->fold)
        fail("%s: no line '# mesh .. of which each process runs F tensor ranks' with an F that "
             "divides -tp %lld", m->path, (long long)o->tp);
    measured_check_vocabulary(m, "token", &m->of_token, collected * (1 - rounding), 0);
}

// Fails unless the log's facts fit each other: then what is computed here is what the trainer would
// execute.
static void measured_check(const Measured *m) {
    const GPT2Config *c = &m->shape;
    const Options *o = &m->options;
    for (int i = 0; i < WANTED_ALWAYS; i++) {
        const char *flag = option_specs[wanted[i]].flag;
        if (!o->given[wanted[i]])
            fail("%s: no line '# %s ...'; expected the main.log of a run with -o", m->path, flag);
    }
    if (o->drafts && !o->given[O_draft_pattern]) {
        fail("%s: -sd %lld, but no line '# -sp ...'", m->path, (long long)o->drafts);
    }
    if (!c->L) fail("%s: no line '# shape L .. NH .. C .. V .. Vp .. maxT ..'", m->path);
    if (!m->micro_batches) fail("%s: no line '# update N tokens = M micro-batches of ..'", m->path);
    config_check(c, m->path);
    range_check(m->path, "the number of micro-batches", m->micro_batches, 1, 1 << 30);
    if (o->tp == 1)
        fail("%s: measured with -tp 1, where no pattern talks; measure with -tp 2 or more",
             m->path);
    if (!m->updates.count && !m->samples.count)
        fail("%s: neither updates nor samples of -p %s in the last run; measure with -x 20, or "
             "with -x 0 and -g 200", m->path, o->pattern);
    if (m->taught)
        fail("%s: measured with -kd, whose teacher is in ms but not in comm; expected a run "
             "without it", m->path);
    int merges = merges_of(m, o->pattern);
    if (m->updates.count) measured_check_updates(m, merges);
    if (m->samples.count) measured_check_samples(m, merges);
}

static void measured_take_sums(const char *line, const char *name, OtherSums *sums) {
    if (strncmp(line, name, strlen(name))) return;
    sscanf(line + strlen(name), "%lf all-reduces, %lf MiB, %lf ms", &sums->count, &sums->mib,
           &sums->ms);
}

// Reads the last run in a log: one that was resumed holds several, each with its own header.
static void measured_read(Measured *m, const char *path) {
    File file;
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    m->path = path;
    m->element = sizeof(float);
    file_open(&file, path, "a run's log");
    while ((length = getline(&line, &room, file.stream)) > 0) {
        GPT2Config *c = &m->shape;
        int i = (int)strlen(option_specs[0].flag);
        if (line[length - 1] != '\n') continue; // cut off by a crash
        line[length - 1] = 0;
        if (!strncmp(line, "# ", 2) && !strncmp(line + 2, option_specs[0].flag, (size_t)i) &&
            line[2 + i] == ' ') {
            // Here a run begins.
            free(m->updates.at);
            free(m->samples.at);
            *m = (Measured){.path = path, .element = sizeof(float)};
        }
        if (!strncmp(line, "# -", 3)) measured_take_option(m, line);
        sscanf(line, "# shape L %9d NH %9d C %9d V %9d Vp %9d maxT %9d", &c->L, &c->NH, &c->C,
               &c->V, &c->Vp, &c->maxT);
        sscanf(line, "# update %*d tokens = %9lld micro-batches", &m->micro_batches);
        if (!strncmp(line, "# device ", 9) && strstr(line, ", precision bf16,")) m->element = 2;
        sscanf(line, "# mesh %*d %*s = DP %*d x TP %*d, of which each process runs %4d", &m->fold);
        if (!strncmp(line, "s:", 2) && strstr(line, " trl:")) measured_take_update(m, line);
        if (!strncmp(line, "g:", 2)) measured_take_sample(m, line);
        measured_take_sums(line, "# vocabulary per update: ", &m->of_update);
        measured_take_sums(line, "# vocabulary per token: ", &m->of_token);
        measured_take_sums(line, "# gradients per update: ", &m->gradients);
    }
    free(line);
    if (ferror(file.stream)) fail("%s: read error: %s", path, strerror(errno));
    file_close(&file);
    if (m->updates.count && m->last.made < MADE_MIN) m->samples.count = 0; // a look, no measurement
    measured_check(m);
}

// Bytes of the one all-reduce per update that sums partial gradients.
static size_t gradients_bytes(const GPT2Config *c) {
    ParamSpec specs[P_COUNT];
    size_t n = 0;
    param_specs(specs, c);
    for (int p = 0; p < P_COUNT; p++)
        n += specs[p].cut == WHOLE_PARTIAL_GRAD ? spec_size(&specs[p]) : 0;
    return n * sizeof(float);
}

// Sorts.
static double median_of(double *x, size_t n) {
    qsort(x, n, sizeof *x, compare_ascending);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

// Fails unless options of two runs are the same.
static void measured_same_options(const Measured *m, const Measured *first, const int *options,
                                  int count) {
    char found[32], expected[32];
    for (int i = 0; i < count; i++) {
        const char *is = option_value(&m->options, options[i], found);
        const char *was = option_value(&first->options, options[i], expected);
        if (strcmp(is, was)) {
            fail("%s: measured with %s %s, but %s with %s; expected runs of one model", m->path,
                 option_specs[options[i]].flag, is, first->path, was);
        }
    }
}

// Fails unless a run with -sd is of the same model as the first, and drafts as the one before.
static void measured_check_drafts(const Measured *m, const Measured *first,
                                  const Measured *before) {
    static const int model[] = {O_pattern, O_tp, O_rule, O_vocab_parallel, O_held};
    static const int drawn[] = {O_temperature, O_top_k};
    const GPT2Config *a = &m->shape, *b = &first->shape;
    if (!m->options.drafts)
        fail("%s: measured without -sd; expected of every log but the first -sd K and -sp PATTERN",
             m->path);
    if (!m->last.rounds)
        fail("%s: no drafts in the last sample; measure with -x 0, -g 200 and a longer -t",
             m->path);
    if (a->L != b->L || a->NH != b->NH || a->C != b->C || a->V != b->V) {
        fail("%s: a model of %dx%dx%d and %d tokens, but %s of %dx%dx%d and %d; expected runs of "
             "one model", m->path, a->L, a->NH, a->C, a->V, first->path, b->L, b->NH, b->C, b->V);
    }
    measured_same_options(m, first, model, sizeof model / sizeof *model);
    measured_same_options(m, before, drawn, sizeof drawn / sizeof *drawn);
    if (m->fold != first->fold)
        fail("%s: %d ranks in a process, but %s with %d; expected the same", m->path, m->fold,
             first->path, first->fold);
}

// Milliseconds of an all-reduce of n elements of `size` bytes.
static double elements_ms(const Measured *m, const Network *net, int64_t n, size_t size) {
    return 1e3 * network_seconds(net, (int)m->options.tp, (size_t)n * size);
}

// Median milliseconds of an update without all-reduces. The first fifth of the
// updates, at most ten, is warming up.
static double measured_update(Measured *m, size_t *used) {
    const Options *o = &m->options;
    Network own = {.latency_us = o->net_latency, .gbits = o->net_gbits};
    double gradients = m->gradients.ms;
    if (!m->gradients.count) { // a run that did not come to its end, or an older log
        gradients = 1e3 * network_seconds(&own, (int)o->tp, gradients_bytes(&m->shape));
    }
    size_t n = m->updates.count, first = n / 5 < 1 ? 1 : n / 5 > 10 ? 10 : n / 5;
    double median = median_of(m->updates.at + first, n - first) - gradients - m->of_update.ms;
    if (!(median > 0))
        fail("%s: updates of %.1f ms without their all-reduces, expected more than 0", m->path,
             median);
    *used = n - first;
    return median;
}

// The same of a token; samples are medians themselves.
static double measured_token(Measured *m) {
    double median = median_of(m->samples.at, m->samples.count) - m->of_token.ms;
    if (median <= 0)
        fail("%s: tokens of %.3f ms without their all-reduces, expected more than 0", m->path,
             median);
    return median;
}

// Elements of weights that a process of `ranks` ranks reads for a token, of which *cut lie in
// sub-blocks and are cut over the ranks. As the head it reads all of wte that it has; of wpe a row.
static double weights_read(const Measured *m, int ranks, double *cut) {
    ParamSpec specs[P_COUNT];
    double whole = 0;
    *cut = 0;
    param_specs(specs, &m->shape);
    specs[P_wte].rows = m->shape.V;
    specs[P_wpe].rows = 1;
    for (int p = 0; p < P_COUNT; p++) {
        double n = (double)spec_size(&specs[p]), share = ranks / (double)m->options.tp;
        if (spec_is_cut(&specs[p])) *cut += n * share;
        else whole += p == P_wte && m->options.vocab_parallel ? n * share : n;
    }
    return whole + *cut;
}

// ----------------------------------------------------------------------------
// the tables

typedef struct {
    const char *pattern;
    int merges;           // per forward pass
    long long allreduces; // of activations per update, `ar` in the log
    double mib;           // their payload, `mb` in the log
    double network, ms;   // per update, partial gradients included; or per token
    double apart;         // ms per token with a process for each rank
    char letters[L_MAX + 1], closes[L_MAX]; // as pattern_lay has them
} Row;

// Of updates or of tokens.
typedef struct {
    Row rows[PATTERNS_MAX];
    int count;
    Network net;
    size_t bytes;            // of a merge
    double forward_passes;   // of an update, each with a backward pass; 0: tokens, one pass each
    double compute;          // ms that every pattern has: arithmetic,
    double gradients;        // the sum of partial gradients,
    double vocabulary;       // and those of a cut vocabulary
    double sub;              // forward, of one sub-block
    double apart, sub_apart; // of a token: compute and sub with a process for each rank
} Table;

// Milliseconds that all-reduces of `each` ms are waited for in one pass of the plan, where a
// sub-block computes for `sub` ms: one that begins and ends at different steps goes on meanwhile.
static double steps_wait_ms(const Steps *steps, double each, double sub) {
    double ms = 0, beside = 0;
    for (int i = 0; i < steps->count; i++) {
        const Step *s = &steps->at[i];
        if (s->kind == STEP_SUB || s->kind == STEP_BACK) beside += sub;
        if (s->kind != STEP_SUM) continue;
        if (s->how == SUM_WHOLE) ms += each;
        if (s->how == SUM_BEGIN) beside = 0;
        if (s->how == SUM_END) ms += fmax(0, each - beside);
    }
    return ms;
}

// Milliseconds of the sums of a cut vocabulary in a pass over a few tokens: one of embeddings, and
// one of logits for every token that is drawn.
static double token_vocabulary_ms(const Measured *m, const Network *net, int tokens, double drawn) {
    if (!m->options.vocab_parallel) return 0;
    return elements_ms(m, net, (int64_t)tokens * m->shape.C, m->element) +
           drawn * elements_ms(m, net, m->shape.V, sizeof(float));
}

// Milliseconds of a pass over a few tokens that computes for `compute` ms, a sub-block of it for
// `sub`.
static double pass_ms(const Table *table, const Measured *m, const Plan *plan, int tokens,
                      double drawn, double compute, double sub) {
    double each = elements_ms(m, &table->net, (int64_t)tokens * m->shape.C, m->element);
    return compute + token_vocabulary_ms(m, &table->net, tokens, drawn) +
           steps_wait_ms(&plan->forward, each, sub);
}

static void table_add(Table *table, const Measured *m, const char *pattern, const char *where) {
    Plan plan;
    Row new = {.pattern = pattern}, *row = &table->rows[table->count];
    const Options *o = &m->options;
    pattern_lay(new.letters, new.closes, pattern, m->shape.L, where);
    for (int i = 0; i < table->count; i++) { // pppp. over 4 blocks is p
        if (memcmp(table->rows[i].closes, new.closes, sizeof new.closes)) continue;
        if (!strcmp(table->rows[i].letters, new.letters)) return;
    }
    if (table->count++ == PATTERNS_MAX) fail("%s: more than %d patterns", where, PATTERNS_MAX);
    plan_make(&plan, pattern, m->shape.L, o->rule, (int)o->tp, where);
    *row = new;
    row->merges = plan.merges;
    row->allreduces = 2 * plan.merges * m->micro_batches;
    row->mib = (double)row->allreduces * (double)table->bytes / (1 << 20);
    if (table->forward_passes > 0) {
        double each = 1e3 * network_seconds(&table->net, (int)o->tp, table->bytes);
        double forward = steps_wait_ms(&plan.forward, each, table->sub);
        double backward = steps_wait_ms(&plan.backward, each, 2 * table->sub);
        row->network = table->gradients + table->vocabulary +
                       table->forward_passes * (forward + backward);
    } else {
        row->network = pass_ms(table, m, &plan, 1, 1, 0, table->sub);
        row->apart = pass_ms(table, m, &plan, 1, 1, table->apart, table->sub_apart);
    }
    row->ms = table->compute + row->network;
    plan_free(&plan);
}

static int letters_of(const char *pattern) {
    int n = 0;
    for (; *pattern; pattern++) n += *pattern != '.';
    return n;
}

static int compare_rows(const void *a, const void *b) {
    const Row *x = a, *y = b;
    if (x->ms != y->ms) return x->ms < y->ms ? -1 : 1;
    return x->merges != y->merges ? x->merges - y->merges : strcmp(x->pattern, y->pattern);
}

// The run's own pattern, those asked for, and the known ones, by time.
static void table_fill(Table *table, const Measured *m, char **patterns, int count) {
    table_add(table, m, m->options.pattern, m->path);
    for (int i = 0; i < count; i++) table_add(table, m, patterns[i], "PATTERN");
    for (size_t i = 0; i < sizeof known_patterns / sizeof *known_patterns; i++) {
        if (m->shape.L % letters_of(known_patterns[i]) == 0)
            table_add(table, m, known_patterns[i], "the table");
    }
    qsort(table->rows, (size_t)table->count, sizeof *table->rows, compare_rows);
}

static double table_t(const Table *table) {
    for (int i = 0; i < table->count; i++) {
        if (pattern_is_plain(table->rows[i].pattern)) return table->rows[i].ms;
    }
    return 0;
}

// Of the patterns within the budget those with the most merges. Contract: the table is sorted.
static void budget_print(const Table *table, double budget) {
    const Row *rows = table->rows, *best = NULL;
    const char *unit = table->forward_passes > 0 ? "update" : "token";
    int digits = table->forward_passes > 0 ? 1 : 3;
    for (int i = 0; i < table->count && rows[i].ms <= budget; i++) {
        if (!best || rows[i].merges >= best->merges) best = &rows[i];
    }
    printf("\nbudget %g ms per %s: ", budget, unit);
    if (!best) {
        printf("no pattern meets it; the cheapest is %s with %.*f ms, "
               "of which %.*f ms are compute\n",
               rows[0].pattern, digits, rows[0].ms, digits, table->compute);
        return;
    }
    const char *comma = "";
    for (int i = 0; i < table->count; i++) {
        if (rows[i].merges != best->merges || rows[i].ms > budget) continue;
        printf("%s%s", comma, rows[i].pattern);
        comma = ", ";
    }
    printf(" with %d merges and %.*f ms\n", best->merges, digits, best->ms);
}

static void network_print(const Network *net) {
    printf("network:  %g us per hop, %g Gbit/s per link%s", net->latency_us, net->gbits,
           net->gbits > 0 ? "" : " (0: no limit)");
}

static void updates_print(Measured *m, Network net, char **patterns, int count, double budget) {
    static Table table;
    size_t used;
    const Options *o = &m->options;
    const GPT2Config *c = &m->shape;
    table.net = net;
    table.bytes = (size_t)(o->batch * o->length) * (size_t)c->C * m->element;
    table.forward_passes = (double)m->micro_batches;
    table.compute = measured_update(m, &used);
    table.gradients = 1e3 * network_seconds(&net, (int)o->tp, gradients_bytes(c));
    if (o->vocab_parallel) {
        // Embeddings and their gradient; of each token the largest logit, then two sums.
        int64_t rows = o->batch * o->length;
        double embeddings = 2 * elements_ms(m, &net, rows * c->C, m->element);
        table.vocabulary = table.forward_passes * (embeddings + elements_ms(m, &net, rows, 4) +
                                                   elements_ms(m, &net, 2 * rows, 4));
    }
    table.sub = table.compute / table.forward_passes / (2 * c->L) / 3;
    table_fill(&table, m, patterns, count);
    printf("measured: %s, -p %s, %dx%dx%d, R %d, %lld x %lld tokens x %lld micro-batches\n",
           m->path, o->pattern, c->L, c->NH, c->C, (int)o->tp, (long long)o->batch,
           (long long)o->length, m->micro_batches);
    printf("compute:  %.1f ms per update, median of %zu updates\n", table.compute, used);
    network_print(&net);
    printf("; partial gradients take %.1f ms per update of it in every row", table.gradients);
    if (o->vocab_parallel) printf(", the cut vocabulary %.1f ms", table.vocabulary);
    printf("\n\n");
    printf("               merges    all-reduces  MiB         compute    network    ms per     "
           "saving\n"
           "pattern        /forward  /update      /update     ms         ms         update     "
           "against t\n");
    for (int i = 0; i < table.count; i++) {
        const Row *r = &table.rows[i];
        printf("%-14s %-9d %-12lld %-11.2f %-10.1f %-10.1f %-10.1f %5.1f%%\n", r->pattern,
               r->merges, r->allreduces, r->mib, table.compute, r->network, r->ms,
               100 * (1 - r->ms / table_t(&table)));
    }
    if (budget > 0) budget_print(&table, budget);
}

// The table stays for what follows from it.
static const Table *tokens_print(Measured *m, Network net, char **patterns, int count,
                                 double budget) {
    static Table table;
    const Options *o = &m->options;
    const GPT2Config *c = &m->shape;
    double cut, all = weights_read(m, m->fold, &cut), unused;
    double share = weights_read(m, 1, &unused) / all;
    table.net = net;
    table.bytes = (size_t)c->C * m->element;
    table.compute = measured_token(m);
    table.sub = table.compute * cut / all / (2 * c->L);
    table.apart = table.compute * share;
    table.sub_apart = table.sub / m->fold;
    table.vocabulary = token_vocabulary_ms(m, &net, 1, 1);
    table_fill(&table, m, patterns, count);
    printf("measured: %s, -p %s, %dx%dx%d, R %d, %zu sample%s of %lld tokens\n", m->path,
           o->pattern, c->L, c->NH, c->C, (int)o->tp, m->samples.count,
           m->samples.count > 1 ? "s" : "", m->last.made);
    printf("token:    %.3f ms of compute, with %d of %d ranks in a process\n", table.compute,
           m->fold, (int)o->tp);
    if (m->fold > 1) {
        printf("apart:    %.3f ms with a process for each rank, which reads %.3f of the weights\n",
               table.apart, share);
    }
    network_print(&net);
    printf("; an all-reduce of a token takes %.3f ms", elements_ms(m, &net, c->C, m->element));
    if (o->vocab_parallel) {
        printf(", the cut vocabulary %.3f ms of it in every row", table.vocabulary);
    }
    printf("\n\n");
    const char *above = m->fold > 1 ? "     apart: ms  tokens" : "";
    const char *below = m->fold > 1 ? "         per token  /s" : "";
    printf("               merges    compute    network    ms per     saving     tokens%s\n"
           "pattern        /token    ms         ms         token      against t  /s%s\n",
           above, below);
    for (int i = 0; i < table.count; i++) {
        const Row *r = &table.rows[i];
        printf("%-14s %-9d %-10.3f %-10.3f %-10.3f %5.1f%%     %-10.1f", r->pattern, r->merges,
               table.compute, r->network, r->ms, 100 * (1 - r->ms / table_t(&table)), 1e3 / r->ms);
        if (m->fold > 1) printf(" %-10.3f %-10.1f", r->apart, 1e3 / r->apart);
        printf("\n");
    }
    if (budget > 0) budget_print(&table, budget);
    return &table;
}

// ----------------------------------------------------------------------------
// drafts

// A pattern that drafts.
typedef struct {
    const char *pattern;
    double accepts; // the probability that a draft is accepted if those before it were
    Plan plan;
} Drafter;

// What a round of K drafts gives and takes.
typedef struct {
    const Drafter *by;
    int K;
    double tokens;     // the drafts that are expected to be accepted, and one more
    double allreduces; // of activations per token
    double ms, apart;  // per token
} Round;

// How many drafts of a round are accepted, on average: a + a^2 + .. + a^K (arXiv 2211.17192,
// equation 1). K is a mean too, where some rounds of a run had fewer.
static double drafts_accepted(double a, double K) {
    return a < 1 ? a * (1 - pow(a, K)) / (1 - a) : K;
}

// The probability with which rounds of all logs would have accepted what they did.
static double drafter_accepts(const Measured *logs, int count, const char *pattern) {
    const int halvings = 30;
    double low = 0, high = 1;
    for (int h = 0; h < halvings; h++) {
        double a = (low + high) / 2, accepted = 0, expected = 0;
        for (int i = 0; i < count; i++) {
            const Sample *s = &logs[i].last;
            if (strcmp(logs[i].options.draft_pattern, pattern)) continue;
            accepted += s->accepted;
            expected += s->rounds * drafts_accepted(a, s->drafted / s->rounds);
        }
        if (expected < accepted) low = a;
        else high = a;
    }
    return high;
}

// Windows that have begun anew when n tokens have been read.
static double windows_anew(const Measured *m, long long n) {
    long long W = m->options.length, step = W - W / 2;
    return n > W ? (double)((n - W - 1) / step + 1) : 0;
}

// What a pass over several tokens computes beyond a pass over one, as a share of that.
typedef struct {
    double once, each; // in all, and for every token beyond the first
} Beyond;

// A line through what the logs have left per pass, by its tokens, when every pass is taken to
// compute as `token` ms do. Where all have one K, or it would begin below 0, it begins at 0.
static Beyond beyond_fit(const Measured *logs, int count, double token) {
    double passes = 0, tokens = 0, squares = 0, left = 0, products = 0;
    int one_length = 1;
    for (int i = 0; i < count; i++) {
        const Measured *m = &logs[i];
        const Sample *s = &m->last;
        double windows = windows_anew(m, s->prompt + s->made - 1) - windows_anew(m, s->prompt);
        double n = s->rounds + windows;
        double x = s->drafted + windows * (double)(m->options.length / 2);
        // The mean without its all-reduces, whose share of a round the medians say.
        double computes = s->mean * (s->ms > 0 ? 1 - s->comm / s->ms : 0) - m->of_token.ms;
        double y = (double)(s->made - 1) * computes / token - passes_own(s) - s->drafted;
        if (m->options.drafts != logs->options.drafts) one_length = 0;
        passes += n;
        tokens += x;
        squares += x * x / n;
        left += y;
        products += x * y / n;
    }
    if (!one_length) {
        double each = (passes * products - tokens * left) / (passes * squares - tokens * tokens);
        each = fmax(0, each);
        double once = (left - each * tokens) / passes;
        if (once >= 0) return (Beyond){once, each};
    }
    return (Beyond){0, fmax(0, left / tokens)};
}

// Milliseconds of a round: K passes over a token, then one over all under the model's own pattern.
static double round_ms(const Table *table, const Measured *m, const Plan *own, const Round *r,
                       Beyond beyond, double compute, double sub) {
    double check = 1 + beyond.once + beyond.each * r->K; // passes over a token
    return r->K * pass_ms(table, m, &r->by->plan, 1, 1, compute, sub) +
           pass_ms(table, m, own, r->K + 1, r->tokens, check * compute, check * sub);
}

// Adds the pattern of a log's drafts, and a round of each length.
static void rounds_add(Round *rounds, Drafter *by, const Table *table, const Measured *m,
                       const Plan *own, const Measured *logs, int count, Beyond beyond) {
    plan_make(&by->plan, by->pattern, m->shape.L, m->options.rule, (int)m->options.tp, "-sp");
    by->accepts = drafter_accepts(logs, count, by->pattern);
    for (int K = 1; K <= DRAFTS_MAX; K++) {
        Round *r = &rounds[K - 1];
        *r = (Round){.by = by, .K = K, .tokens = 1 + drafts_accepted(by->accepts, K)};
        r->allreduces = (K * by->plan.merges + own->merges) / r->tokens;
        r->ms = round_ms(table, m, own, r, beyond, table->compute, table->sub) / r->tokens;
        r->apart = round_ms(table, m, own, r, beyond, table->apart, table->sub_apart) / r->tokens;
    }
}

// Names the best of all rounds, or says that there is none; `apart` with a process for each rank.
static void rounds_say(const Round *rounds, int count, const char *own, double alone, int apart) {
    const Round *best = rounds;
    for (int i = 1; i < count; i++) {
        const Round *r = &rounds[i];
        if (apart ? r->apart < best->apart : r->ms < best->ms) best = r;
    }
    double ms = apart ? best->apart : best->ms;
    if (ms < alone) {
        printf("best%s: -sd %d -sp %s, %.3f ms per token; %s without drafts %.3f\n",
               apart ? " apart" : "", best->K, best->by->pattern, ms, own, alone);
    } else {
        printf("drafts do not pay %s: %.3f ms per token at best, -sd %d -sp %s; %s without %.3f\n",
               apart ? "apart" : "here", ms, best->K, best->by->pattern, own, alone);
    }
}

static void rounds_print(const Round *rounds, int count, double alone, int apart) {
    const char *above = apart ? "     apart: ms  tokens" : "";
    const char *below = apart ? "         per token  /s" : "";
    printf("                 accepted         tokens   all-reduces ms per     saving     tokens%s\n"
           "drafts by        each      drafts /round   /token      token      by drafts  /s%s\n",
           above, below);
    for (int i = 0; i < count; i++) {
        const Round *r = &rounds[i];
        printf("%-16s %-9.3f %-6d %-8.3f %-11.2f %-10.3f %5.1f%%     %-10.1f", r->by->pattern,
               r->by->accepts, r->K, r->tokens, r->allreduces, r->ms, 100 * (1 - r->ms / alone),
               1e3 / r->ms);
        if (apart) printf(" %-10.3f %-10.1f", r->apart, 1e3 / r->apart);
        printf("\n");
    }
    printf("\n");
}

// What rounds take that draft under the patterns of `logs`, of the model that the table is of.
static void drafts_print(const Table *table, const Measured *m, const Measured *logs, int count) {
    Plan own;
    const char *pattern = m->options.pattern;
    Drafter *drafters = ALLOC(Drafter, (size_t)count, "drafts");
    Round *rounds = ALLOC(Round, (size_t)count * DRAFTS_MAX, "drafts");
    Beyond beyond = beyond_fit(logs, count, table->compute);
    int known = 0, apart = m->fold > 1;
    plan_make(&own, pattern, m->shape.L, m->options.rule, (int)m->options.tp, m->path);
    double alone = pass_ms(table, m, &own, 1, 1, table->compute, table->sub);
    double alone_apart = pass_ms(table, m, &own, 1, 1, table->apart, table->sub_apart);
    printf("\n");
    for (int i = 0; i < count; i++) {
        const Options *o = &logs[i].options;
        const Sample *s = &logs[i].last;
        int k = 0;
        printf("drafts:   %s, -p %s -sd %lld -sp %s -gt %g: %.0f rounds, %.0f of %.0f accepted\n",
               logs[i].path, pattern, (long long)o->drafts, o->draft_pattern, o->temperature,
               s->rounds, s->accepted, s->drafted);
        while (k < known && strcmp(drafters[k].pattern, o->draft_pattern)) k++;
        if (k < known) continue;
        drafters[known].pattern = o->draft_pattern;
        rounds_add(&rounds[known * DRAFTS_MAX], &drafters[known], table, m, &own, logs, count,
                   beyond);
        known++;
    }
    printf("check:    %.3f ms of compute, and %.3f more for each draft in it\n\n",
           (1 + beyond.once) * table->compute, beyond.each * table->compute);
    rounds_print(rounds, known * DRAFTS_MAX, alone, apart);
    rounds_say(rounds, known * DRAFTS_MAX, pattern, alone, 0);
    if (apart) rounds_say(rounds, known * DRAFTS_MAX, pattern, alone_apart, 1);
    for (int k = 0; k < known; k++) plan_free(&drafters[k].plan);
    plan_free(&own);
    free(drafters);
    free(rounds);
}

// ----------------------------------------------------------------------------

// A number of at least 0, read like the trainer's -nl.
static double number_parse(const char *name, const char *text) {
    Options o;
    OptionSpec spec = option_specs[O_net_latency];
    spec.flag = name;
    option_set(&o, &spec, text);
    return o.net_latency;
}

// Reads the log of a run without -sd, and those of runs with it.
static void logs_read(Measured *logs, char **paths, int count) {
    for (int i = 0; i < count; i++) {
        measured_read(&logs[i], paths[i]);
        if (i) measured_check_drafts(&logs[i], &logs[0], &logs[1]);
        else if (logs->options.drafts && logs->updates.count && count == 1)
            logs->samples.count = 0;
        else if (logs->options.drafts && logs->samples.count)
            fail("%s: measured with -sd %lld; expected before it the log of a run without -sd, "
                 "which says what a pass over one token takes", logs->path,
                 (long long)logs->options.drafts);
    }
    if (count > 1 && !logs->samples.count)
        fail("%s: no sample in the last run; expected one, made without -sd; measure with -x 0 "
             "and -g 200", logs->path);
}

static int is_log(const char *path) {
    const char *end = ".log";
    size_t n = strlen(path), m = strlen(end);
    return n >= m && !strcmp(path + n - m, end);
}

static void help_print(const char *program) {
    printf("%s LOG... LATENCY_US GBITS [BUDGET_MS, 0 = none] [PATTERN]...\n"
           "%s LOG... --network NAME [BUDGET_MS, 0 = none] [PATTERN]...\n\n"
           "What every pattern would take on a network, from one measured run: per update where\n"
           "its log has updates, per token where it has samples. With logs of samples with -sd\n"
           "after it, their names ending in .log: what tokens would take with drafts under their\n"
           "patterns, of the same model, and which -sd and -sp take least.\n"
           "LATENCY_US is per hop, of which an all-reduce over R ranks has 2(R-1); GBITS is per\n"
           "link, 0 = no limit.\n\n"
           "Networks by NAME, as the trainer's options, with the time of a small all-reduce of\n"
           "two that the latency stands for:\n", program, program);
    for (int i = 0; i < NAMED_NETWORKS; i++) {
        const NamedNetwork *n = &named_networks[i];
        printf("  %-8s -nl %g -nb %g\n      %s\n", n->name, n->net.latency_us, n->net.gbits,
               n->says);
    }
}

int main(int argc, char **argv) {
    const char *name = NULL;
    int count = 0; // of arguments but --network NAME, which move to the front
    for (int a = 1; a < argc; a++) {
        if (!strcmp(argv[a], "--help") || !strcmp(argv[a], "-h")) {
            help_print(argv[0]);
            stdout_flush();
            return 0;
        }
        if (strcmp(argv[a], "--network")) {
            argv[++count] = argv[a];
            continue;
        }
        if (name || ++a == argc) fail("--network: expected once, with a name; see --help");
        name = argv[a];
    }
    int logs = 1;
    while (logs < count && is_log(argv[logs + 1])) logs++;
    int next = logs + (name ? 1 : 3); // the first argument after the network
    if (count < next - 1)
        fail("expected: %s LOG... LATENCY_US GBITS, or --network NAME for the two; see --help",
             argv[0]);
    Network net = name ? network_named(name)
                       : (Network){.latency_us = number_parse("LATENCY_US", argv[logs + 1]),
                                   .gbits = number_parse("GBITS", argv[logs + 2])};
    double budget = count >= next ? number_parse("BUDGET_MS", argv[next]) : 0;
    char **patterns = argv + next + 1;
    int asked = count > next ? count - next : 0;
    Measured *m = ALLOC(Measured, (size_t)logs, "logs");
    logs_read(m, argv + 1, logs);
    if (m->updates.count) updates_print(m, net, patterns, asked, budget);
    if (m->updates.count && m->samples.count) printf("\n");
    if (m->samples.count) {
        const Table *table = tokens_print(m, net, patterns, asked, budget);
        if (logs > 1) drafts_print(table, m, m + 1, logs - 1);
    }
    for (int i = 0; i < logs; i++) {
        free(m[i].updates.at);
        free(m[i].samples.at);
    }
    free(m);
    stdout_flush();
    return 0;
}
