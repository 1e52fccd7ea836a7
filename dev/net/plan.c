/*
What every block pattern would cost per update on a given network, from one measured run.

  make dev/net/plan
  OMP_NUM_THREADS=1 ./train_gpt2 -e 4x4x128 -b 12 -x 20 -v 0 -o OUT
  dev/net/plan OUT/main.log 5000 1                  5 ms per hop, 1 Gbit/s per link
  dev/net/plan OUT/main.log 5000 1 150              and which pattern keeps to 150 ms per update
  dev/net/plan OUT/main.log 5000 1 0 sspp tpps      no budget, and two patterns more in the table

The run may be of any pattern, with or without -nl and -nb.

The log gives the shape, R, the micro-batches of an update, and the milliseconds of an update
without its all-reduces: the median over updates of `ms` - `comm`, less the sum of partial
gradients, which `comm` leaves out, where the run had an emulated network. The number of merges is
that of the trainer's own plan_make, the time of an all-reduce that of its own network_seconds, the
same that `-nl` and `-nb` wait for. dev/net/bench_allreduce finds the two numbers of a real network.

It prints the patterns by time, with `t` for comparison, then what meets the budget: the pattern
with the most merges, which is the closest to plain GPT-2.

It is not a model of compute: that is taken to be the measured one for every pattern (s and p add
a few percent of LayerNorms where ranks are folded into one process). Only the all-reduces of l
and d overlap: each is waited for as far as it takes longer than the sub-block it is hidden
behind, where all compute is taken to be that of sub-blocks, a third of it forward. Sums over
data-parallel replicas count as compute, as they were measured. Loss is not its subject: a pattern
that is faster learns something else.
*/
#include "../../data/options.h"
#include "../../data/runlog.h"

enum { PATTERNS_MAX = 256, WORD_MAX = PATTERN_MAX + 1 };
static const size_t element_size = sizeof(float); // of activations and gradients

// The patterns of the table; those that do not fit L are left out.
static const char *const known_patterns[] = {
    "t", "tstt", "ts", "tsst", "tss", "tsss", "s", "sp", "spps", "sspp", "spp", "sppp", "p", "pp.",
    "ppp.", "pppp.", "pppppp.", "l", "d"};

// ----------------------------------------------------------------------------
// the measured run

typedef struct {
    const char *path;
    Options options; // those of `wanted`
    GPT2Config shape;
    long long micro_batches; // per update
    double *ms, *comm;       // of every update
    size_t updates, room;
    long long allreduces;
    double mib;
} Measured;

static const int wanted[] = {O_pattern, O_tp, O_rule, O_batch, O_length, O_net_latency,
                             O_net_gbits};
enum { WANTED = sizeof wanted / sizeof *wanted };

