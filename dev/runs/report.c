/*
A Markdown page from a sweep's table: what every pattern costs in loss, against t, and whether that can be told from chance.

  make dev/runs/report
  dev/runs/report out/sweep/runs.tsv >report.md                      judges the validation loss after the last update
  dev/runs/report -b out/sweep/runs.tsv >report.md                   judges the best one of each run, for runs that overfit
  dev/runs/report -m 0.02 out/sweep/runs.tsv dev/runs/known.tsv      margin 0.02 instead of 0.01; compares with what others found
  dev/runs/report -t 4.303 2                                         two-sided p-value of Student's t with 2 degrees of freedom

A group is what shares experiment, R and options. Within it patterns are compared with t, paired by seed: two runs of one seed
see the same batches and, for equal shapes, start from the same weights. The rule of the verdicts is printed on the page.

It takes the columns by their names from the first line. Rows whose status is not `ok` are listed apart and count nowhere. A
row that cannot be read is an error with its line: a page from half a table would look like a whole one.
*/
#include "table.h"

enum { SEEDS_MAX = 1000 };

static double margin = 0.01; // nats by which a pattern may be worse than t and still hold
static const double level = 0.05, tolerated = 2; // of p-values; percent of t's loss, for the older question
static int judged = C_val_loss;

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
            d = 1 + terms[i] * d, c = 1 + terms[i] / c;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = fabs(c) < tiny ? tiny : c;
            h *= step = c * d;
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
    double half = isinf(t) ? 0 : beta_regularized(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2;
    return t > 0 ? half : 1 - half;
}

static double student_two_sided(double t, double freedom) { return 2 * student_above(fabs(t), freedom); }

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

// How many standard errors the mean lies above a value; without any spread, infinitely many or none.
static double sample_distance(Sample s, double from) {
    double above = s.mean - from;
    return s.error > 0 ? above / s.error : above == 0 ? 0 : copysign(INFINITY, above);
}

// ----------------------------------------------------------------------------
// which runs belong together

static int same(const Run *a, const Run *b, const int *which, int n) {
    for (int i = 0; i < n; i++) {
        if (strcmp(a->text[which[i]], b->text[which[i]])) return 0;
    }
    return 1;
}

static int same_group(const Run *a, const Run *b) { return same(a, b, (const int[]){C_experiment, C_R, C_options}, 3); }
static int same_entry(const Run *a, const Run *b) { return same_group(a, b) && same(a, b, (const int[]){C_pattern, C_rule}, 2); }
static int is_plain(const Run *run) { return !run->text[C_pattern][strspn(run->text[C_pattern], "t")]; }

// ----------------------------------------------------------------------------
// entries: the runs of one pattern and merge rule in a group, one per seed

typedef struct {
    const Run *runs[SEEDS_MAX];
    int n;
    Sample loss, best, difference; // the last to t, paired by seed
    double ms;
    double two_sided, p_within, p_beyond; // of the difference: is not 0; is below the margin; is above it
    enum { BASELINE, NO_VERDICT, HOLDS, FAILS, OPEN } verdict;
} Entry;

typedef struct {
    Entry *entries;
    int count, rules; // entries; whether there is more than one merge rule
    Entry *baseline;
} Group;

static double entry_number(const Entry *e, int column) { return e->runs[0]->number[column]; }
static const char *entry_text(const Entry *e, int column) { return e->runs[0]->text[column]; }

