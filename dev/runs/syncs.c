/*
Which all-reduces can a trained model lose? Its loss under other patterns than its own, without any
more training ("zero-shot").

  make dev/runs/syncs
  dev/runs/syncs out/t/model_00002000.bin -tp 2 -o out/t/syncs_R2.tsv
  dev/runs/syncs_plot.sh out/t/syncs_R2.tsv        out/t/syncs_R2.svg: loss against all-reduces
  dev/runs/syncs --help                            every option

One process runs all R ranks. Every loss is over the same tokens: the first -n of -j. A difference
is to the loss of the model as it is, the mean over sequences, with its standard error. All patterns
are tried on the model's weights, whatever pattern it was trained under. Rows of the table:

  kind     item     pattern and its loss
  base     -        the model as it is
  s        5        block 5 alone as s, all others t
  pp       5        blocks 5 and 6 as one run of p, all others t
  regular  sppp     a pattern by its name: t, s, sppp, p, pp. and the like
  try      5a       of the greedy search: the merge after attention (a) or MLP (m) of block 5 is
                    left out too
  greedy   5a       the best of these, with which it goes on
  random   0        of draw 0: a merge that is left out at random, from t to p

Greedy and random search begin with t and leave out one merge at a time. That after a block's
attention makes s of t. That after a block can go when this block and the next have none after
attention: it joins runs of p. The last merge stays. How many all-reduces a pattern has is counted
as it runs.

A block's tier is that of SPD (arXiv 2502.20727): insensitive (ISB), sensitive (SB), extremely
sensitive (ESB). The paper drops blocks from the last to the first and takes differences of
perplexity from one to the next; here each block is dropped alone, and -sb and -esb bound the
difference of loss.

A table that is there already is gone on with: rows that it has are not computed again. It has to be
of the same model, text and settings, which stand at its top.
*/
#define NO_MAIN
#include "../../train_gpt2.c"
#include <sys/file.h>

// ----------------------------------------------------------------------------
// settings

typedef struct {
    const char *model;
    OPTION_TEXT text, out;
    OPTION_COUNT tp, tokens, length, batch, draws, seed;
    OPTION_REAL sensitive, extremely;
    OPTION_CHOICE rule;
} Settings;

static const OptionSpec setting_specs[] = {
#define X(flag, field, kind, ...) {flag, offsetof(Settings, field), KIND_##kind, __VA_ARGS__}
    X("-j", text, TEXT, DEFAULT_VAL, 0, 0, "", 0, "tokens that losses are reported on"),
    X("-tp", tp, COUNT, "2", 2, 4096, "", 0, "R, the tensor ranks"),
    X("-pm", rule, CHOICE, "sum", 0, 0, RULE_NAMES, 0, "what a run of p blocks is merged to"),
    X("-n", tokens, COUNT, "16384", 2, 1 << 30, "", 0, "tokens of -j, from its start"),
    X("-t", length, COUNT, "0", 0, 1 << 20, "", 0, "tokens per sequence; 0 = the model's maxT"),
    X("-b", batch, COUNT, "8", 1, 65536, "", 0, "sequences per forward pass"),
    X("-o", out, TEXT, "", 0, 0, "", 0, "table of all losses, tab separated; empty = none"),
    X("-sb", sensitive, REAL, "0.01", -100, 100, "", 0, "a block that costs more is sensitive"),
    X("-esb", extremely, REAL, "0.05", -100, 100, "", 0, "and extremely sensitive"),
    X("-draws", draws, COUNT, "5", 0, 1000, "", 0, "random searches"),
    X("-rs", seed, COUNT, "1337", 0, INT_MAX, "", 0, "seed of what is random"),
#undef X
};
enum { SETTING_COUNT = sizeof setting_specs / sizeof setting_specs[0] };

static void setting_set(Settings *o, const OptionSpec *spec, const char *text) {
    option_set((Options *)o, spec, text); // which writes where spec->offset says, and nowhere else
}

static void settings_help(void) {
    printf("usage: dev/runs/syncs MODEL.bin [option value]...\n\n");
    for (int i = 0; i < SETTING_COUNT; i++) option_help(&setting_specs[i]);
    stdout_flush();
    exit(EXIT_SUCCESS);
}

