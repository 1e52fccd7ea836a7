/*
A Markdown page from the tables of sweeps: what every pattern costs in loss, against t, and whether
that can be told from chance.

  make dev/runs/report
  dev/runs/report out/sweep/runs.tsv >report.md    judges the validation loss after the last update
  dev/runs/report out/a/runs.tsv out/b/runs.tsv    several sweeps as one
  dev/runs/report -b out/sweep/runs.tsv            judges the best one of each run: some overfit
  dev/runs/report -m 0.02 out/sweep/runs.tsv       margin 0.02 instead of 0.01
  dev/runs/report -k dev/runs/known.tsv out/sweep/runs.tsv    compares with what others found
  dev/runs/report -p 'pp. p' out/sweep/runs.tsv    judges these patterns only, beside t; how much is
                                                   chance is still estimated from all
  dev/runs/report -d out/sweep/runs.tsv            the differences to t as a table, for figures
  dev/runs/report -t 4.303 2                       two-sided p-value of Student's t, 2 degrees of
                                                   freedom

A group is what shares experiment, R and options. Within it patterns are compared with t, paired by
seed: two runs of one seed see the same batches and, for equal shapes, start from the same weights.
Patterns of t and l alone are the same function at every R: their runs serve all of them. How much
is chance is estimated from all runs of an experiment with its options, at every R: the three seeds
of one pattern cannot say it.
The rule of the verdicts is printed on the page. Times are printed where all runs of a group had
the machine to themselves (dev/runs/sweep --alone): others say nothing.

Rows whose status is not `ok` are listed apart and count nowhere. What cannot be read is an error
with its line (table.h).
*/
#include "table.h"

enum { SEEDS_MAX = 1000 };

static double margin = 0.01; // nats by which a pattern may be worse than t and still hold
static const double level = 0.05;  // of p-values
static const double tolerated = 2; // percent of t's loss, for the older question
static int judged = C_val_loss;
static const char *asked = ""; // patterns, with blanks between; all where there is none

// ----------------------------------------------------------------------------
// Student's t

// The continued fraction of the incomplete beta function (Numerical Recipes 6.4, Lentz's method).
static double beta_fraction(double a, double b, double x) {
    const double tiny = 1e-300, close = 1e-15;
    double c = 1, d = 1 - (a + b) * x / (a + 1), h;
    d = 1 / (fabs(d) < tiny ? tiny : d);
    h = d;
    for (int m = 1; m < 1000; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        double terms[] = {even, odd}, step = 1;
        for (int i = 0; i < 2; i++) {
            d = 1 + terms[i] * d;
            c = 1 + terms[i] / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = fabs(c) < tiny ? tiny : c;
            step = c * d;
            h *= step;
        }
        if (fabs(step - 1) < close) break;
    }
    return h;
}

// I_x(a, b), the regularized incomplete beta function.
static double beta_regularized(double a, double b, double x) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
    return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

// P(T >= t) of Student's t with `freedom` degrees of freedom; t may be infinite.
static double student_above(double t, double freedom) {
    double x = isinf(t) ? 0 : freedom / (freedom + t * t);
    double half = beta_regularized(freedom / 2, 0.5, x) / 2;
    return t > 0 ? half : 1 - half;
}

static double student_two_sided(double t, double freedom) {
    return 2 * student_above(fabs(t), freedom);
}

typedef struct {
    int n;
    double mean, error; // standard error of the mean, NAN for n < 2
} Sample;

static Sample sample_of(const double *x, int n) {
    Sample s = {.n = n, .error = NAN};
    double squares = 0;
    for (int i = 0; i < n; i++) s.mean += x[i] / n;
    for (int i = 0; i < n; i++) squares += (x[i] - s.mean) * (x[i] - s.mean);
    if (n > 1) s.error = sqrt(squares / (n - 1) / n);
    return s;
}

// P-values of a mean with its error: that the true one is above a value, below it, or another.
// Without any spread they are 0 or 1, and for the value itself 0.5.
static double p_above(Sample s, double value, double freedom) {
    double over = s.mean - value;
    if (!(s.error > 0)) return over == 0 ? 0.5 : over < 0;
    return student_above(over / s.error, freedom);
}

static double p_below(Sample s, double value, double freedom) {
    return p_above((Sample){s.n, -s.mean, s.error}, -value, freedom);
}

static double p_other(Sample s, double value, double freedom) {
    return 2 * fmin(p_above(s, value, freedom), p_below(s, value, freedom));
}

// ----------------------------------------------------------------------------
// which runs belong together

static int same(const Run *a, const Run *b, const int *which, int n) {
    for (int i = 0; i < n; i++) {
        if (strcmp(a->text[which[i]], b->text[which[i]])) return 0;
    }
    return 1;
}

static int same_group(const Run *a, const Run *b) {
    return same(a, b, (const int[]){C_experiment, C_R, C_options}, 3);
}

// Whether updates draw their patterns from a list, which may hold others than the run's own.
static int draws_patterns(const Run *run) {
    const char *options = run->text[C_options];
    return !strncmp(options, "-pe ", 4) || strstr(options, " -pe ");
}

// A rule changes nothing where there is no run of p to merge.
static int has_rule(const Run *run) {
    return strchr(run->text[C_pattern], 'p') || draws_patterns(run);
}

static int same_entry(const Run *a, const Run *b) {
    return same_group(a, b) && same(a, b, (const int[]){C_pattern, C_rule}, 1 + has_rule(a));
}

static int is_plain(const Run *run) {
    return !run->text[C_pattern][strspn(run->text[C_pattern], "t")];
}

// Whether a run's pattern is judged, or is what others are judged by.
static int is_asked(const Run *run) {
    size_t n = strlen(run->text[C_pattern]);
    if (!*asked || is_plain(run)) return 1;
    for (const char *at = asked; (at = strstr(at, run->text[C_pattern])); at += n) {
        if ((at == asked || at[-1] == ' ') && (!at[n] || at[n] == ' ')) return 1;
    }
    return 0;
}