static Sample entry_sample(const Entry *e, int column) {
    double x[SEEDS_MAX];
    for (int i = 0; i < e->n; i++) x[i] = e->runs[i]->number[column];
    return sample_of(x, e->n);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double entry_median(const Entry *e, int column) {
    double x[SEEDS_MAX];
    for (int i = 0; i < e->n; i++) x[i] = e->runs[i]->number[column];
    qsort(x, (size_t)e->n, sizeof *x, compare_doubles);
    return (x[(e->n - 1) / 2] + x[e->n / 2]) / 2;
}

// The rule: of the differences d to t at equal seeds, is their mean shown to be below the margin, or above it?
static void entry_judge(Entry *e, const Entry *t) {
    double d[SEEDS_MAX] = {0};
    int n = 0;
    for (int i = 0; i < e->n; i++) {
        for (int j = 0; j < t->n; j++) {
            if (e->runs[i]->number[C_seed] == t->runs[j]->number[C_seed]) d[n++] = e->runs[i]->number[judged] - t->runs[j]->number[judged];
        }
    }
    e->difference = sample_of(d, n);
    e->verdict = NO_VERDICT;
    if (n < 2) return;
    e->two_sided = student_two_sided(sample_distance(e->difference, 0), n - 1);
    e->p_beyond = student_above(sample_distance(e->difference, margin), n - 1);
    e->p_within = student_above(-sample_distance(e->difference, margin), n - 1);
    e->verdict = e->p_within < level ? HOLDS : e->p_beyond < level ? FAILS : OPEN;
}

static int compare_entries(const void *a, const void *b) { // many merges first, then as the table has them
    const Entry *x = a, *y = b;
    double more = entry_number(y, C_merges_per_forward) - entry_number(x, C_merges_per_forward);
    return more > 0 ? 1 : more < 0 ? -1 : x->runs[0]->line - y->runs[0]->line;
}

static void group_gather(Group *group, const Table *table, const Run *first) {
    group->count = group->rules = 0;
    group->baseline = NULL;
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        if (!run_is_ok(run) || !same_group(run, first)) continue;
        Entry *e = group->entries;
        while (e < group->entries + group->count && !same_entry(e->runs[0], run)) e++;
        if (e == group->entries + group->count) *e = (Entry){}, group->count++;
        for (int i = 0; i < e->n; i++) {
            if (e->runs[i]->number[C_seed] == run->number[C_seed]) {
                fail("%s:%d: pattern, R, rule, seed and options of line %d again", table->path, run->line, e->runs[i]->line);
            }
            if (e->runs[i]->number[C_updates] != run->number[C_updates] ||
                e->runs[i]->number[C_merges_per_forward] != run->number[C_merges_per_forward]) {
                fail("%s:%d: %s updates with %s merges, but line %d of the same pattern has %s and %s; are these runs of one experiment?",
                     table->path, run->line, run->text[C_updates], run->text[C_merges_per_forward], e->runs[i]->line,
                     e->runs[i]->text[C_updates], e->runs[i]->text[C_merges_per_forward]);
            }
        }
        if (e->n == SEEDS_MAX) fail("%s:%d: more than %d seeds", table->path, run->line, e->n);
        e->runs[e->n++] = run;
        if (strcmp(run->text[C_rule], entry_text(group->entries, C_rule))) group->rules = 1;
    }
    qsort(group->entries, (size_t)group->count, sizeof *group->entries, compare_entries);
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        e->loss = entry_sample(e, judged), e->best = entry_sample(e, C_best_val_loss), e->ms = entry_median(e, C_ms_per_update);
        // t has no run of p for a rule to merge: its runs serve all rules, those with the most seeds
        if (is_plain(e->runs[0]) && (!group->baseline || e->n > group->baseline->n)) group->baseline = e;
    }
    if (!group->baseline) return;
    for (Entry *e = group->entries; e < group->entries + group->count; e++) entry_judge(e, group->baseline);
    group->baseline->verdict = BASELINE;
}

// "sppp", or "sppp (mean)" where several rules are compared.
static const char *entry_name(const Group *group, const Entry *e) {
    static char names[8][300];
    static int next;
    char *name = names[next++ % 8];
    int merges_runs = strchr(entry_text(e, C_pattern), 'p') != NULL; // or else a rule changes nothing
    snprintf(name, sizeof names[0], group->rules && merges_runs ? "%.250s (%s)" : "%.250s", entry_text(e, C_pattern), entry_text(e, C_rule));
    return name;
}

// ----------------------------------------------------------------------------
// the page

static const char *p_text(double p) {
    static char texts[4][32];
    static int next;
    char *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], p < 0.0001 ? "< 0.0001" : "%.4f", p);
    return text;
}

static const char *p_equals(double p) { return p < 0.0001 ? "" : "= "; }

static void sample_print(Sample s, const char *sign_format) {
    printf(" | ");
    if (!s.n) printf("–");
    else printf(sign_format, s.mean);
    if (s.n > 1) printf(" ± %.4f", s.error);
}

