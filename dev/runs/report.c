/*
A Markdown page from the tables of sweeps: what every pattern costs in loss, against t, and whether
that can be told from chance.

  make dev/runs/report
  dev/runs/report out/sweep/runs.tsv >report.md    judges the validation loss after the last update
  dev/runs/report out/a/runs.tsv out/b/runs.tsv    several sweeps as one
  dev/runs/report -b out/sweep/runs.tsv            judges the best one of each run: some overfit
  dev/runs/report -m 0.02 out/sweep/runs.tsv       margin 0.02 instead of 0.01
  dev/runs/report -k dev/runs/known.tsv out/sweep/runs.tsv    compares with what others found
  dev/runs/report -d out/sweep/runs.tsv            the differences to t as a table, for figures
  dev/runs/report -t 4.303 2                       two-sided p-value of Student's t, 2 degrees of
                                                   freedom

A group is what shares experiment, R and options. Within it patterns are compared with t, paired by
seed: two runs of one seed see the same batches and, for equal shapes, start from the same weights.
Patterns of t and l alone are the same function at every R: their runs serve all of them.
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

// How many standard errors the mean lies above a value; without any spread, infinitely many or
// none.
static double sample_distance(Sample s, double from) {
    double above = s.mean - from;
    if (s.error > 0) return above / s.error;
    return above == 0 ? 0 : copysign(INFINITY, above);
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

// Whether the run computes the same function at every R above 1, to rounding: nothing in its
// pattern reads what one rank alone knows.
static int serves_every_R(const Run *run) {
    return run->number[C_R] > 1 && !draws_patterns(run) &&
           !run->text[C_pattern][strspn(run->text[C_pattern], "tl")];
}

// Whether a run at another R is one of b's group for all that.
static int same_but_R(const Run *a, const Run *b) {
    return strcmp(a->text[C_R], b->text[C_R]) && serves_every_R(a) && b->number[C_R] > 1 &&
           same(a, b, (const int[]){C_experiment, C_options, C_updates}, 3);
}

// ----------------------------------------------------------------------------
// entries: the runs of one pattern and merge rule in a group, one per seed

typedef struct {
    const Run *runs[SEEDS_MAX];
    int n;
    Sample loss, best, difference; // the last to t, paired by seed
    double ms;
    double two_sided, p_within, p_beyond; // that it is not 0, is below the margin, is above it
    double p_corrected; // p_within, corrected for the number of patterns
    enum { BASELINE, NO_VERDICT, HOLDS, FAILS, OPEN } verdict;
} Entry;

typedef struct {
    const Run *first; // of its own, in the table
    Entry *entries;
    int count, rules, alone; // entries; whether there are several merge rules; whether all runs
                             // had the machine to themselves
    int verdicts; // entries that have one
    double noise; // of seeds: standard deviation of a loss within its entry, NAN for single seeds
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

// The rule: of the differences d to t at equal seeds, is their mean shown to be below the margin,
// or above it?
static void entry_judge(Entry *e, const Entry *t) {
    double d[SEEDS_MAX] = {0};
    int n = 0;
    for (int i = 0; i < e->n; i++) {
        for (int j = 0; j < t->n; j++) {
            const double *ours = e->runs[i]->number, *theirs = t->runs[j]->number;
            if (ours[C_seed] == theirs[C_seed]) d[n++] = ours[judged] - theirs[judged];
        }
    }
    e->difference = sample_of(d, n);
    e->verdict = NO_VERDICT;
    if (n < 2) return;
    e->two_sided = student_two_sided(sample_distance(e->difference, 0), n - 1);
    e->p_beyond = student_above(sample_distance(e->difference, margin), n - 1);
    e->p_within = student_above(-sample_distance(e->difference, margin), n - 1);
    e->verdict = OPEN;
    if (e->p_within < level) e->verdict = HOLDS;
    else if (e->p_beyond < level) e->verdict = FAILS;
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

static int entry_has_verdict(const Entry *e) {
    return e->verdict != NO_VERDICT && e->verdict != BASELINE;
}

// Holm's step-down correction of p_within for the number of verdicts (Holm 1979): the k-th smallest
// of n times n + 1 - k, none below the one before.
static void group_correct(Group *group) {
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        e->p_corrected = -1;
        group->verdicts += entry_has_verdict(e);
    }
    double before = 0;
    for (int left = group->verdicts; left > 0; left--) {
        Entry *least = NULL;
        for (Entry *e = group->entries; e < group->entries + group->count; e++) {
            if (!entry_has_verdict(e) || e->p_corrected >= 0) continue;
            if (!least || e->p_within < least->p_within) least = e;
        }
        before = fmax(before, fmin(1, left * least->p_within));
        least->p_corrected = before;
    }
}

static void group_gather(Group *group, const Table *table, const Run *first) {
    double squares = 0;
    int freedom = 0;
    *group = (Group){.first = first, .entries = group->entries, .alone = 1};
    for (int other = 0; other < 2; other++) { // R's own runs first
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            if (!run_is_ok(run)) continue;
            if (other ? same_but_R(run, first) : same_group(run, first)) group_add(group, run);
        }
    }
    qsort(group->entries, (size_t)group->count, sizeof *group->entries, compare_entries);
    for (Entry *e = group->entries; e < group->entries + group->count; e++) {
        e->loss = entry_sample(e, judged);
        e->best = entry_sample(e, C_best_val_loss);
        e->ms = entry_median(e, C_ms_per_update);
        for (int i = 0; i < e->n; i++) {
            squares += pow(e->runs[i]->number[judged] - e->loss.mean, 2);
        }
        freedom += e->n - 1;
        // t has no run of p for a rule to merge: its runs serve all rules, those of most seeds
        int more = !group->baseline || e->n > group->baseline->n;
        if (is_plain(e->runs[0]) && more) group->baseline = e;
    }
    group->noise = freedom ? sqrt(squares / freedom) : NAN;
    if (!group->baseline) return;
    for (int i = 0; i < group->count; i++) entry_judge(&group->entries[i], group->baseline);
    group->baseline->verdict = BASELINE;
    group_correct(group);
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
    if (s.n > 1) printf(" ± %.4f", s.error);
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
        printf(" | %s", compared && e->difference.n > 1 ? p_text(e->two_sided) : "–");
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
        say(e->difference.n ? "one seed: no verdict." : "no seed in common with t: no verdict.");
    }
    if (e->verdict == HOLDS) {
        say("**holds**: no worse than t by more than %g (%s", margin, p_said(e->p_within));
        if (group->verdicts > 1) say(", corrected %s", p_said(e->p_corrected));
        say(").");
    }
    if (e->verdict == FAILS) {
        say("**fails**: worse than t by more than %g (%s).", margin, p_said(e->p_beyond));
    }
    if (e->verdict == OPEN) {
        say("**open**: not shown to be within %g of t (%s), nor to be beyond it (%s).", margin,
            p_said(e->p_within), p_said(e->p_beyond));
    }
    say_end();
}

// Is the loss within 2% of t's; what is the smallest count of all-reduces that holds.
static void answers_print(const Group *group) {
    const Entry *t = group->baseline, *worst = NULL, *fewest = NULL, *fewest_within = NULL;
    const Entry *fewest_corrected = NULL;
    int judged_all = 1;
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (e == t || !e->difference.n) continue;
        if (!worst || percent_of(e, t) > percent_of(worst, t)) worst = e;
        if (e->verdict == NO_VERDICT) judged_all = 0;
        double merges = entry_number(e, C_merges_per_forward);
        int fewer = !fewest || merges < entry_number(fewest, C_merges_per_forward);
        if (e->verdict == HOLDS && fewer) fewest = e;
        fewer = !fewest_corrected || merges < entry_number(fewest_corrected, C_merges_per_forward);
        if (e->verdict == HOLDS && e->p_corrected < level && fewer) fewest_corrected = e;
        if (percent_of(e, t) > tolerated) continue;
        fewer = !fewest_within || merges < entry_number(fewest_within, C_merges_per_forward);
        if (fewer) fewest_within = e;
    }
    if (!worst) return;
    say("Is the loss within %g%% of the baseline? ", tolerated);
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
        if (group->verdicts > 1) {
            say(" Corrected for %d patterns: ", group->verdicts);
            if (!fewest_corrected) say("none is shown to.");
            else if (fewest_corrected == fewest) say("the same.");
            else say("%s, with %s.", entry_text(fewest_corrected, C_merges_per_forward),
                     entry_name(group, fewest_corrected));
        }
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
    int n = 0;
    say("- %s:", label);
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        for (int i = 0; i < e->n; i++) {
            int j = 0;
            while (j < n && strcmp(seen[j]->text[column], e->runs[i]->text[column])) j++;
            if (j < n || n == 16) continue;
            seen[n++] = e->runs[i];
            say("%s %s", n > 1 ? ";" : "", e->runs[i]->text[column]);
        }
    }
    if (n == 16) say("; ...");
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
        Entry with = entry_find(table, run, options, 0);
        Entry without = entry_find(table, run, "-", 0);
        Entry t = entry_find(table, run, "-", 1);
        if (with.runs[0] != run || !without.n) continue; // before, or nothing to compare with
        if (!head++) {
            printf("## What options change\n\nDifferences are paired by seed, p two-sided.\n\n"
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
        int found = 0;
        for (const Run *run = table->runs; run < table->runs + table->count; run++) {
            const char *const *r = run->text;
            int is = run_is_ok(run) && found < SEEDS_MAX;
            is = is && !strcmp(r[C_experiment], f[0]) && !strcmp(r[C_pattern], f[1]);
            is = is && !strcmp(r[C_R], f[2]) && !strcmp(r[C_rule], f[3]);
            if (is && !strcmp(r[C_options], f[4])) x[found++] = run->number[C_val_loss];
        }
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

// Calls `print` for every group, in the order of the tables.
static void groups_print(const Table *table, void (*print)(const Group *)) {
    static Group group;
    group.entries = ALLOC(Entry, (size_t)table->count + 1, "patterns");
    for (int i = 0; i < table->count; i++) {
        int before = 0;
        if (!run_is_ok(&table->runs[i])) continue;
        for (int j = 0; j < i; j++) {
            before |= run_is_ok(&table->runs[j]) && same_group(&table->runs[i], &table->runs[j]);
        }
        if (before) continue;
        group_gather(&group, table, &table->runs[i]);
        print(&group);
    }
    free(group.entries);
}

// A line for every pattern that shares seeds with t; noise: the standard deviation of a loss over
// seeds, of all patterns of the group; p_within, and as corrected.
static void differences_print(const Group *group) {
    for (const Entry *e = group->entries; e < group->entries + group->count; e++) {
        if (!group->baseline || e == group->baseline || !e->difference.n) continue;
        printf("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.6f", group->first->text[C_experiment],
               group->first->text[C_R], group->first->text[C_options], entry_text(e, C_pattern),
               entry_text(e, C_rule), entry_text(e, C_merges_per_forward),
               entry_text(group->baseline, C_merges_per_forward), e->difference.n,
               e->difference.mean);
        if (e->verdict == NO_VERDICT) printf("\tNaN\t%.6f\tNaN\tNaN\n", group->noise);
        else printf("\t%.6f\t%.6f\t%.6f\t%.6f\n", e->difference.error, group->noise,
                    e->p_within, e->p_corrected);
    }
}

static void page_print(const Table *table, int tables, char **paths, const char *known) {
    printf("# Loss against all-reduces\n\n");
    say("Made by dev/runs/report from");
    for (int i = 0; i < tables; i++) {
        const char *comma = i == 0 ? "" : i < tables - 1 ? "," : " and";
        say("%s `%s`", comma, paths[i]);
    }
    say(": %d runs, of which %d ended well.", table->count, table->count - table->not_ok);
    say_end();
    printf("\n");
    const char *one = judged == C_val_loss ? "last" : "best";
    const char *other = judged == C_val_loss ? "best" : "last";
    say("**The rule.** Judged is the %s validation loss. A pattern's differences to t are taken at "
        "equal seeds. It **holds** when a one-sided paired t-test shows the mean difference to be "
        "below %g at p < %g (no worse than t by more than %g), it **fails** when the test shows it "
        "to be above %g, and is **open** otherwise. One seed gives no verdict. The two-sided p is "
        "that of no difference at all. A p-value is corrected for the number of patterns only "
        "where it says so: by Holm's method, for all that are judged in the same table. Seeds vary "
        "weights and batches, not the text. A pattern of t and l alone is the same function at "
        "every R above 1, so tables of other R count its runs too.",
        one, margin, level, margin, margin);
    say_end();
    printf("\n");
    say("**Columns.** merges: all-reduces per forward pass. all-reduces, MiB: per update. loss: "
        "the %s validation loss in nats per token, mean ± standard error over n seeds. %s: the "
        "mean of their %s ones. to t: the paired difference, with its p, two-sided, and in percent "
        "of t's loss.", one, other, other);
    say(" ms: of an update, the median of its seeds' medians; only where all runs had the machine "
        "to themselves.");
    say_end();
    printf("\n");
    groups_print(table, group_print);
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
        } else if (!strcmp(argv[a], "-d")) {
            only_differences = 1;
        } else {
            fail("%s: expected -b, -d, -k KNOWN.TSV or -m MARGIN", argv[a]);
        }
    }
    if (a == argc) fail("expected: %s [-b] [-d] [-k KNOWN.TSV] [-m MARGIN] RUNS.TSV...", argv[0]);
    for (int i = a; i < argc; i++) table_read(&table, argv[i], 0);
    if (only_differences) {
        printf("experiment\tR\toptions\tpattern\trule\tmerges\tmerges_of_t\tn\tdifference\t"
               "error\tnoise\tp_within\tp_corrected\n");
        groups_print(&table, differences_print);
    } else {
        page_print(&table, argc - a, argv + a, known);
    }
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
    return 0;
}