// Also notes in `asked` what a model may contradict.
static void settings_parse(Settings *o, Options *asked, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    memset(asked, 0, sizeof *asked);
    for (int i = 0; i < SETTING_COUNT; i++) {
        setting_set(o, &setting_specs[i], setting_specs[i].initial);
    }
    for (int a = 1; a < argc; a++) {
        if (!strcmp(argv[a], "--help") || !strcmp(argv[a], "-h")) settings_help();
    }
    for (int a = 1; a < argc; a++) {
        int i = 0;
        if (argv[a][0] != '-') {
            if (o->model) fail("'%s': one model at a time, and that is %s", argv[a], o->model);
            o->model = argv[a];
            continue;
        }
        while (i < SETTING_COUNT && strcmp(argv[a], setting_specs[i].flag)) i++;
        if (i == SETTING_COUNT) fail("'%s' is not an option; --help lists them", argv[a]);
        const OptionSpec *spec = &setting_specs[i];
        if (a + 1 == argc) fail("%s: a value is missing (%s)", spec->flag, spec->meaning);
        a++;
        setting_set(o, spec, argv[a]);
        if (!strcmp(spec->flag, "-tp")) asked->given[O_tp] = 1;
        if (!strcmp(spec->flag, "-pm")) asked->given[O_rule] = 1;
    }
    if (!o->model) fail("no model: expected dev/runs/syncs MODEL.bin; --help lists options");
    if (o->extremely < o->sensitive) {
        fail("-esb %g: expected at least -sb %g", o->extremely, o->sensitive);
    }
    asked->tp = o->tp;
    asked->rule = o->rule;
}

// ----------------------------------------------------------------------------
// text

// Sequences of T tokens that follow one another, from the start of a text.
typedef struct {
    Tokens tokens;
    int sequences;
} Passage;

static void passage_open(Passage *p, const char *path, const GPT2Config *config, int64_t n, int T) {
    tokens_open(&p->tokens, path);
    run_check_vocabulary("-j", path, &p->tokens, config);
    p->sequences = (int)(n / T);
    if (p->sequences < 2)
        fail("-n %lld: expected at least two sequences of %d tokens (-t)", (long long)n, T);
    size_t needed = (size_t)p->sequences * (size_t)T + 1;
    if (p->tokens.count >= needed) return;
    fail("-j %s: %zu tokens, but %zu are needed (%d sequences of %d and one more); lower -n", path,
         p->tokens.count, needed, p->sequences, T);
}

// ----------------------------------------------------------------------------
// patterns as flags: merges[k] says whether one stands after sub-block k

// The longest pattern has a . after every second letter.
enum { BLOCKS_MAX = PATTERN_MAX * 2 / 3 };
typedef struct { char at[2 * BLOCKS_MAX]; } Merges;

static Merges merges_all(void) {
    Merges m;
    memset(m.at, 1, sizeof m.at);
    return m;
}

static int merges_count(const Merges *m, int L) {
    int n = 0;
    for (int k = 0; k < 2 * L; k++) n += m->at[k];
    return n;
}

// Whether the merge after sub-block k can be left out: what is left is a pattern again.
static int merge_can_go(const Merges *m, int k, int L) {
    if (!m->at[k] || k == 2 * L - 1) return 0;
    return !is_mlp(k) || (!m->at[k - 1] && !m->at[k + 1]);
}

// A string for each plan: letters for all blocks, with a . only between two runs of p.
static void pattern_write(char out[PATTERN_MAX + 1], const char *letters, const char *closes,
                          int L) {
    int n = 0;
    for (int block = 0; block < L; block++) {
        if (n > PATTERN_MAX - 2) fail("-p: a pattern of more than %d characters", PATTERN_MAX);
        out[n++] = letters[block];
        if (block + 1 == L || letters[block] != 'p' || letters[block + 1] != 'p') continue;
        if (closes[block]) out[n++] = '.';
    }
    out[n] = 0;
}

static void merges_write(char out[PATTERN_MAX + 1], const Merges *m, int L) {
    char letters[L_MAX + 1], closes[L_MAX];
    for (int block = 0; block < L; block++) {
        int k = 2 * block, joined = block > 0 && !m->at[k - 1];
        closes[block] = m->at[k + 1];
        letters[block] = 's';
        if (m->at[k]) letters[block] = 't';
        else if (joined || !closes[block]) letters[block] = 'p';
    }
    pattern_write(out, letters, closes, L);
}