// Fails unless every pattern of -p was run.
static void asked_check(const Table *table) {
    for (const char *word = asked + strspn(asked, " "); *word; word += strspn(word, " ")) {
        size_t n = strcspn(word, " ");
        int found = 0;
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            const char *pattern = run->text[C_pattern];
            found |= strlen(pattern) == n && !strncmp(pattern, word, n);
        }
        if (!found) fail("-p: no run of %.*s in these tables", (int)n, word);
        word += n;
    }
}

// Experiment, options and updates: what noise is estimated over. R = 1 is apart, where all patterns
// but those with l are one function.
static int same_setting(const Run *a, const Run *b) {
    return same(a, b, (const int[]){C_experiment, C_options, C_updates}, 3) &&
           (a->number[C_R] > 1) == (b->number[C_R] > 1);
}

// Whether the run computes the same function at every R above 1, to rounding: nothing in its
// pattern reads what one rank alone knows.
static int serves_every_R(const Run *run) {
    return run->number[C_R] > 1 && !draws_patterns(run) &&
           !run->text[C_pattern][strspn(run->text[C_pattern], "tl")];
}

// Whether a run at another R is one of b's group for all that.
static int same_but_R(const Run *a, const Run *b) {
    return strcmp(a->text[C_R], b->text[C_R]) && serves_every_R(a) && same_setting(a, b);
}

static int same_function(const Run *a, const Run *b) {
    if (same_entry(a, b)) return 1;
    return same_setting(a, b) && same(a, b, (const int[]){C_pattern}, 1) && serves_every_R(a);
}

// ----------------------------------------------------------------------------
// noise

typedef struct {
    double seeds;    // standard deviation of a loss over seeds, within a pattern
    double residual; // of what neither the pattern nor the seed explains
    int freedom;     // degrees of freedom of `residual`
} Noise;

static int same_seed(const Run *a, const Run *b) { return a->number[C_seed] == b->number[C_seed]; }

// The runs of a setting at seeds that t has there, one per function and seed. Returns their number.
static int setting_runs(const Table *table, const Run *like, const Run **runs) {
    const Run *end = table->runs + table->count;
    int n = 0;
    for (const Run *run = table->runs; run < end; run++) {
        int has_t = 0, again = 0;
        if (!run_is_ok(run) || !same_setting(run, like)) continue;
        for (const Run *t = table->runs; t < end; t++) {
            has_t |= run_is_ok(t) && is_plain(t) && same_setting(t, like) && same_seed(t, run);
        }
        for (int i = 0; i < n; i++) again |= same_function(runs[i], run) && same_seed(runs[i], run);
        if (has_t && !again) runs[n++] = run;
    }
    return n;
}

// Numbers runs so that those alike have one number, from 0 on. Returns how many numbers there are.
static int runs_number(const Run **runs, int n, int (*alike)(const Run *, const Run *),
                       int *number) {
    int numbers = 0;
    for (int i = 0; i < n; i++) {
        int j = 0;
        while (j < i && !alike(runs[j], runs[i])) j++;
        number[i] = j < i ? number[j] : numbers++;
    }
    return numbers;
}

// What a loss is made of: parts[p] for runs of number p.
typedef struct {
    int *number, count;
    double *parts;
} Factor;

// Each part becomes the mean of what another factor leaves of its runs' losses. Returns the sum of
// squares of what both leave.
static double factor_fit(Factor *f, const Factor *other, const Run **runs, int n) {
    double squares = 0;
    for (int p = 0; p < f->count; p++) {
        double sum = 0, count = 0;
        for (int i = 0; i < n; i++) {
            if (f->number[i] != p) continue;
            sum += runs[i]->number[judged] - other->parts[other->number[i]];
            count++;
        }
        f->parts[p] = sum / count;
    }
    for (int i = 0; i < n; i++) {
        squares += pow(runs[i]->number[judged] - f->parts[f->number[i]] -
                       other->parts[other->number[i]], 2);
    }
    return squares;
}

// A loss is the sum of a pattern's and a seed's part and of chance, which is as large for all
// patterns of a setting (two-way analysis of variance). The parts are fitted by least squares, in
// turn, since seeds may be missing.
static Noise noise_of(const Table *table, const Run *like) {
    Noise noise = {NAN, NAN, 0};
    size_t room = (size_t)table->count;
    const Run **runs = ALLOC(const Run *, room, "runs of a setting");
    int n = setting_runs(table, like, runs);
    Factor patterns = {.number = ALLOC(int, room, "runs of a setting")}, seeds = patterns;
    seeds.number = ALLOC(int, room, "runs of a setting");
    patterns.count = runs_number(runs, n, same_function, patterns.number);
    seeds.count = runs_number(runs, n, same_seed, seeds.number);
    patterns.parts = ALLOC(double, room, "runs of a setting");
    seeds.parts = ALLOC(double, room, "runs of a setting");
    double squares = factor_fit(&patterns, &seeds, runs, n), before;
    if (n > patterns.count) noise.seeds = sqrt(squares / (n - patterns.count));
    if (n + 1 > patterns.count + seeds.count) { // t joins all seeds: but one part each is free
        noise.freedom = n + 1 - patterns.count - seeds.count;
        do {
            before = squares;
            factor_fit(&seeds, &patterns, runs, n);
            squares = factor_fit(&patterns, &seeds, runs, n);
        } while (squares < before * (1 - 1e-12));
        noise.residual = sqrt(squares / noise.freedom);
    }
    free(patterns.number);
    free(patterns.parts);
    free(seeds.number);
    free(seeds.parts);
    free(runs);
    return noise;
}

// ----------------------------------------------------------------------------
// entries: the runs of one pattern and merge rule in a group, one per seed