static double percent_of(const Entry *e, const Entry *t) { return 100 * e->difference.mean / t->loss.mean; }

static void table_print(const Group *group) {
    printf("| pattern | all-reduces per forward pass | per update | MiB per update | %s, mean ± standard error | n | %s | difference to t, paired"
           " | p, two-sided | of t | ms per update, median |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
           judged == C_val_loss ? "validation loss" : "best validation loss", judged == C_val_loss ? "best validation loss" : "at the end");
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        printf("| %s | %s | %s | %s", entry_name(group, e), entry_text(e, C_merges_per_forward), entry_text(e, C_allreduces_per_update),
               entry_text(e, C_mib_per_update));
        sample_print(e->loss, "%.4f");
        printf(" | %d", e->n);
        sample_print((Sample){.n = 1, .mean = judged == C_val_loss ? e->best.mean : entry_sample(e, C_val_loss).mean}, "%.4f");
        int compared = group->baseline && e != group->baseline;
        sample_print(compared ? e->difference : (Sample){}, "%+.4f");
        printf(" | %s", compared && e->difference.n > 1 ? p_text(e->two_sided) : "–");
        if (group->baseline && e->difference.n) printf(" | %+.2f%%", percent_of(e, group->baseline));
        else printf(" | –");
        printf(" | %.1f |\n", e->ms);
    }
    printf("\n");
}

static void verdict_print(const Group *group, const Entry *e) {
    printf("- **%s**, %s per forward pass instead of %s: ", entry_name(group, e), entry_text(e, C_merges_per_forward),
           entry_text(group->baseline, C_merges_per_forward));
    if (e->verdict == NO_VERDICT) {
        if (e->difference.n) printf("%+.4f to t; one seed: no verdict.\n", e->difference.mean);
        else printf("no seed in common with t: no verdict.\n");
        return;
    }
    printf("%.4f %s than t (two-sided p %s%s); ", fabs(e->difference.mean), e->difference.mean < 0 ? "lower" : "higher",
           p_equals(e->two_sided), p_text(e->two_sided));
    if (e->verdict == HOLDS) printf("**holds**: no worse than t by more than %g (p %s%s).\n", margin, p_equals(e->p_within), p_text(e->p_within));
    if (e->verdict == FAILS) printf("**fails**: worse than t by more than %g (p %s%s).\n", margin, p_equals(e->p_beyond), p_text(e->p_beyond));
    if (e->verdict == OPEN) {
        printf("**open**: neither shown to be within %g of t (p %s%s) nor to be beyond it, from %d seeds.\n", margin, p_equals(e->p_within),
               p_text(e->p_within), e->difference.n);
    }
}

// Is the loss within 2% of t's; what is the smallest count of all-reduces that holds.
static void answers_print(const Group *group) {
    const Entry *t = group->baseline, *worst = NULL, *fewest = NULL, *fewest_within = NULL;
    int judged_all = 1;
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (e == t || !e->difference.n) continue;
        if (!worst || e->loss.mean > worst->loss.mean) worst = e;
        if (e->verdict == NO_VERDICT) judged_all = 0;
        double merges = entry_number(e, C_merges_per_forward);
        if (e->verdict == HOLDS && (!fewest || merges < entry_number(fewest, C_merges_per_forward))) fewest = e;
        if (percent_of(e, t) > tolerated) continue;
        if (!fewest_within || merges < entry_number(fewest_within, C_merges_per_forward)) fewest_within = e;
    }
    if (!worst) return;
    printf("Is the loss within %g%% of the baseline? ", tolerated);
    if (percent_of(worst, t) <= tolerated) {
        printf("Yes, that of every pattern: the highest is %s with %+.2f%%.\n", entry_name(group, worst), percent_of(worst, t));
    } else {
        const char *comma = "Not of ";
        for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (e == t || !e->difference.n || percent_of(e, t) <= tolerated) continue;
            printf("%s%s (%+.2f%%)", comma, entry_name(group, e), percent_of(e, t));
            comma = ", ";
        }
        if (fewest_within) {
            printf("; the fewest all-reduces within it has %s with %s", entry_name(group, fewest_within),
                   entry_text(fewest_within, C_merges_per_forward));
        }
        printf(".\n");
    }
    printf("What is the smallest count that holds, by the rule above? ");
    if (fewest) {
        printf("%s per forward pass, with %s (t: %s).\n\n", entry_text(fewest, C_merges_per_forward), entry_name(group, fewest),
               entry_text(t, C_merges_per_forward));
    } else {
        printf("%s\n\n", judged_all ? "None is shown to hold." : "Not answered: a verdict needs two seeds or more.");
    }
}