// The same for a pattern of any form. A run of one p is s, but for the rule that multiplies the
// stream.
static void pattern_unify(char out[PATTERN_MAX + 1], const char *pattern, int L, int rule) {
    char letters[L_MAX + 1], closes[L_MAX];
    pattern_lay(letters, closes, pattern, L, "-p");
    for (int block = 0; block < L && rule != RULE_STREAMS; block++) {
        int begins = block == 0 || closes[block - 1];
        if (letters[block] == 'p' && begins && closes[block]) letters[block] = 's';
    }
    pattern_write(out, letters, closes, L);
}

// Whether a pattern's letters fill L blocks.
static int pattern_fits(const char *pattern, int L) {
    int letters = 0;
    for (const char *c = pattern; *c; c++) letters += *c != '.';
    return L % letters == 0;
}

// ----------------------------------------------------------------------------
// the table: a file of rows, to which each is added when it is known

typedef struct {
    char pattern[PATTERN_MAX + 1];
    int allreduces;                 // executed by a forward pass
    double loss, difference, error; // mean over sequences, that of the difference to the base
} Score;

typedef struct {
    const char *path;
    int file;    // -1: none
    char *text;  // rows that were there
    size_t at;   // how far they have been met again
} Table;

enum { ROW_BYTES = 2 * PATTERN_MAX + 256, HEAD_BYTES = 1024 };
#define COLUMN_NAMES "kind\titem\tpattern\tallreduces\tloss\tdifference\terror\ttier\n"

static void table_write(Table *t, const char *text) {
    size_t n = strlen(text);
    if (write(t->file, text, n) == (ssize_t)n) return;
    fail("%s: cannot write: %s; what is there is gone on with later", t->path, strerror(errno));
}

static int line_length(const char *text) { return (int)strcspn(text, "\n"); }

// The lines at the top have to be the same.
static void head_check(const Table *t, const char *found, const char *head) {
    size_t i = 0;
    while (found[i] && head[i] && found[i] == head[i]) i++;
    if (!found[i] || !head[i]) return;
    while (i > 0 && head[i - 1] != '\n') i--;
    fail("%s: '%.*s', expected '%.*s'; another -o keeps both", t->path, line_length(found + i),
         found + i, line_length(head + i), head + i);
}