typedef struct {
    const Run *runs[SEEDS_MAX];
    int n, lost; // lost: runs that did not end well
    Sample loss, best;
    Sample pairs;      // difference to t, paired by seed, with the error of these pairs
    Sample difference; // the same with the error by the setting's noise
    double ms;
    double two_sided, p_within, p_beyond; // that it is not 0, is below the margin, is above it;
                                          // the latter two corrected for the number of patterns
    double p_own; // that it is below the margin, by `pairs`, not corrected
    enum { BASELINE, NO_VERDICT, HOLDS, FAILS, OPEN } verdict;
} Entry;

typedef struct {
    const Run *first; // of its own, in the table
    Entry *entries;
    int count, rules, alone; // entries; whether there are several merge rules; whether all runs
                             // had the machine to themselves
    Noise noise;             // of its setting
    Entry *baseline;
} Group;

static double entry_number(const Entry *e, int column) { return e->runs[0]->number[column]; }
static const char *entry_text(const Entry *e, int column) { return e->runs[0]->text[column]; }

static Sample entry_sample(const Entry *e, int column) {
    double x[SEEDS_MAX];
    for (int i = 0; i < e->n; i++) x[i] = e->runs[i]->number[column];
    return sample_of(x, e->n);
}

static double entry_median(const Entry *e, int column) {
    double x[SEEDS_MAX];
    for (int i = 0; i < e->n; i++) x[i] = e->runs[i]->number[column];
    qsort(x, (size_t)e->n, sizeof *x, compare_ascending);
    return (x[(e->n - 1) / 2] + x[e->n / 2]) / 2;
}

// The differences of two entries' losses, at the seeds that both have.
static Sample entry_pair(const Entry *e, const Entry *other) {
    double d[SEEDS_MAX] = {0};
    int n = 0;
    for (int i = 0; i < e->n; i++) {
        for (int j = 0; j < other->n; j++) {
            const double *ours = e->runs[i]->number, *theirs = other->runs[j]->number;
            if (ours[C_seed] == theirs[C_seed]) d[n++] = ours[judged] - theirs[judged];
        }
    }
    return sample_of(d, n);
}

// The same, with an error by the noise of the setting: each of two losses has its residual.
static Sample with_noise(Sample pairs, const Noise *noise) {
    if (pairs.n > 1) pairs.error = noise->residual * sqrt(2.0 / pairs.n);
    return pairs;
}

// A pattern that serves every R is judged at the R it was run at.
static int entry_is_borrowed(const Entry *e, const Run *first) {
    for (int i = 0; i < e->n; i++) {
        if (same(e->runs[i], first, (const int[]){C_R}, 1)) return 0;
    }
    return 1;
}

// Many merges first, then as the table has them.
static int compare_entries(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    double more = entry_number(y, C_merges_per_forward) - entry_number(x, C_merges_per_forward);
    if (more == 0) return x->runs[0] < y->runs[0] ? -1 : x->runs[0] > y->runs[0];
    return more > 0 ? 1 : -1;
}

// Returns 0 and leaves the run out where the entry has its seed: by R's own run, or one of another
// rule that is the same function.
static int entry_add(Entry *e, const Run *run) {
    for (int i = 0; i < e->n; i++) {
        const Run *other = e->runs[i];
        if (other->number[C_seed] == run->number[C_seed]) {
            if (!same(other, run, (const int[]){C_R, C_rule}, 2)) return 0;
            fail("%s:%d: pattern, R, rule, seed and options of %s:%d again", run->path, run->line,
                 other->path, other->line);
        }
        if (other->number[C_merges_per_forward] != run->number[C_merges_per_forward]) {
            fail("%s:%d: %s merges, but %s:%d of the same pattern has %s; are these runs of one "
                 "experiment?", run->path, run->line, run->text[C_merges_per_forward], other->path,
                 other->line, other->text[C_merges_per_forward]);
        }
    }
    if (e->n == SEEDS_MAX) fail("%s:%d: more than %d seeds", run->path, run->line, e->n);
    e->runs[e->n++] = run;
    return 1;
}

static void group_add(Group *group, const Run *run) {
    Entry *e = group->entries;
    const Run *first = group->first;
    int own = same_group(run, first);
    if (run->number[C_updates] != first->number[C_updates]) {
        fail("%s:%d: %s updates, but %s:%d of the same experiment, R and options has %s",
             run->path, run->line, run->text[C_updates], first->path, first->line,
             first->text[C_updates]);
    }
    while (e < group->entries + group->count) {
        if (same_entry(e->runs[0], run)) break;
        if (!own && same(e->runs[0], run, (const int[]){C_pattern}, 1)) break;
        e++;
    }
    if (e == group->entries + group->count) {
        *e = (Entry){};
        group->count++;
    }
    if (entry_add(e, run)) group->alone &= own && run_was_alone(run);
    if (own && !same(run, first, (const int[]){C_rule}, 1)) group->rules = 1;
}

static int compare_pointed(const void *a, const void *b) {
    return compare_ascending(*(double *const *)a, *(double *const *)b);
}

// Holm's step-down correction of n p-values (Holm 1979): the k-th smallest times n + 1 - k, none
// below the one before.
static void holm_correct(double **p, int n) {
    qsort(p, (size_t)n, sizeof *p, compare_pointed);
    for (int k = 0; k < n; k++) {
        *p[k] = fmin(1, (n - k) * *p[k]);
        if (k) *p[k] = fmax(*p[k], *p[k - 1]);
    }
}

// The rule: is the mean difference to t shown to be below the margin, or above it?
static void group_judge(Group *group) {
    const Noise *noise = &group->noise;
    double **within = ALLOC(double *, (size_t)group->count, "p-values");
    double **beyond = ALLOC(double *, (size_t)group->count, "p-values");
    int n = 0;
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        e->pairs = entry_pair(e, group->baseline);
        e->difference = with_noise(e->pairs, noise);
        e->verdict = NO_VERDICT;
        if (e == group->baseline) e->verdict = BASELINE;
        if (e->pairs.n < 2 || !noise->freedom) continue;
        e->two_sided = p_other(e->difference, 0, noise->freedom);
        e->p_beyond = p_above(e->difference, margin, noise->freedom);
        e->p_within = p_below(e->difference, margin, noise->freedom);
        e->p_own = p_below(e->pairs, margin, e->pairs.n - 1);
        if (e == group->baseline || entry_is_borrowed(e, group->first)) continue;
        e->verdict = OPEN;
        within[n] = &e->p_within;
        beyond[n++] = &e->p_beyond;
    }
    holm_correct(within, n);
    holm_correct(beyond, n);
    free(within);
    free(beyond);
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (e->verdict != OPEN) continue;
        if (e->p_beyond < level) e->verdict = FAILS;
        else if (e->p_within < level && !e->lost) e->verdict = HOLDS;
    }
}