// Each different value of a column among a group's runs.
static void values_print(const Group *group, const char *label, int column) {
    const Run *seen[16];
    int n = 0;
    printf("- %s:", label);
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (int i = 0; i < e->n; i++) {
            int j = 0;
            while (j < n && strcmp(seen[j]->text[column], e->runs[i]->text[column])) j++;
            if (j < n || n == 16) continue;
            seen[n++] = e->runs[i];
            printf("%s %s", n > 1 ? ";" : "", e->runs[i]->text[column]);
        }
    }
    printf("%s\n", n == 16 ? "; ..." : "");
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
    const Run *run = group->entries[0].runs[0];
    int has_options = strcmp(run->text[C_options], "-") != 0;
    printf("## %s, R %s%s%s\n\n", run->text[C_experiment], run->text[C_R], has_options ? ", " : "", has_options ? run->text[C_options] : "");
    printf("%s updates; losses in nats per token.\n\n", run->text[C_updates]);
    table_print(group);
    if (!group->baseline) {
        printf("No run of t with these options%s.\n\n", has_options ? "; see \"What options change\"" : "");
    } else {
        for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (e != group->baseline) verdict_print(group, e);
        }
        printf("\n");
        answers_print(group);
    }
    values_print(group, "text", C_text);
    values_print(group, "machine", C_machine);
    values_print(group, "threads per run", C_threads);
    values_print(group, "runs at a time (ms compare where this is 1 and the machine was quiet)", C_jobs);
    values_print(group, "commit", C_commit);
    values_print(group, "trainer's sha256", C_program);
    dates_print(group);
    printf("\n");
}

// The runs with these options of the experiment, R and updates of `like`: of its pattern and, where that has runs of p to merge,
// its rule; or of t. One per seed.
static Entry entry_find(const Table *table, const Run *like, const char *options, int plain) {
    Entry e = {};
    int has_rule = strchr(like->text[C_pattern], 'p') != NULL;
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        int known = !run_is_ok(run) || !same(run, like, (const int[]){C_experiment, C_R, C_updates}, 3) || strcmp(run->text[C_options], options);
        known |= plain ? !is_plain(run) : !same(run, like, (const int[]){C_pattern, C_rule}, 1 + has_rule);
        for (int i = 0; i < e.n; i++) known |= e.runs[i]->number[C_seed] == run->number[C_seed];
        if (!known && e.n < SEEDS_MAX) e.runs[e.n++] = run;
    }
    if (e.n) e.loss = entry_sample(&e, judged);
    return e;
}

static void difference_print(Entry *e, const Entry *to) {
    entry_judge(e, to);
    sample_print(e->difference, "%+.4f");
    printf(" | %s", e->difference.n > 1 ? p_text(e->two_sided) : "–");
}