// Opens or begins it. A last line that was not written in full is removed.
static void table_open(Table *t, const char *path, const char *head) {
    struct stat info;
    t->path = path;
    t->file = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (t->file < 0 || fstat(t->file, &info)) fail("-o %s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) fail("-o %s: not a regular file", path);
    if (flock(t->file, LOCK_EX | LOCK_NB)) fail("-o %s: another process writes it", path);
    size_t size = (size_t)info.st_size, top = strlen(head);
    char *text = ALLOC(char, size + 1, "table");
    if (pread(t->file, text, size, 0) != (ssize_t)size) fail("-o %s: %s", path, strerror(errno));
    head_check(t, text, head);
    char *end = strrchr(text, '\n');
    size_t whole = end && size >= top ? (size_t)(end + 1 - text) : 0;
    if (ftruncate(t->file, (off_t)whole)) fail("-o %s: %s", path, strerror(errno));
    text[whole] = 0;
    if (!whole) table_write(t, head);
    t->text = ALLOC(char, size + 1, "table");
    if (whole) memcpy(t->text, text + top, whole - top + 1);
    free(text);
}

static void table_close(Table *t) {
    if (t->file >= 0 && close(t->file)) fail("%s: %s", t->path, strerror(errno));
    free(t->text);
}

// Adds a row, or meets it again where it stands.
static void table_put(Table *t, const char *row) {
    const char *there = t->text ? t->text + t->at : "";
    if (t->file < 0) return;
    if (!there[0]) {
        table_write(t, row);
        return;
    }
    if (strncmp(there, row, strlen(row))) {
        fail("%s: '%.*s', but here it is '%.*s'; another -o keeps both", t->path,
             line_length(there), there, line_length(row), row);
    }
    t->at += strlen(row);
}

// ----------------------------------------------------------------------------
// losses

typedef struct {
    Settings o;
    GPT2Config config; // R and rule that patterns are tried with; the model's own pattern
    GPT2 model;
    uint64_t hash;     // of its file
    int L, T;
    Passage text;
    int32_t *tokens;   // (B*T+1)
    double *base, *now; // (sequences) losses of the model as it is, and under another pattern
    Table table;
    Score *scores;     // of all patterns so far
    int score_count, score_room;
    int computed, asked, planned; // for the time left
    double seconds, said;
    int on_terminal;
} Syncs;

// Mean loss of each sequence under the model's pattern: losses (sequences). Returns their mean.
static double passage_losses(Syncs *s, double *losses) {
    const Passage *p = &s->text;
    GPT2 *m = &s->model;
    double sum = 0;
    int T = s->T;
    for (int done = 0, n; done < p->sequences; done += n) {
        n = int_min((int)s->o.batch, p->sequences - done);
        size_t start = (size_t)done * (size_t)T;
        tokens_copy(&p->tokens, start, (size_t)n * (size_t)T + 1, s->tokens);
        gpt2_forward(m, s->tokens, s->tokens + 1, n, T);
        for (int i = 0; i < n; i++) {
            double total = 0;
            for (int t = 0; t < T; t++) total += (double)m->losses[(size_t)i * T + t];
            losses[done + i] = total / T;
            sum += total / T;
        }
    }
    return sum / p->sequences;
}

// As a table keeps it: with the numbers of one that was read again, a search goes the same ways.
static double rounded(double x) {
    char text[64];
    snprintf(text, sizeof text, "%.9f", x);
    return strtod(text, NULL);
}

static void progress_clear(Syncs *s) {
    if (s->on_terminal) fprintf(stderr, "\r\033[K");
}

static void progress_say(Syncs *s) {
    double now = seconds_now(), each = s->seconds / s->computed;
    int left = (int)(each * (s->planned > s->asked ? s->planned - s->asked : 0));
    if (now - s->said < (s->on_terminal ? 0.2 : 30)) return;
    s->said = now;
    progress_clear(s);
    fprintf(stderr, "%d of about %d losses, %.1f s each, %d:%02d:%02d left%s", s->asked, s->planned,
            each, left / 3600, left / 60 % 60, left % 60, s->on_terminal ? "" : "\n");
}

static Score *score_add(Syncs *s, const Score *score) {
    if (s->score_count == s->score_room) {
        s->score_room = s->score_room ? 2 * s->score_room : 256;
        s->scores = realloc(s->scores, (size_t)s->score_room * sizeof *s->scores);
        if (!s->scores) fail("out of memory for %d losses", s->score_room);
    }
    s->scores[s->score_count] = *score;
    return &s->scores[s->score_count++];
}

static void pattern_measure(Syncs *s, const char *pattern, double *losses, Score *score) {
    GPT2 *m = &s->model;
    int n = s->text.sequences, passes = (n + (int)s->o.batch - 1) / (int)s->o.batch;
    double start = seconds_now(), sum = 0, squares = 0;
    int64_t before = m->traffic[TRAFFIC_FORWARD].count;
    gpt2_take_pattern(m, pattern);
    memset(score, 0, sizeof *score);
    snprintf(score->pattern, sizeof score->pattern, "%s", pattern);
    score->loss = rounded(passage_losses(s, losses));
    if (!isfinite(score->loss)) fail("-p %s: a loss of %g", pattern, score->loss);
    int64_t executed = m->traffic[TRAFFIC_FORWARD].count - before;
    score->allreduces = (int)(executed / passes);
    if (executed != (int64_t)passes * m->plan.merges) {
        fail("-p %s: %lld all-reduces in %d forward passes, expected %d in each", pattern,
             (long long)executed, passes, m->plan.merges);
    }
    for (int i = 0; i < n; i++) sum += losses[i] - s->base[i];
    for (int i = 0; i < n; i++) {
        double d = losses[i] - s->base[i] - sum / n;
        squares += d * d;
    }
    score->difference = rounded(sum / n);
    score->error = rounded(sqrt(squares / (n - 1) / n));
    s->seconds += seconds_now() - start;
    s->computed++;
}

// The score of a pattern, as pattern_write writes it: computed once.
static Score score_of(Syncs *s, const char *pattern) {
    Score score;
    s->asked++;
    for (int i = 0; i < s->score_count; i++) {
        if (!strcmp(s->scores[i].pattern, pattern)) return s->scores[i];
    }
    pattern_measure(s, pattern, s->now, &score);
    progress_say(s);
    return *score_add(s, &score);
}

static Score merges_score(Syncs *s, const Merges *merges) {
    char pattern[PATTERN_MAX + 1];
    merges_write(pattern, merges, s->L);
    Score score = score_of(s, pattern);
    int expected = merges_count(merges, s->L);
    if (score.allreduces == expected) return score;
    fail("-p %s: %d all-reduces, expected %d", pattern, score.allreduces, expected);
}

static void row_put(Syncs *s, const char *kind, const char *item, const Score *score,
                    const char *tier) {
    char row[ROW_BYTES];
    snprintf(row, sizeof row, "%s\t%s\t%s\t%d\t%.9f\t%.9f\t%.9f\t%s\n", kind, item, score->pattern,
             score->allreduces, score->loss, score->difference, score->error, tier);
    table_put(&s->table, row);
}

// What the table has of earlier runs.
static void scores_read(Syncs *s) {
    char *copy = s->table.text ? strdup(s->table.text) : NULL, *rest = copy, *line;
    while ((line = strsep(&rest, "\n")) && *line) {
        Score score;
        char *whole = strdup(line), tier[8];
        int used = 0;
        int found = sscanf(line, "%*15[^\t]\t%*255[^\t]\t%240[tspld.]\t%d\t%lf\t%lf\t%lf\t%7s%n",
                           score.pattern, &score.allreduces, &score.loss, &score.difference,
                           &score.error, tier, &used);
        if (found != 6 || whole[used]) fail("%s: a row that cannot be read: %s", s->o.out, whole);
        score_add(s, &score);
        free(whole);
    }
    free(copy);
}

// ----------------------------------------------------------------------------
// sensitivity of blocks, regular patterns, greedy and random search

static void item_of_merge(char out[16], int k) {
    snprintf(out, 16, "%d%c", layer_of(k), is_mlp(k) ? 'm' : 'a');
}

// The columns that all tables on the terminal have in common.
static void score_print(Syncs *s, const Score *score, const char *pattern) {
    progress_clear(s);
    printf("%4d  %8.4f  %+8.4f  %7.4f   %s\n", score->allreduces, score->loss, score->difference,
           score->error, pattern);
    fflush(stdout);
}

static const char *const columns_title = "sums      loss   to base    error";

static void base_measure(Syncs *s) {
    char pattern[PATTERN_MAX + 1];
    Score score;
    pattern_unify(pattern, s->config.pattern, s->L, s->config.rule);
    pattern_measure(s, pattern, s->base, &score);
    score.difference = score.error = 0;
    s->asked++;
    row_put(s, "base", "-", &score, "-");
    score_add(s, &score);
    printf("the model as it is\n      %s\n      ", columns_title);
    score_print(s, &score, pattern);
}

static const char *tier_of(const Settings *o, double difference) {
    if (difference > o->extremely) return "ESB";
    return difference > o->sensitive ? "SB" : "ISB";
}

static void blocks_measure(Syncs *s) {
    static const char *const tiers[] = {"ISB", "SB", "ESB"};
    char blocks[3][BLOCKS_MAX * 5] = {""};
    printf("\na block alone as s, all others t\nblock %s   tier\n", columns_title);
    for (int block = 0; block < s->L; block++) {
        Merges merges = merges_all();
        char item[16];
        merges.at[2 * block] = 0;
        Score score = merges_score(s, &merges);
        const char *tier = tier_of(&s->o, score.difference);
        snprintf(item, sizeof item, "%d", block);
        row_put(s, "s", item, &score, tier);
        progress_clear(s);
        printf("%5s ", item);
        score_print(s, &score, tier);
        for (int i = 0; i < 3; i++) {
            size_t used = strlen(blocks[i]);
            if (strcmp(tier, tiers[i])) continue;
            snprintf(blocks[i] + used, sizeof blocks[i] - used, " %d", block);
        }
    }
    printf("insensitive (ISB), to base up to %g (-sb):%s\n", s->o.sensitive, blocks[0]);
    printf("sensitive (SB), up to %g (-esb):%s\n", s->o.extremely, blocks[1]);
    printf("extremely sensitive (ESB), above:%s\n", blocks[2]);
}

static void neighbours_measure(Syncs *s) {
    if (s->L < 2) return;
    printf("\ntwo neighbours as a run of p, all others t\nfirst %s\n", columns_title);
    for (int block = 0; block + 1 < s->L; block++) {
        Merges merges = merges_all();
        char item[16];
        for (int k = 2 * block; k < 2 * block + 3; k++) merges.at[k] = 0;
        Score score = merges_score(s, &merges);
        snprintf(item, sizeof item, "%d", block);
        row_put(s, "pp", item, &score, "-");
        progress_clear(s);
        printf("%5s ", item);
        score_print(s, &score, "");
    }
}

static const char *const regular[] = {"t", "s", "sppp", "p", "pp.", "ppp.", "pppp.", "pppppp."};
enum { REGULAR_COUNT = sizeof regular / sizeof regular[0] };

static void regular_measure(Syncs *s) {
    printf("\nregular patterns\n      %s   pattern\n", columns_title);
    for (int i = 0; i < REGULAR_COUNT; i++) {
        char pattern[PATTERN_MAX + 1];
        int again = 0; // over 4 blocks pppp. is p
        if (!pattern_fits(regular[i], s->L)) continue;
        pattern_unify(pattern, regular[i], s->L, s->config.rule);
        for (int j = 0; j < i && !again; j++) {
            char other[PATTERN_MAX + 1];
            if (!pattern_fits(regular[j], s->L)) continue;
            pattern_unify(other, regular[j], s->L, s->config.rule);
            again = !strcmp(other, pattern);
        }
        if (again) continue;
        Score score = score_of(s, pattern);
        row_put(s, "regular", regular[i], &score, "-");
        progress_clear(s);
        printf("      ");
        score_print(s, &score, regular[i]);
    }
}

// About as many losses as the greedy search asks for: every merge after attention that is left, and
// then every one after a block.
static int greedy_plan(int L) { return L * L + 1; }

static void greedy_search(Syncs *s) {
    Merges merges = merges_all();
    int planned = s->asked + greedy_plan(s->L);
    Score best = merges_score(s, &merges);
    row_put(s, "greedy", "-", &best, "-");
    printf("\ngreedy: the merge that costs least is left out, after attention (a) or MLP (m) of a "
           "block\n      %s   pattern\n      ", columns_title);
    score_print(s, &best, best.pattern);
    for (int left = 2 * s->L; left > 1; left--) {
        char item[16];
        int chosen = 0, tried = 0;
        for (int k = 0; k < 2 * s->L; k++) {
            if (!merge_can_go(&merges, k, s->L)) continue;
            merges.at[k] = 0;
            Score score = merges_score(s, &merges);
            merges.at[k] = 1;
            item_of_merge(item, k);
            row_put(s, "try", item, &score, "-");
            if (tried++ && score.loss >= best.loss) continue;
            best = score;
            chosen = k;
        }
        merges.at[chosen] = 0;
        item_of_merge(item, chosen);
        row_put(s, "greedy", item, &best, "-");
        progress_clear(s);
        printf("%5s ", item);
        score_print(s, &best, best.pattern);
    }
    s->asked = planned;
}

static void random_search(Syncs *s) {
    int L = s->L, draws = (int)s->o.draws;
    double sum[2 * BLOCKS_MAX] = {0}, low[2 * BLOCKS_MAX], high[2 * BLOCKS_MAX] = {0};
    for (int draw = 0; draw < draws; draw++) {
        Merges merges = merges_all();
        for (int left = 2 * L - 1; left > 0; left--) {
            int can_go[2 * BLOCKS_MAX], n = 0;
            char item[16];
            for (int k = 0; k < 2 * L; k++) {
                if (merge_can_go(&merges, k, L)) can_go[n++] = k;
            }
            uint64_t bits = random_bits((uint64_t)s->o.seed, RANDOM_ORDER, (uint64_t)draw,
                                        (uint64_t)left);
            merges.at[can_go[random_below(bits, (uint64_t)n)]] = 0;
            Score score = merges_score(s, &merges);
            snprintf(item, sizeof item, "%d", draw);
            row_put(s, "random", item, &score, "-");
            sum[left] += score.loss;
            low[left] = draw == 0 ? score.loss : fmin(low[left], score.loss);
            high[left] = fmax(high[left], score.loss);
        }
    }
    if (!draws) return;
    progress_clear(s);
    printf("\nrandom choice, %d draws\nsums      mean    lowest   highest\n", draws);
    for (int left = 2 * L - 1; left > 0; left--) {
        printf("%4d  %8.4f  %8.4f  %8.4f\n", left, sum[left] / draws, low[left], high[left]);
    }
}

static void syncs_measure(Syncs *s) {
    char head[HEAD_BYTES], name[32];
    const GPT2Config *c = &s->config;
    snprintf(head, sizeof head,
             "# dev/runs/syncs\n# model %016llx %dx%dx%d\n# text %016llx\n# tokens %d x %d\n"
             "# R %d rule %s\n# -sb %g -esb %g\n# -draws %lld -rs %lld\n" COLUMN_NAMES,
             (unsigned long long)s->hash, c->L, c->NH, c->C,
             (unsigned long long)tokens_hash(&s->text.tokens), s->text.sequences, s->T, c->R,
             word_at(RULE_NAMES, c->rule, name), s->o.sensitive, s->o.extremely,
             (long long)s->o.draws, (long long)s->o.seed);
    if (s->o.out[0]) table_open(&s->table, s->o.out, head);
    s->planned = 1 + s->L + s->L - 1 + REGULAR_COUNT + greedy_plan(s->L) +
                 (int)s->o.draws * (2 * s->L - 1);
    base_measure(s);
    scores_read(s);
    blocks_measure(s);
    neighbours_measure(s);
    regular_measure(s);
    greedy_search(s);
    random_search(s);
}

// ----------------------------------------------------------------------------
// main

static void syncs_open(Syncs *s, int argc, char **argv) {
    Options asked;
    File file;
    settings_parse(&s->o, &asked, argc, argv);
    model_open(&file, s->o.model, &s->config);
    file_close(&file);
    GPT2Config *c = &s->config;
    options_take_model(&asked, c, s->o.model);
    c->R = (int)asked.tp;
    c->rule = asked.rule;
    if (c->R < 2) fail("%s: of one tensor rank, which has nobody to merge with", s->o.model);
    if (c->L > BLOCKS_MAX) fail("%s: %d blocks, at most %d", s->o.model, c->L, BLOCKS_MAX);
    s->L = c->L;
    s->T = s->o.length ? (int)s->o.length : c->maxT;
    s->table.file = -1;
    s->on_terminal = isatty(STDERR_FILENO);
    s->said = seconds_now();
    passage_open(&s->text, s->o.text, c, s->o.tokens, s->T);
    if (s->o.batch > s->text.sequences) s->o.batch = s->text.sequences;
    s->base = ALLOC(double, (size_t)s->text.sequences, "losses");
    s->now = ALLOC(double, (size_t)s->text.sequences, "losses");
    s->tokens = ALLOC(int32_t, (size_t)s->o.batch * s->T + 1, "tokens");
    gpt2_create(&s->model, c, mesh_make(1, 0, c->R, c->R), (int)s->o.batch, s->T, FOR_LOSS);
    s->hash = gpt2_load(&s->model, s->o.model);
    printf("%s: %dx%dx%d, R %d; losses over %d x %d tokens of %s\n\n", s->o.model, c->L, c->NH,
           c->C, c->R, s->text.sequences, s->T, s->o.text);
}

static void syncs_close(Syncs *s) {
    progress_clear(s);
    table_close(&s->table);
    tokens_close(&s->text.tokens);
    gpt2_free(&s->model);
    free(s->base);
    free(s->now);
    free(s->tokens);
    free(s->scores);
}

int main(int argc, char **argv) {
    static Syncs s; // all zero
    int world, rank;
    descriptors_open();
    processes_begin(&world, &rank);
    syncs_open(&s, argc, argv);
    syncs_measure(&s);
    syncs_close(&s);
    stdout_flush();
    return 0;
}