// Patterns that fill a model alike are one function, judged twice and too sure of its noise.
static void entries_differ(const Entry *e, const Entry *other) {
    const Run *x = e->runs[0], *y = other->runs[0];
    Sample pairs = entry_pair(e, other);
    if (pairs.n < 2 || pairs.mean != 0 || pairs.error != 0) return;
    if (x->number[C_R] == 1 || !same(x, y, (const int[]){C_rule}, 1)) return;
    fail("%s:%d: %s has the losses of %s, %s:%d, at %d seeds; are they one function? leave one out",
         x->path, x->line, x->text[C_pattern], y->text[C_pattern], y->path, y->line, pairs.n);
}

static void group_gather(Group *group, const Table *table, const Run *first) {
    *group = (Group){.first = first, .alone = 1, .noise = noise_of(table, first)};
    size_t most = 0;
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        most += same_but_R(run, first) || same_group(run, first);
    }
    group->entries = ALLOC(Entry, most, "patterns");
    for (int other = 0; other < 2; other++) { // R's own runs first
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            if (!run_is_ok(run) || !is_asked(run)) continue;
            if (other ? same_but_R(run, first) : same_group(run, first)) group_add(group, run);
        }
    }
    qsort(group->entries, (size_t)group->count, sizeof *group->entries, compare_entries);
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (Entry *other = group->entries; other < e; other++) entries_differ(e, other);
    }
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        e->loss = entry_sample(e, judged);
        e->best = entry_sample(e, C_best_val_loss);
        e->ms = entry_median(e, C_ms_per_update);
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            e->lost += !run_is_ok(run) && same_entry(e->runs[0], run);
        }
        // t has no run of p for a rule to merge: its runs serve all rules, those of most seeds
        int more = !group->baseline || e->n > group->baseline->n;
        if (is_plain(e->runs[0]) && more) group->baseline = e;
    }
    if (group->baseline) group_judge(group);
}

// "sppp", or "sppp (mean)" where several rules are compared.
static const char *entry_name(const Group *group, const Entry *e) {
    static char names[8][300];
    static int next;
    char *name = names[next++ % 8];
    const char *pattern = entry_text(e, C_pattern);
    if (!group->rules || !has_rule(e->runs[0])) snprintf(name, sizeof names[0], "%.250s", pattern);
    else snprintf(name, sizeof names[0], "%.250s (%.30s)", pattern, entry_text(e, C_rule));
    return name;
}

// ----------------------------------------------------------------------------
// the page

#define KEEP "\x1f" // a blank at which no line ends

static struct {
    char text[1 << 16];
    size_t length;
} paragraph;

// Text of a paragraph or an item of a list, which say_end prints.
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    size_t room = sizeof paragraph.text - paragraph.length;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(paragraph.text + paragraph.length, room, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= room) fail("a paragraph longer than %zu", sizeof paragraph.text);
    paragraph.length += (size_t)n;
}

// Lines end at a blank before column 100. Those of an item stand two columns in, as Markdown wants.
static void say_end(void) {
    const char *indent = strncmp(paragraph.text, "- ", 2) ? "" : "  ";
    char *rest = paragraph.text;
    int column = 0;
    for (char *word = strsep(&rest, " "); word; word = strsep(&rest, " ")) {
        int width = 0;
        for (char *c = word; *c; c++) {
            width += (*c & 0xC0) != 0x80; // UTF-8 letters
            if (*c == KEEP[0]) *c = ' ';
        }
        if (column && column + 1 + width > 100) {
            printf("\n%s%s", indent, word);
            column = (int)strlen(indent) + width;
        } else {
            printf("%s%s", column ? " " : "", word);
            column += (column ? 1 : 0) + width;
        }
    }
    printf("\n");
    paragraph.length = 0;
    paragraph.text[0] = 0;
}

static const char *p_text(double p) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], p < 0.0001 ? "< 0.0001" : "%.4f", p);
    return text;
}

// "p = 0.0123", in one piece.
static const char *p_said(double p) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    if (p < 0.0001) snprintf(text, sizeof texts[0], "p" KEEP "<" KEEP "0.0001");
    else snprintf(text, sizeof texts[0], "p" KEEP "=" KEEP "%.4f", p);
    return text;
}

static void sample_print(Sample s, const char *sign_format) {
    printf(" | ");
    if (!s.n) printf("–");
    else printf(sign_format, s.mean);
    if (s.n > 1 && !isnan(s.error)) printf(" ± %.4f", s.error);
}

static double percent_of(const Entry *e, const Entry *t) {
    return 100 * e->difference.mean / t->loss.mean;
}

static void group_table_print(const Group *group) {
    printf("| pattern | merges | all-reduces | MiB | loss | n | %s | to t | p | of t |%s\n"
           "|---|---|---|---|---|---|---|---|---|---|%s\n",
           judged == C_val_loss ? "best" : "last", group->alone ? " ms |" : "",
           group->alone ? "---|" : "");
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        int compared = group->baseline && e != group->baseline;
        Sample other = {.n = 1, .mean = e->best.mean};
        if (judged != C_val_loss) other.mean = entry_sample(e, C_val_loss).mean;
        printf("| %s | %s | %s | %s", entry_name(group, e), entry_text(e, C_merges_per_forward),
               entry_text(e, C_allreduces_per_update), entry_text(e, C_mib_per_update));
        sample_print(e->loss, "%.4f");
        printf(" | %d", e->n);
        sample_print(other, "%.4f");
        sample_print(compared ? e->difference : (Sample){}, "%+.4f");
        int has_p = compared && e->difference.n > 1 && group->noise.freedom > 0;
        printf(" | %s", has_p ? p_text(e->two_sided) : "–");
        int has_percent = group->baseline && e->difference.n;
        if (has_percent) printf(" | %+.2f%%", percent_of(e, group->baseline));
        else printf(" | –");
        if (group->alone) printf(" | %.1f", e->ms);
        printf(" |\n");
    }
    printf("\n");
}