// The value of "key:value" in an update's line.
static double line_number(const Measured *m, const char *line, const char *key) {
    char *end;
    const char *found = strstr(line, key);
    double value = found ? strtod(found + strlen(key), &end) : 0;
    if (!found || end == found + strlen(key) || !(value >= 0 && value < 1e12)) {
        fail("%s: an update's line without a number after '%s': %s", m->path, key + 1, line);
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
    if (!strcmp(flag, "-vp") && strcmp(value, "0")) {
        fail("%s: measured with -vp %s, whose all-reduces are not planned here; measure with -vp 0",
             m->path, value);
    }
}

static void measured_take_update(Measured *m, const char *line) {
    if (m->updates == m->room) {
        m->room = 2 * m->room + 64;
        m->ms = realloc(m->ms, m->room * sizeof *m->ms);
        m->comm = realloc(m->comm, m->room * sizeof *m->comm);
        if (!m->ms || !m->comm) fail("out of memory: %zu updates", m->room);
    }
    m->ms[m->updates] = line_number(m, line, " ms:");
    m->comm[m->updates++] = line_number(m, line, " comm:");
    m->allreduces = (long long)line_number(m, line, " ar:");
    m->mib = line_number(m, line, " mb:");
}

// Fails unless the log's facts fit each other: then what is computed here is what the trainer would
// execute.
static void measured_check(const Measured *m) {
    Plan plan;
    const GPT2Config *c = &m->shape;
    const Options *o = &m->options;
    for (int i = 0; i < WANTED; i++) {
        const char *flag = option_specs[wanted[i]].flag;
        if (!o->given[wanted[i]])
            fail("%s: no line '# %s ...'; expected the main.log of a run with -o", m->path, flag);
    }
    if (!c->L) fail("%s: no line '# shape L .. NH .. C .. V .. Vp .. maxT ..'", m->path);
    if (!m->micro_batches) fail("%s: no line '# update N tokens = M micro-batches of ..'", m->path);
    config_check(c, m->path);
    range_check(m->path, "the number of micro-batches", m->micro_batches, 1, 1 << 30);
    if (o->tp == 1)
        fail("%s: measured with -tp 1, where no pattern talks; measure with -tp 2 or more",
             m->path);
    if (m->updates < 3)
        fail("%s: %zu updates in the last run, expected at least 3; raise -x", m->path, m->updates);
    plan_make(&plan, o->pattern, c->L, o->rule, (int)o->tp, m->path);
    long long expected = 2 * plan.merges * m->micro_batches;
    plan_free(&plan);
    double mib = (double)expected * (double)(o->batch * o->length * c->C) * (double)element_size /
                 (1 << 20);
    if (m->allreduces != expected || fabs(m->mib - mib) > 0.006) {
        fail("%s: -p %s executed %lld all-reduces of %.2f MiB per update, expected %lld of %.2f; "
             "is the log of another program, or its element size not %zu bytes?",
             m->path, o->pattern, m->allreduces, m->mib, expected, mib, element_size);
    }
}

// Reads the last run in a log: one that was resumed holds several, each with its own header.
static void measured_read(Measured *m, const char *path) {
    File file;
    char *line = NULL;
    size_t room = 0;
    ssize_t length;
    m->path = path;
    file_open(&file, path, "a run's log");
    while ((length = getline(&line, &room, file.stream)) > 0) {
        GPT2Config *c = &m->shape;
        int i = (int)strlen(option_specs[0].flag);
        if (line[length - 1] != '\n') continue; // cut off by a crash
        line[length - 1] = 0;
        if (!strncmp(line, "# ", 2) && !strncmp(line + 2, option_specs[0].flag, (size_t)i) &&
            line[2 + i] == ' ') {
            // Here a run begins.
            *m = (Measured){.path = path, .ms = m->ms, .comm = m->comm, .room = m->room};
        }
        if (!strncmp(line, "# -", 3)) measured_take_option(m, line);
        sscanf(line, "# shape L %9d NH %9d C %9d V %9d Vp %9d maxT %9d", &c->L, &c->NH, &c->C,
               &c->V, &c->Vp, &c->maxT);
        sscanf(line, "# update %*d tokens = %9lld micro-batches", &m->micro_batches);
        if (!strncmp(line, "s:", 2) && strstr(line, " trl:")) measured_take_update(m, line);
    }
    free(line);
    if (ferror(file.stream)) fail("%s: read error: %s", path, strerror(errno));
    file_close(&file);
    measured_check(m);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Bytes of the one all-reduce per update that sums partial gradients.
static size_t gradients_bytes(const GPT2Config *c) {
    ParamSpec specs[P_COUNT];
    size_t n = 0;
    param_specs(specs, c);
    for (int p = 0; p < P_COUNT; p++)
        n += specs[p].cut == WHOLE_PARTIAL_GRAD ? spec_size(&specs[p]) : 0;
    return n * element_size;
}

// Median milliseconds of an update without all-reduces. The first fifth of the
// updates, at most ten, is warming up.
static double measured_compute(Measured *m, size_t *used) {
    const Options *o = &m->options;
    Network own = {.latency_us = o->net_latency, .gbits = o->net_gbits};
    double gradients = 1e3 * network_seconds(&own, (int)o->tp, gradients_bytes(&m->shape));
    size_t first = m->updates / 5 < 1 ? 1 : m->updates / 5 > 10 ? 10 : m->updates / 5;
    size_t n = m->updates - first;
    for (size_t i = 0; i < n; i++) m->ms[i] = m->ms[first + i] - m->comm[first + i] - gradients;
    qsort(m->ms, n, sizeof *m->ms, compare_doubles);
    double median = n % 2 ? m->ms[n / 2] : (m->ms[n / 2 - 1] + m->ms[n / 2]) / 2;
    if (median <= 0)
        fail("%s: updates of %.1f ms without their all-reduces, expected more than 0", m->path,
             median);
    *used = n;
    return median;
}

// ----------------------------------------------------------------------------
// the table

typedef struct {
    const char *pattern;
    int merges;           // per forward pass
    long long allreduces; // of activations per update, `ar` in the log
    double mib;           // their payload, `mb` in the log
    double network, ms;   // per update, partial gradients included
    char letters[L_MAX + 1];
} Row;

typedef struct {
    Row rows[PATTERNS_MAX];
    int count;
    // Ms per update that every pattern has: arithmetic, and the sum of partial gradients.
    double compute, gradients;
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

// Milliseconds per update that all-reduces of `each` ms are waited for.
static double merges_ms(const Table *table, const Plan *plan, const Measured *m, double each) {
    double micro_batches = (double)m->micro_batches;
    double forward = table->compute / micro_batches / (2 * m->shape.L) / 3;
    return micro_batches * (steps_wait_ms(&plan->forward, each, forward) +
                            steps_wait_ms(&plan->backward, each, 2 * forward));
}

static void table_add(Table *table, const Measured *m, const Network *net, const char *pattern,
                      const char *where) {
    Plan plan;
    const Options *o = &m->options;
    plan_make(&plan, pattern, m->shape.L, o->rule, (int)o->tp, where);
    for (int i = 0; i < table->count; i++) { // pppp. over 4 blocks is p
        if (table->rows[i].merges == plan.merges && !strcmp(table->rows[i].letters, plan.letters)) {
            plan_free(&plan);
            return;
        }
    }
    if (table->count == PATTERNS_MAX) fail("%s: more than %d patterns", where, PATTERNS_MAX);
    size_t bytes = (size_t)(o->batch * o->length) * (size_t)m->shape.C * element_size;
    Row *row = &table->rows[table->count++];
    *row = (Row){.pattern = pattern, .merges = plan.merges,
                 .allreduces = 2 * plan.merges * m->micro_batches};
    memcpy(row->letters, plan.letters, sizeof row->letters);
    row->mib = (double)row->allreduces * (double)bytes / (1 << 20);
    row->network = table->gradients +
                   merges_ms(table, &plan, m, 1e3 * network_seconds(net, (int)o->tp, bytes));
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

static void table_print(const Table *table) {
    double t = 0;
    for (int i = 0; i < table->count; i++) {
        if (pattern_is_plain(table->rows[i].pattern)) t = table->rows[i].ms;
    }
    printf("           merges    all-reduces  MiB         compute    network    ms per     saving\n"
           "pattern    /forward  /update      /update     ms         ms         update     "
           "against t\n");
    for (int i = 0; i < table->count; i++) {
        const Row *r = &table->rows[i];
        printf("%-10s %-9d %-12lld %-11.2f %-10.1f %-10.1f %-10.1f %5.1f%%\n", r->pattern,
               r->merges, r->allreduces, r->mib, table->compute, r->network, r->ms,
               100 * (1 - r->ms / t));
    }
}

// Of the patterns within the budget those with the most merges. Contract: the table is sorted.
static void budget_print(const Table *table, double budget) {
    const Row *rows = table->rows, *best = NULL;
    for (int i = 0; i < table->count && rows[i].ms <= budget; i++) {
        if (!best || rows[i].merges >= best->merges) best = &rows[i];
    }
    printf("\nbudget %g ms per update: ", budget);
    if (!best) {
        printf("no pattern meets it; the cheapest is %s with %.1f ms, "
               "of which %.1f ms are compute\n",
               rows[0].pattern, rows[0].ms, table->compute);
        return;
    }
    const char *comma = "";
    for (int i = 0; i < table->count; i++) {
        if (rows[i].merges != best->merges || rows[i].ms > budget) continue;
        printf("%s%s", comma, rows[i].pattern);
        comma = ", ";
    }
    printf(" with %d merges and %.1f ms\n", best->merges, best->ms);
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

int main(int argc, char **argv) {
    static Measured m;
    static Table table;
    size_t used;
    if (argc < 4)
        fail("expected: %s OUT/main.log LATENCY_US GBITS [BUDGET_MS, 0 = none] [PATTERN]...",
             argv[0]);
    Network net = {.latency_us = number_parse("LATENCY_US", argv[2]),
                   .gbits = number_parse("GBITS", argv[3])};
    double budget = argc > 4 ? number_parse("BUDGET_MS", argv[4]) : 0;
    measured_read(&m, argv[1]);
    const Options *o = &m.options;
    const GPT2Config *c = &m.shape;
    table.compute = measured_compute(&m, &used);
    table.gradients = 1e3 * network_seconds(&net, (int)o->tp, gradients_bytes(c));
    table_add(&table, &m, &net, o->pattern, argv[1]);
    for (int a = 5; a < argc; a++) table_add(&table, &m, &net, argv[a], "PATTERN");
    for (size_t i = 0; i < sizeof known_patterns / sizeof *known_patterns; i++) {
        if (c->L % letters_of(known_patterns[i]) == 0)
            table_add(&table, &m, &net, known_patterns[i], "the table");
    }
    qsort(table.rows, (size_t)table.count, sizeof *table.rows, compare_rows);
    printf("measured: %s, -p %s, %dx%dx%d, R %d, %lld x %lld tokens x %lld micro-batches\n",
           argv[1], o->pattern, c->L, c->NH, c->C, (int)o->tp, (long long)o->batch,
           (long long)o->length, m.micro_batches);
    printf("compute:  %.1f ms per update, median of %zu updates\n", table.compute, used);
    printf("network:  %g us per hop, %g Gbit/s per link%s; partial gradients take %.1f ms per "
           "update of it in every row\n\n",
           net.latency_us, net.gbits, net.gbits > 0 ? "" : " (0: no limit)", table.gradients);
    table_print(&table);
    if (budget > 0) budget_print(&table, budget);
    free(m.ms), free(m.comm);
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
    return 0;
}