// What options change: each pattern with them beside itself, and beside t, without.
static void options_print(const Table *table) {
    int head = 0;
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        const char *options = run->text[C_options];
        if (!run_is_ok(run) || !strcmp(options, "-")) continue;
        Entry with = entry_find(table, run, options, 0), without = entry_find(table, run, "-", 0), t = entry_find(table, run, "-", 1);
        if (with.runs[0] != run || !without.n) continue; // printed before, or nothing to compare with
        if (!head++) {
            printf("## What options change\n\nDifferences are paired by seed, p two-sided.\n\n"
                   "| setting | loss, mean ± standard error | n | without | difference | p | to t without | p |\n|---|---|---|---|---|---|---|---|\n");
        }
        printf("| %s %s R %s %s %s", run->text[C_experiment], run->text[C_pattern], run->text[C_R], run->text[C_rule], options);
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
        if (n != 8) fail("%s:%d: %d columns, expected 8: experiment pattern R rule options loss within source", path, line, n);
        double known = number_read(path, line, "loss", f[5]), within = number_read(path, line, "within", f[6]), x[SEEDS_MAX];
        int found = 0;
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            const char *const *r = run->text;
            if (run_is_ok(run) && !strcmp(r[C_experiment], f[0]) && !strcmp(r[C_pattern], f[1]) && !strcmp(r[C_R], f[2]) &&
                !strcmp(r[C_rule], f[3]) && !strcmp(r[C_options], f[4]) && found < SEEDS_MAX) x[found++] = run->number[C_val_loss];
        }
        if (!head++) {
            printf("## Against what others found\n\nLosses after the last update, whatever this page judges.\n\n"
                   "| setting | theirs | ours, mean ± standard error | n | difference | within | source |\n|---|---|---|---|---|---|---|\n");
        }
        Sample s = sample_of(x, found);
        printf("| %s %s R %s %s %s | %.3f", f[0], f[1], f[2], f[3], strcmp(f[4], "-") ? f[4] : "", known);
        sample_print(s, "%.4f");
        printf(" | %d", found);
        if (found) printf(" | %+.4f | %s %g", s.mean - known, fabs(s.mean - known) <= within ? "yes," : "**no,**", within);
        else printf(" | – | not run");
        printf(" | %s |\n", f[7]);
    }
    printf(head ? "\n" : "");
    free(text);
    fclose(file);
}

static void page_print(const Table *table, const char *known) {
    static Group group;
    group.entries = ALLOC(Entry, (size_t)table->count + 1, "patterns");
    printf("# Loss against all-reduces\n\nMade by dev/runs/report from `%s`: %d runs, of which %d ended well.\n\n", table->path, table->count,
           table->count - table->not_ok);
    printf("**The rule.** Judged is the %s validation loss. A pattern's differences to t are taken at equal seeds. It **holds** when a one-sided\n"
           "paired t-test shows the mean difference to be below %g at p < %g (no worse than t by more than %g), it **fails** when the test shows\n"
           "it to be above %g, and is **open** otherwise. One seed gives no verdict. The two-sided p is that of no difference at all. No p-value is\n"
           "corrected for the number of patterns, and seeds vary weights and batches, not the text.\n\n",
           judged == C_val_loss ? "last" : "best", margin, level, margin, margin);
    for (int i = 0; i < table->count; i++) {
        int before = 0;
        if (!run_is_ok(&table->runs[i])) continue;
        for (int j = 0; j < i; j++) before |= run_is_ok(&table->runs[j]) && same_group(&table->runs[i], &table->runs[j]);
        if (before) continue;
        group_gather(&group, table, &table->runs[i]);
        group_print(&group);
    }
    options_print(table);
    if (known) known_print(table, known);
    if (table->not_ok) printf("## Runs that did not end well\n\nThey count nowhere above.\n\n");
    for (const Run *run = table->runs; run < table->runs + table->count; run++) {
        if (!run_is_ok(run)) printf("- %s: %s\n", run->text[C_run], run->text[C_status]);
    }
    free(group.entries);
}

int main(int argc, char **argv) {
    static Table table;
    int a = 1;
    if (argc == 4 && !strcmp(argv[1], "-t")) {
        printf("%.10g\n", student_two_sided(number_read("-t", 1, "T", argv[2]), number_read("-t", 1, "degrees of freedom", argv[3])));
        return 0;
    }
    for (; a < argc && argv[a][0] == '-'; a++) {
        if (!strcmp(argv[a], "-b")) judged = C_best_val_loss;
        else if (!strcmp(argv[a], "-m") && a + 1 < argc) margin = number_read("-m", 1, "MARGIN", argv[++a]);
        else fail("%s: expected -b or -m MARGIN", argv[a]);
    }
    if (argc - a < 1 || argc - a > 2) fail("expected: %s [-b] [-m MARGIN] RUNS.TSV [KNOWN.TSV]", argv[0]);
    table_read(&table, argv[a], 0);
    page_print(&table, a + 1 < argc ? argv[a + 1] : NULL);
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
    return 0;
}