static void verdict_print(const Group *group, const Entry *e) {
    say("- **%s**, %s instead of %s: ", entry_name(group, e), entry_text(e, C_merges_per_forward),
        entry_text(group->baseline, C_merges_per_forward));
    if (e->difference.n) say("%+.4f; ", e->difference.mean);
    if (e->verdict == NO_VERDICT) {
        if (!e->difference.n) say("no seed in common with t: no verdict.");
        else if (entry_is_borrowed(e, group->first)) say("judged at R %s.", entry_text(e, C_R));
        else say(e->difference.n < 2 ? "one seed: no verdict." : "too few runs: no verdict.");
    }
    if (e->verdict == HOLDS) {
        say("**holds**: no worse than t by more than %g (%s; own %s).", margin,
            p_said(e->p_within), p_said(e->p_own));
    }
    if (e->verdict == FAILS) {
        say("**fails**: worse than t by more than %g (%s; own %s).", margin, p_said(e->p_beyond),
            p_said(p_above(e->pairs, margin, e->pairs.n - 1)));
    }
    if (e->verdict == OPEN && e->lost) {
        say("**open**: %d of its runs did not end well (%s of the others; own %s).", e->lost,
            p_said(e->p_within), p_said(e->p_own));
    } else if (e->verdict == OPEN) {
        say("**open**: not shown to be within %g of t (%s; own %s), nor to be beyond it (%s).",
            margin, p_said(e->p_within), p_said(e->p_own), p_said(e->p_beyond));
    }
    say_end();
}

// Is the loss within 2% of t's; what is the smallest count of all-reduces that holds.
static void answers_print(const Group *group) {
    const Entry *t = group->baseline, *worst = NULL, *fewest = NULL, *fewest_within = NULL;
    int judged_all = 1;
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (e == t || !e->difference.n) continue;
        if (!worst || percent_of(e, t) > percent_of(worst, t)) worst = e;
        if (e->verdict == NO_VERDICT && !entry_is_borrowed(e, group->first)) judged_all = 0;
        double merges = entry_number(e, C_merges_per_forward);
        int fewer = !fewest || merges < entry_number(fewest, C_merges_per_forward);
        if (e->verdict == HOLDS && fewer) fewest = e;
        if (percent_of(e, t) > tolerated) continue;
        fewer = !fewest_within || merges < entry_number(fewest_within, C_merges_per_forward);
        if (fewer) fewest_within = e;
    }
    if (!worst) return;
    say("Is the mean loss within %g%% of the baseline's? ", tolerated);
    if (percent_of(worst, t) <= tolerated) {
        say("Yes, that of every pattern: the highest is %s with %+.2f%%.", entry_name(group, worst),
            percent_of(worst, t));
    } else {
        const char *comma = "Not of ";
        for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (e == t || !e->difference.n || percent_of(e, t) <= tolerated) continue;
            say("%s%s (%+.2f%%)", comma, entry_name(group, e), percent_of(e, t));
            comma = ", ";
        }
        if (fewest_within) {
            say("; the fewest all-reduces within it has %s with %s",
                entry_name(group, fewest_within), entry_text(fewest_within, C_merges_per_forward));
        }
        say(".");
    }
    say_end();
    if (fewest) {
        say("The smallest count that holds, by the rule above: ");
        say("%s per forward pass, with %s (t: %s).", entry_text(fewest, C_merges_per_forward),
            entry_name(group, fewest), entry_text(t, C_merges_per_forward));
    } else {
        say("The smallest count that holds, by the rule above: %s",
            judged_all ? "none is shown to." : "not answered, a verdict needs two seeds or more.");
    }
    say_end();
    printf("\n");
}

// Each different value of a column among a group's runs.
static void values_print(const Group *group, const char *label, int column) {
    const Run *seen[16];
    int n = 0, more = 0;
    say("- %s:", label);
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (int i = 0; i < e->n; i++) {
            int j = 0;
            while (j < n && strcmp(seen[j]->text[column], e->runs[i]->text[column])) j++;
            more |= j == 16;
            if (j < n || n == 16) continue;
            seen[n++] = e->runs[i];
            say("%s %s", n > 1 ? ";" : "", e->runs[i]->text[column]);
        }
    }
    if (more) say("; ...");
    say_end();
}

static int group_borrows(const Group *group) {
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (int i = 0; i < e->n; i++) {
            if (!same(e->runs[i], group->first, (const int[]){C_R}, 1)) return 1;
        }
    }
    return 0;
}

static void dates_print(const Group *group) {
    const char *first = NULL, *last = NULL;
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (int i = 0; i < e->n; i++) {
            const char *date = e->runs[i]->text[C_date];
            if (!first || strcmp(date, first) < 0) first = date;
            if (!last || strcmp(date, last) > 0) last = date;
        }
    }
    printf("- ended: %s to %s\n", first, last);
}

static void group_print(const Group *group) {
    const Run *run = group->first;
    int has_options = strcmp(run->text[C_options], "-") != 0;
    printf("## %s, R %s", run->text[C_experiment], run->text[C_R]);
    if (has_options) printf(", %s", run->text[C_options]);
    printf("\n\n");
    printf("%s updates; losses in nats per token.\n\n", run->text[C_updates]);
    group_table_print(group);
    if (group->baseline && group->noise.freedom) {
        say("Over seeds a loss has a standard deviation of %.4f; %.4f is left when the part that a "
            "seed has in all patterns is taken off (%d degrees of freedom).", group->noise.seeds,
            group->noise.residual, group->noise.freedom);
        say_end();
        printf("\n");
    }
    if (!group->baseline) {
        printf("No run of t with these options%s.\n\n",
               has_options ? "; see \"What options change\"" : "");
    } else {
        for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (e != group->baseline) verdict_print(group, e);
        }
        printf("\n");
        answers_print(group);
    }
    if (group_borrows(group)) values_print(group, "R of the runs", C_R);
    values_print(group, "text", C_text);
    values_print(group, "machine", C_machine);
    values_print(group, "threads per run", C_threads);
    values_print(group, "runs at a time", C_jobs);
    if (group->alone) values_print(group, "alone", C_alone);
    values_print(group, "commit", C_commit);
    values_print(group, "trainer's sha256", C_program);
    dates_print(group);
    printf("\n");
}

// The runs with these options of the experiment, R and updates of `like`: of its pattern and, where
// that has runs of p to merge, its rule; or of t. One per seed.
static Entry entry_find(const Table *table, const Run *like, const char *options, int plain) {
    Entry e = {};
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        int known = !run_is_ok(run) || strcmp(run->text[C_options], options);
        known |= !same(run, like, (const int[]){C_experiment, C_updates}, 2);
        known |= strcmp(run->text[C_R], like->text[C_R]) && !(plain && serves_every_R(run));
        if (plain) known |= !is_plain(run);
        else known |= !same(run, like, (const int[]){C_pattern, C_rule}, 1 + has_rule(like));
        for (int i = 0; i < e.n; i++) known |= e.runs[i]->number[C_seed] == run->number[C_seed];
        if (!known && e.n < SEEDS_MAX) e.runs[e.n++] = run;
    }
    if (e.n) e.loss = entry_sample(&e, judged);
    return e;
}

static void difference_print(const Entry *e, const Entry *to) {
    Sample pairs = entry_pair(e, to);
    sample_print(pairs, "%+.4f");
    printf(" | %s", pairs.n > 1 ? p_text(p_other(pairs, 0, pairs.n - 1)) : "–");
}

// What options change: each pattern with them beside itself, and beside t, without.
static void options_print(const Table *table) {
    int head = 0;
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        const char *options = run->text[C_options];
        if (!run_is_ok(run) || !strcmp(options, "-")) continue;
        Entry with = entry_find(table, run, options, 0);
        Entry without = entry_find(table, run, "-", 0);
        Entry t = entry_find(table, run, "-", 1);
        if (with.runs[0] != run || !without.n) continue; // before, or nothing to compare with
        if (!head++) {
            printf("## What options change\n\n"
                   "Differences are paired by seed, p two-sided, of these pairs alone.\n\n"
                   "| setting | loss | n | without | difference | p | to t without | p |\n"
                   "|---|---|---|---|---|---|---|---|\n");
        }
        printf("| %s %s R %s %s %s", run->text[C_experiment], run->text[C_pattern], run->text[C_R],
               run->text[C_rule], options);
        sample_print(with.loss, "%.4f");
        printf(" | %d | %.4f", with.n, without.loss.mean);
        difference_print(&with, &without);
        difference_print(&with, &t);
        printf(" |\n");
    }
    printf(head ? "\n" : "");
}

// Lines of: experiment, pattern, R, rule, options, loss, within, source; '#' begins a comment.
static void known_print(const Table *table, const char *path) {
    FILE *file = fopen(path, "r");
    char *text = NULL, *f[FIELDS_MAX];
    size_t room = 0;
    int head = 0;
    if (!file) fail("%s: %s", path, strerror(errno));
    for (int line = 1; getline(&text, &room, file) > 0; line++) {
        text[strcspn(text, "\n")] = 0;
        if (!text[0] || text[0] == '#') continue;
        int n = line_split(text, f);
        if (n != 8) {
            fail("%s:%d: %d columns, expected 8: experiment pattern R rule options loss within "
                 "source", path, line, n);
        }
        double known = number_read(path, line, "loss", f[5]), x[SEEDS_MAX];
        double within = number_read(path, line, "within", f[6]);
        int found = 0, here = 0;
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            const char *const *r = run->text;
            here |= !strcmp(r[C_experiment], f[0]);
            int is = run_is_ok(run) && found < SEEDS_MAX;
            is = is && !strcmp(r[C_experiment], f[0]) && !strcmp(r[C_pattern], f[1]);
            is = is && !strcmp(r[C_R], f[2]) && !strcmp(r[C_rule], f[3]);
            if (is && !strcmp(r[C_options], f[4])) x[found++] = run->number[C_val_loss];
        }
        if (!here) continue;
        if (!head++) {
            printf("## Against what others found\n\nLosses after the last update, whatever this "
                   "page judges.\n\n"
                   "| setting | theirs | ours | n | difference | within | source |\n"
                   "|---|---|---|---|---|---|---|\n");
        }
        Sample s = sample_of(x, found);
        printf("| %s %s R %s %s %s | %.3f", f[0], f[1], f[2], f[3], strcmp(f[4], "-") ? f[4] : "",
               known);
        sample_print(s, "%.4f");
        printf(" | %d", found);
        const char *near = fabs(s.mean - known) <= within ? "yes," : "**no,**";
        if (found) printf(" | %+.4f | %s %g", s.mean - known, near, within);
        else printf(" | – | not run");
        printf(" | %s |\n", f[7]);
    }
    printf(head ? "\n" : "");
    free(text);
    fclose(file);
}

// ----------------------------------------------------------------------------
// across settings

typedef struct {
    Group *groups; // in the order of the tables
    int count;
} Groups;

static Groups groups_of(const Table *table) {
    Groups all = {.groups = ALLOC(Group, (size_t)table->count + 1, "settings")};
    for (int i = 0; i < table->count; i++) {
        int before = 0;
        if (!run_is_ok(&table->runs[i]) || !is_asked(&table->runs[i])) continue;
        for (int j = 0; j < i; j++) {
            if (!run_is_ok(&table->runs[j]) || !is_asked(&table->runs[j])) continue;
            before |= same_group(&table->runs[i], &table->runs[j]);
        }
        if (!before) group_gather(&all.groups[all.count++], table, &table->runs[i]);
    }
    return all;
}

static void groups_free(Groups *all) {
    for (int i = 0; i < all->count; i++) free(all->groups[i].entries);
    free(all->groups);
}

// A group's own entry of like's pattern and rule that is compared with t; NULL where there is none.
static const Entry *group_find(const Group *group, const Entry *like) {
    const int what[] = {C_pattern, C_rule};
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (e == group->baseline || !e->difference.n) continue;
        if (entry_is_borrowed(e, group->first)) continue;
        if (same(e->runs[0], like->runs[0], what, 1 + has_rule(e->runs[0]))) return e;
    }
    return NULL;
}

// What two groups differ in, where that is one thing.
typedef enum { MORE_THAN_ONE, ONLY_R, ONLY_EXPERIMENT } Differ;

static Differ groups_differ(const Group *a, const Group *b) {
    if (same_setting(a->first, b->first)) { // losses are compared there: t's is the same
        return draws_patterns(a->first) ? MORE_THAN_ONE : ONLY_R;
    }
    return same(a->first, b->first, (const int[]){C_R, C_options}, 2) ? ONLY_EXPERIMENT
                                                                       : MORE_THAN_ONE;
}

static void contrast_print(const Group *a, const Entry *before, const Group *b,
                           const Entry *after, Differ differ, int *head) {
    Sample change = {.n = after->difference.n,
                     .mean = after->difference.mean - before->difference.mean};
    double freedom = b->noise.freedom;
    if (!(*head)++) {
        say("How these change from the least to the largest R of an experiment, paired at the "
            "seeds that both have, and from one experiment to the next at the same R. p is "
            "two-sided, for one comparison.");
        say_end();
        printf("\n| from, to | pattern | change | p |\n|---|---|---|---|\n");
    }
    if (differ == ONLY_R) {
        change = with_noise(entry_pair(after, before), &b->noise);
        printf("| %s, R %s to %s | %s", b->first->text[C_experiment], a->first->text[C_R],
               b->first->text[C_R], entry_name(b, after));
    } else { // other losses on both sides (Welch 1947)
        double x = pow(before->difference.error, 2), y = pow(after->difference.error, 2);
        change.error = sqrt(x + y);
        freedom = pow(x + y, 2) / (x * x / a->noise.freedom + y * y / b->noise.freedom);
        printf("| %s to %s, R %s | %s", a->first->text[C_experiment],
               b->first->text[C_experiment], b->first->text[C_R], entry_name(b, after));
    }
    if (isnan(change.error)) change.n = change.n > 0; // of single seeds
    sample_print(change, "%+.4f");
    printf(" | %s |\n", change.error > 0 ? p_text(p_other(change, 0, freedom)) : "–");
}

// How a pattern's difference to t changes: from the least to the largest R of an experiment, and
// from an experiment to the next that has the pattern at this R.
static void contrasts_print(const Groups *all, int g, int *head) {
    const Group *b = &all->groups[g];
    for (const Entry *e = b->entries; b->baseline && e < b->entries + b->count; e++) {
        const Group *least = NULL, *previous = NULL;
        int is_last = 1;
        if (group_find(b, e) != e) continue;
        for (int i = 0; i < all->count; i++) {
            const Group *a = &all->groups[i];
            if (i == g || !group_find(a, e)) continue;
            Differ differ = groups_differ(a, b);
            double R = a->first->number[C_R];
            if (differ == ONLY_R && (!least || R < least->first->number[C_R])) least = a;
            if (differ == ONLY_R) is_last &= R < b->first->number[C_R];
            if (differ == ONLY_EXPERIMENT && i < g) previous = a;
        }
        if (least && is_last) contrast_print(least, group_find(least, e), b, e, ONLY_R, head);
        if (previous) {
            contrast_print(previous, group_find(previous, e), b, e, ONLY_EXPERIMENT, head);
        }
    }
}

// Whether another group has this entry's pattern too and differs in one thing.
static int entry_is_elsewhere(const Groups *all, const Group *own, const Entry *e) {
    if (group_find(own, e) != e) return 0;
    for (const Group *g = all->groups; g < all->groups + all->count; g++) {
        if (g != own && groups_differ(g, own) != MORE_THAN_ONE && group_find(g, e)) return 1;
    }
    return 0;
}

// Patterns that stand beside t in several groups.
static void across_print(const Groups *all) {
    const Group *end = all->groups + all->count;
    int rows = 0, head = 0, *shown = ALLOC(int, (size_t)all->count + 1, "settings");
    for (const Group *g = all->groups; g < end; g++) {
        for (const Entry *e = g->entries; g->baseline && e < g->entries + g->count; e++) {
            shown[g - all->groups] |= entry_is_elsewhere(all, g, e);
        }
    }
    for (const Group *own = all->groups; own < end; own++) {
        for (const Entry *e = own->entries; own->baseline && e < own->entries + own->count; e++) {
            int before = 0;
            for (const Group *g = all->groups; g < own; g++) {
                before |= shown[g - all->groups] && group_find(g, e);
            }
            if (before || !entry_is_elsewhere(all, own, e)) continue;
            if (!rows++) {
                printf("## Across settings\n\nDifferences to t.\n\n| pattern |");
                for (const Group *g = all->groups; g < end; g++) {
                    if (!shown[g - all->groups]) continue;
                    printf(" %s, R %s", g->first->text[C_experiment], g->first->text[C_R]);
                    if (strcmp(g->first->text[C_options], "-")) {
                        printf(", %s", g->first->text[C_options]);
                    }
                    printf(" |");
                }
                printf("\n|---|");
                for (int i = 0; i < all->count; i++) printf(shown[i] ? "---|" : "");
                printf("\n");
            }
            printf("| %s", entry_name(own, e));
            for (const Group *g = all->groups; g < end; g++) {
                const Entry *other = group_find(g, e);
                if (shown[g - all->groups]) {
                    sample_print(other ? other->difference : (Sample){}, "%+.4f");
                }
            }
            printf(" |\n");
        }
    }
    if (rows) printf("\n");
    for (int g = 0; g < all->count; g++) contrasts_print(all, g, &head);
    if (head) printf("\n");
    free(shown);
}

// A line for every pattern that shares seeds with t, at the R of its runs; noise: the standard
// deviation of a loss over seeds in its setting; both p-values corrected.
static void differences_print(const Groups *all) {
    printf("experiment\tR\toptions\tpattern\trule\tmerges\tmerges_of_t\tn\tdifference\terror\t"
           "noise\tp_within\tp_beyond\n");
    for (const Group *group = all->groups; group < all->groups + all->count; group++) {
        for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (!group->baseline || e == group->baseline || !e->difference.n) continue;
            if (entry_is_borrowed(e, group->first)) continue;
            printf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.6f", group->first->text[C_experiment],
                   group->first->text[C_R], group->first->text[C_options],
                   entry_text(e, C_pattern), entry_text(e, C_rule),
                   entry_text(e, C_merges_per_forward),
                   entry_text(group->baseline, C_merges_per_forward), e->difference.n,
                   e->difference.mean);
            if (e->verdict == NO_VERDICT) printf("\tNaN\t%.6f\tNaN\tNaN\n", group->noise.seeds);
            else printf("\t%.6f\t%.6f\t%.6f\t%.6f\n", e->difference.error, group->noise.seeds,
                        e->p_within, e->p_beyond);
        }
    }
}

static void page_print(const Table *table, const Groups *all, int tables, char **paths,
                       const char *known) {
    printf("# Loss against all-reduces\n\n");
    say("Made by dev/runs/report from");
    for (int i = 0; i < tables; i++) {
        const char *comma = i == 0 ? "" : i < tables - 1 ? "," : " and";
        say("%s `%s`", comma, paths[i]);
    }
    say(": %d runs, of which %d ended well.", table->count, table->count - table->not_ok);
    if (*asked) say(" Judged are %s, beside t.", asked);
    say_end();
    printf("\n");
    const char *one = judged == C_val_loss ? "last" : "best";
    const char *other = judged == C_val_loss ? "best" : "last";
    say("**The rule.** Judged is the %s validation loss. A pattern's differences to t are taken at "
        "equal seeds. It **holds** when a one-sided t-test shows the mean difference to be below "
        "%g at p < %g (no worse than t by more than %g) and all its runs ended well; it **fails** "
        "when the test shows it to be above %g, and is **open** otherwise. The error of a "
        "difference comes from all patterns of the experiment, at every R: it is what pattern and "
        "seed together leave of the losses, assumed to be as large for all patterns. `own` is "
        "the p-value of a paired t-test of the pattern's own seeds, not corrected. All others "
        "there are corrected for the number of patterns judged in the table, by Holm's method. One "
        "seed gives no verdict. Seeds vary weights and batches, not the text. A pattern of t and l "
        "alone is the same function at every R above 1: tables of other R show its runs too, but "
        "it is judged once.",
        one, margin, level, margin, margin);
    say_end();
    printf("\n");
    say("**Columns.** merges: all-reduces per forward pass. all-reduces, MiB: per update. loss: "
        "the %s validation loss in nats per token, mean ± standard error over n seeds. %s: the "
        "mean of their %s ones. to t: the paired difference ± its error by the rule, with its "
        "two-sided p, not corrected, and in percent of t's loss. Where a pattern has fewer seeds "
        "than t, the difference is not that of the two losses shown.", one, other, other);
    say(" ms: of an update, the median of its seeds' medians; only where all runs had the machine "
        "to themselves.");
    say_end();
    printf("\n");
    for (int i = 0; i < all->count; i++) group_print(&all->groups[i]);
    across_print(all);
    options_print(table);
    if (known) known_print(table, known);
    if (table->not_ok) printf("## Runs that did not end well\n\nThey count nowhere above.\n\n");
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        if (run_is_ok(run)) continue;
        const char *why = run->text[C_status];
        printf("- %s: %s\n", run->text[C_run], strcmp(why, "ok") ? why : "no validation loss");
    }
}

int main(int argc, char **argv) {
    static Table table;
    const char *known = NULL;
    int a = 1, only_differences = 0;
    if (argc == 4 && !strcmp(argv[1], "-t")) {
        double t = number_read("-t", 1, "T", argv[2]);
        printf("%.10g\n", student_two_sided(t, number_read("-t", 1, "freedom", argv[3])));
        return 0;
    }
    for (; a < argc && argv[a][0] == '-'; a++) {
        if (!strcmp(argv[a], "-b")) {
            judged = C_best_val_loss;
        } else if (!strcmp(argv[a], "-m") && a + 1 < argc) {
            a++;
            margin = number_read("-m", 1, "MARGIN", argv[a]);
        } else if (!strcmp(argv[a], "-k") && a + 1 < argc) {
            known = argv[++a];
        } else if (!strcmp(argv[a], "-p") && a + 1 < argc) {
            asked = argv[++a];
        } else if (!strcmp(argv[a], "-d")) {
            only_differences = 1;
        } else {
            fail("%s: expected -b, -d, -k KNOWN.TSV, -m MARGIN or -p PATTERNS", argv[a]);
        }
    }
    if (a == argc) {
        fail("expected: %s [-b] [-d] [-k KNOWN.TSV] [-m MARGIN] [-p PATTERNS] RUNS.TSV...",
             argv[0]);
    }
    for (int i = a; i < argc; i++) table_read(&table, argv[i], 0);
    asked_check(&table);
    Groups all = groups_of(&table);
    if (only_differences) differences_print(&all);
    else page_print(&table, &all, argc - a, argv + a, known);
    groups_free(&all);
    stdout_flush();
    return 0;
}
