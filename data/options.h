// Options: one row of a table gives the parser, --help, the banner and the log's header.
//
// Before a trainer includes this header it may define BUILT_IN, which is what it has beside the CPU
// trainer, and DEFAULT_MODEL with DEFAULT_T.
#ifndef OPTIONS_H
#define OPTIONS_H

#include "../tp_blocks.h"

// ----------------------------------------------------------------------------
// the table

// Marks of an option. What a checkpoint keeps of its run is taken from there by -y 1, when it is
// not given: what the run is and says, while -fold, for one, is the machine's affair.
enum {
    ALWAYS = 0,        // given anew each time
    CUDA = 1, CPU = 8, // a build that is another refuses the option by name
    KEPT = 2,          // by checkpoints; a run that goes on does not depend on it, or checks it
    NUMBERS = 4 | KEPT // the rest of the run depends on it: a change is said
};
#ifndef BUILT_IN
#define BUILT_IN CPU
#endif
#ifndef DEFAULT_MODEL
#define DEFAULT_MODEL "4x4x128"
#define DEFAULT_T "64"
#endif
#define DEFAULT_TRAIN "data/shakespeare_char/train.bin"
#define DEFAULT_VAL "data/shakespeare_char/val.bin"

// Kinds: TEXT any string; COUNT an integer and REAL a number, both BETWEEN two limits;
// CHOICE ONE_OF some words.
#define ANY                0, 0, ""
#define BETWEEN(low, high) low, high, ""
#define ONE_OF(words)      0, 0, words

// clang-format off
#define OPTIONS(GROUP, X)                                                                          \
    /* flag    field           kind    default        values                    marks   meaning */ \
    GROUP("data and model")                                                                        \
    X("-i",    train_data,     TEXT,   DEFAULT_TRAIN, ANY,                      KEPT,              \
      "training tokens: a file or a quoted glob of shards")                                        \
    X("-j",    val_data,       TEXT,   DEFAULT_VAL,   ANY,                      KEPT,              \
      "validation tokens")                                                                         \
    X("-e",    model,          TEXT,   DEFAULT_MODEL, ANY,                      KEPT,              \
      "model: a .bin file, d12 d24 d36 d48, or LxHxC such as 4x4x128")                             \
    X("-o",    out,            TEXT,   "",            ANY,                      ALWAYS,            \
      "output folder for log and checkpoints; empty = none")                                       \
    X("-wi",   weights,        CHOICE, "gpt2",        ONE_OF(WEIGHTS_NAMES),    ALWAYS,            \
      "initial weights of a new model")                                                            \
    X("-rs",   seed,           COUNT,  "1337",        BETWEEN(0, INT_MAX),      NUMBERS,           \
      "seed of initial weights, data order and sampling")                                          \
    GROUP("blocks and ranks")                                                                      \
    X("-p",    pattern,        TEXT,   "t",           ANY,                      KEPT,              \
      "a letter a block, repeated: t Megatron, s SPD, p parallel, l Ladder, d delayed; . ends p")  \
    X("-pe",   patterns,       TEXT,   "",            ANY,                      NUMBERS,           \
      "patterns such as t,sppp,p: each update draws its own from them; empty = -p")                \
    X("-tp",   tp,             COUNT,  "2",           BETWEEN(1, 4096),         NUMBERS,           \
      "R, the tensor ranks one model is cut over")                                                 \
    X("-pm",   rule,           CHOICE, "sum",         ONE_OF(RULE_NAMES),       KEPT,              \
      "what a run of p blocks is merged to")                                                       \
    X("-fold", fold,           COUNT,  "0",           BETWEEN(0, 4096),         ALWAYS,            \
      "tensor ranks run by one process; 0 = choose")                                               \
    X("-vp",   vocab_parallel, COUNT,  "-1",          BETWEEN(-1, 1),           NUMBERS,           \
      "1 = embedding, head and loss cut over the ranks too; -1 = where R > 1")                     \
    X("-wd",   wait_say,       COUNT,  "60",          BETWEEN(0, INT_MAX),      ALWAYS,            \
      "after S seconds in one collective, say what rank 0 waits for; 0 = off")                     \
    X("-wk",   wait_end,       COUNT,  "0",           BETWEEN(0, INT_MAX),      ALWAYS,            \
      "after S seconds in one collective, end the run; 0 = off")                                   \
    GROUP("batch")                                                                                 \
    X("-b",    batch,          COUNT,  "4",           BETWEEN(1, 65536),        NUMBERS,           \
      "sequences per micro-batch and replica")                                                     \
    X("-t",    length,         COUNT,  DEFAULT_T,     BETWEEN(1, 1 << 20),      NUMBERS,           \
      "tokens per sequence")                                                                       \
    X("-d",    update_tokens,  COUNT,  "0",           BETWEEN(0, 1 << 30),      NUMBERS,           \
      "tokens per update; 0 = one micro-batch on every replica")                                   \
    X("-x",    updates,        COUNT,  "-1",          BETWEEN(-1, UPDATES_MAX), NUMBERS,           \
      "updates; -1 = one epoch")                                                                   \
    X("-sh",   shuffle,        COUNT,  "1",           BETWEEN(0, 1),            NUMBERS,           \
      "1 = rows start at random offsets, 0 = rows follow one another")                             \
    X("-a",    overfit,        COUNT,  "0",           BETWEEN(0, 1),            NUMBERS,           \
      "1 = every update sees the first batch")                                                     \
    GROUP("learning rate and AdamW")                                                               \
    X("-l",    rate,           REAL,   "3e-4",        BETWEEN(0, 1e3),          NUMBERS,           \
      "peak learning rate")                                                                        \
    X("-u",    warmup,         COUNT,  "0",           BETWEEN(0, INT_MAX),      NUMBERS,           \
      "warm-up updates")                                                                           \
    X("-q",    rate_last,      REAL,   "1.0",         BETWEEN(0, 1),            NUMBERS,           \
      "fraction of the peak learning rate at the end")                                             \
    X("-k",    schedule,       CHOICE, "cosine",      ONE_OF(SCHEDULE_NAMES),   NUMBERS,           \
      "learning rate schedule")                                                                    \
    X("-c",    decay,          REAL,   "0",           BETWEEN(0, 1e3),          NUMBERS,           \
      "weight decay of matrices and embeddings")                                                   \
    X("-b1",   beta1,          REAL,   "0.9",         BETWEEN(0, 0.9999999),    NUMBERS,           \
      "AdamW beta1")                                                                               \
    X("-b2",   beta2,          REAL,   "0.95",        BETWEEN(0, 0.9999999),    NUMBERS,           \
      "AdamW beta2 (eps is 1e-8)")                                                                 \
    X("-gc",   clip,           REAL,   "1.0",         BETWEEN(0, 1e30),         NUMBERS,           \
      "clip the gradient norm to this; 0 = off")                                                   \
    GROUP("distillation")                                                                          \
    X("-kd",   teacher,        TEXT,   "",            ANY,                      KEPT,              \
      "teacher: a model file whose streams blocks are to match; empty = none")                     \
    X("-kw",   match_weight,   REAL,   "1",           BETWEEN(0, 1e9),          NUMBERS,           \
      "weight, in the loss, of the mean squared difference to the teacher")                        \
    GROUP("validation and samples")                                                                \
    X("-v",    val_every,      COUNT,  "20",          BETWEEN(0, INT_MAX),      KEPT,              \
      "validate every N updates, at 0 and at the end; 0 = never")                                  \
    X("-m",    val_batches,    COUNT,  "20",          BETWEEN(-1, INT_MAX),     KEPT,              \
      "batches of -b sequences per validation; -1 = all")                                          \
    X("-s",    sample_every,   COUNT,  "0",           BETWEEN(0, INT_MAX),      KEPT,              \
      "print a sample every N updates and at the end; 0 = never")                                  \
    X("-g",    sample_tokens,  COUNT,  "64",          BETWEEN(1, 1 << 20),      KEPT,              \
      "tokens per sample")                                                                         \
    X("-gp",   prompt,         TEXT,   "",            ANY,                      KEPT,              \
      "prompt that samples go on from; - = standard input")                                        \
    X("-gt",   temperature,    REAL,   "0.8",         BETWEEN(0, 100),          KEPT,              \
      "sampling temperature; 0 = always the likeliest token")                                      \
    X("-gk",   top_k,          COUNT,  "0",           BETWEEN(0, 65536),        KEPT,              \
      "sample among the K likeliest tokens; 0 = all")                                              \
    X("-sd",   drafts,         COUNT,  "0",           BETWEEN(0, DRAFTS_MAX),   KEPT,              \
      "tokens that samples draft under -sp, for one check of all; 0 = off")                        \
    X("-sp",   draft_pattern,  TEXT,   "p",           ANY,                      KEPT,              \
      "pattern of drafts, of the same weights")                                                    \
    X("-tk",   tokenizer,      TEXT,   "",            ANY,                      KEPT,              \
      "tokenizer file; empty = tokenizer.bin beside the model or -i")                              \
    X("-w",    held,           CHOICE, "fp32",        ONE_OF("fp32 bf16"),      CPU,               \
      "matrices held as, where there are no updates; sums in float")                               \
    GROUP("checkpoints")                                                                           \
    X("-n",    save_every,     COUNT,  "0",           BETWEEN(0, INT_MAX),      KEPT,              \
      "checkpoint every N updates; 0 = only at the end")                                           \
    X("-nk",   save_keep,      COUNT,  "0",           BETWEEN(0, INT_MAX),      KEPT,              \
      "keep the last K checkpoints; 0 = all")                                                      \
    X("-y",    resume,         COUNT,  "0",           BETWEEN(0, 1),            ALWAYS,            \
      "1 = resume from the last checkpoint in -o")                                                 \
    GROUP("emulated network")                                                                      \
    X("-nl",   net_latency,    REAL,   "0",           BETWEEN(0, 1e9),          ALWAYS,            \
      "microseconds per hop of an all-reduce")                                                     \
    X("-nb",   net_gbits,      REAL,   "0",           BETWEEN(0, 1e9),          ALWAYS,            \
      "Gbit/s per link; 0 = off")                                                                  \
    GROUP("CUDA")                                                                                  \
    X("-cm",   comm,           CHOICE, "auto",        ONE_OF("auto nccl mpi"),  CUDA,              \
      "all-reduce between processes")                                                              \
    X("-ms",   matmul_search,  COUNT,  "0",           BETWEEN(0, 64),           CUDA,              \
      "per product, time N algorithms; 0 = trust cuBLASLt")                                        \
    X("-mc",   chunks,         COUNT,  "1",           BETWEEN(1, 16),           CUDA,              \
      "forward merges between processes begin in N chunks of rows")                                \
    X("-r",    recompute,      COUNT,  "0",           BETWEEN(0, 2),            CUDA,              \
      "recompute in backward: 1 = GELU, 2 = LayerNorm too")                                        \
    X("-z",    zero,           COUNT,  "0",           BETWEEN(0, 1),            CUDA,              \
      "1 = ZeRO-1: optimizer state, gradients' sums cut over replicas")
// clang-format on

enum { HELD_FP32, HELD_BF16 }; // -w
enum { DRAFTS_MAX = 8 };       // -sd

typedef const char *OPTION_TEXT;
typedef int64_t OPTION_COUNT;
typedef double OPTION_REAL;
typedef int OPTION_CHOICE;

#define NO_GROUP(name)
#define X(flag, field, ...) O_##field,
enum { OPTIONS(NO_GROUP, X) O_COUNT };
#undef X

typedef struct {
#define X(flag, field, kind, ...) OPTION_##kind field;
    OPTIONS(NO_GROUP, X)
#undef X
    int show_plan;       // --plan was given, the one option without a value
    const char *verify;  // the folder of --verify, or NULL
    char given[O_COUNT]; // 1: on the command line; 0: the default
} Options;

typedef enum { KIND_TEXT, KIND_COUNT, KIND_REAL, KIND_CHOICE } OptionKind;

typedef struct {
    const char *flag;
    size_t offset; // of the field in Options
    OptionKind kind;
    const char *initial;
    double low, high;
    const char *words;
    int marks;
    const char *meaning;
} OptionSpec;

static const OptionSpec option_specs[O_COUNT] = {
#define X(flag, field, kind, ...) {flag, offsetof(Options, field), KIND_##kind, __VA_ARGS__},
    OPTIONS(NO_GROUP, X)
#undef X
};

static int option_is_built_in(const OptionSpec *spec) {
    return !(spec->marks & (CUDA | CPU) & ~BUILT_IN);
}
#undef ANY
#undef BETWEEN
#undef ONE_OF

// ----------------------------------------------------------------------------
// values: from text and back

// Position of `word` among space-separated words, or -1; word number `i` of them, into `out`.
static int word_find(const char *words, const char *word) {
    size_t length = strlen(word);
    for (int i = 0; *words; i++) {
        size_t n = strcspn(words, " ");
        if (n == length && !memcmp(words, word, n)) return i;
        words += n + (words[n] == ' ');
    }
    return -1;
}

static const char *word_at(const char *words, int i, char out[32]) {
    while (i-- > 0) words += strcspn(words, " ") + 1;
    snprintf(out, 32, "%.*s", (int)strcspn(words, " "), words);
    return out;
}

static void option_set(Options *o, const OptionSpec *spec, const char *text) {
    char *field = (char *)o + spec->offset, *end;
    // No spaces, hexadecimals, nan or inf.
    int is_number = text[0] && strspn(text, "-+.0123456789eE") == strlen(text);
    errno = 0;
    if (spec->kind == KIND_TEXT) {
        memcpy(field, &text, sizeof text);
    } else if (spec->kind == KIND_CHOICE) {
        int choice = word_find(spec->words, text);
        if (choice < 0) fail("%s '%s': expected one of: %s", spec->flag, text, spec->words);
        memcpy(field, &choice, sizeof choice);
    } else if (spec->kind == KIND_COUNT) {
        long long value = strtoll(text, &end, 10);
        if (!is_number || *end || errno || value < spec->low || value > spec->high) {
            fail("%s '%s': expected an integer from %.0f to %.0f", spec->flag, text, spec->low,
                 spec->high);
        }
        int64_t stored = value;
        memcpy(field, &stored, sizeof stored);
    } else {
        double value = strtod(text, &end);
        if (!is_number || *end || !(value >= spec->low && value <= spec->high)) {
            fail("%s '%s': expected a number from %g to %.10g", spec->flag, text, spec->low,
                 spec->high);
        }
        memcpy(field, &value, sizeof value);
    }
}

// Option i of one set becomes that of another.
static void option_copy(Options *to, const Options *from, int i) {
    static const size_t sizes[] = {sizeof(OPTION_TEXT), sizeof(OPTION_COUNT), sizeof(OPTION_REAL),
                                   sizeof(OPTION_CHOICE)}; // by OptionKind
    size_t offset = option_specs[i].offset;
    memcpy((char *)to + offset, (const char *)from + offset, sizes[option_specs[i].kind]);
}

// An option's value as it would stand on a command line. `out` serves for what is not a string.
static const char *option_value(const Options *o, int i, char out[32]) {
    const OptionSpec *spec = &option_specs[i];
    const char *field = (const char *)o + spec->offset;
    int64_t count;
    double value;
    int choice;
    const char *text;
    switch (spec->kind) {
    case KIND_TEXT:
        memcpy(&text, field, sizeof text);
        return text;
    case KIND_CHOICE:
        memcpy(&choice, field, sizeof choice);
        return word_at(spec->words, choice, out);
    case KIND_COUNT:
        memcpy(&count, field, sizeof count);
        snprintf(out, 32, "%lld", (long long)count);
        return out;
    default:
        memcpy(&value, field, sizeof value);
        snprintf(out, 32, "%.10g", value);
        if (strtod(out, NULL) != value) snprintf(out, 32, "%.17g", value);
        return out;
    }
}

// ----------------------------------------------------------------------------
// --help and the command line

// "  -l     3e-4     0 to 1000        peak learning rate". The last column begins a line of its own
// when the others are too wide.
static void option_help(const OptionSpec *spec) {
    const int meaning_column = 35;
    int width = printf("  %-6s %-8s", spec->flag, spec->initial[0] ? spec->initial : "''");
    if (spec->kind == KIND_CHOICE) width += printf(" %s", spec->words);
    else if (spec->kind != KIND_TEXT) width += printf(" %.10g to %.10g", spec->low, spec->high);
    if (width >= meaning_column) width = printf("\n") - 1;
    printf("%*s%s%s\n", meaning_column - width, "", spec->meaning,
           !option_is_built_in(spec) ? " [not built in]" : "");
}

static void options_help(const char *program) {
    printf("usage: %s [option value]...\n\n  option default  allowed         meaning\n", program);
#define GROUP(name) printf("\n%s\n", name);
#define X(flag, field, ...) option_help(&option_specs[O_##field]);
    OPTIONS(GROUP, X)
#undef GROUP
#undef X
    printf("\ninstead of a run\n");
    printf("  --plan     prints the steps of the pattern's forward and backward pass\n");
    printf("  --verify FOLDER  says of each checkpoint there whether it is whole\n");
    printf("  --help -h  prints this\n");
}

static void options_parse(Options *o, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < O_COUNT; i++) option_set(o, &option_specs[i], option_specs[i].initial);
    for (int a = 1; a < argc; a++) {
        if (!strcmp(argv[a], "--help") || !strcmp(argv[a], "-h")) {
            options_help(argv[0]);
            stdout_flush();
            processes_end();
            exit(EXIT_SUCCESS);
        }
        for (int i = 0; i < O_COUNT; i++) { // what follows an option is its value
            if (strcmp(argv[a], option_specs[i].flag)) continue;
            a++;
            break;
        }
    }
    for (int a = 1; a < argc; a++) {
        if (!strcmp(argv[a], "--verify")) {
            if (argc != 3 || a != 1) fail("--verify: expected a folder and no other option");
            o->verify = argv[2];
            return;
        }
        if (!strcmp(argv[a], "--plan")) {
            o->show_plan = 1;
            continue;
        }
        int i = 0;
        while (i < O_COUNT && strcmp(argv[a], option_specs[i].flag)) i++;
        if (i == O_COUNT) fail("'%s' is not an option; --help lists them", argv[a]);
        const OptionSpec *spec = &option_specs[i];
        if (a + 1 == argc) fail("%s: a value is missing (%s)", spec->flag, spec->meaning);
        a++;
        option_set(o, spec, argv[a]);
        if (!option_is_built_in(spec)) fail("%s: not built in (%s)", spec->flag, spec->meaning);
        o->given[i] = 1;
    }
}

// Fails if an option differs between processes; it is named with both values.
static void options_same(const Options *o, const Mesh *mesh) {
    if (mesh->world == 1) return;
    enum { ROOM = 256 };
    static char mine[O_COUNT][ROOM], first[O_COUNT][ROOM];
    char value[32];
    for (int i = 0; i < O_COUNT; i++) snprintf(mine[i], ROOM, "%s", option_value(o, i, value));
    memcpy(first, mine, sizeof mine);
    processes_broadcast(mesh, first, sizeof first);
    for (int i = 0; i < O_COUNT; i++) {
        const char *flag = option_specs[i].flag;
        if (!strcmp(mine[i], first[i])) continue;
        fail("%s '%s', but rank 0 has %s '%s'", flag, mine[i], flag, first[i]);
    }
    processes_wait(mesh); // nobody goes on, and writes, before all have agreed
}

// A model file with other blocks than t fixes the pattern; one with a list lets it be any of that.
// With s, p or d it also fixes R and rule. They become the defaults, and a command line that says
// otherwise is an error. `where` is the model file.
static void options_take_model(Options *o, const GPT2Config *c, const char *where) {
    char found[32], asked[32];
    if (config_is_plain(c)) return;
    if (!o->given[O_pattern]) o->pattern = c->pattern;
    if (strcmp(o->pattern, c->pattern) && list_find(c->patterns, o->pattern) < 0) {
        fail("-p %s, but %s was trained with -p %s%s%s", o->pattern, where, c->pattern,
             c->patterns[0] ? " -pe " : "", c->patterns);
    }
    if (!pattern_depends_on_R(c->pattern) && !pattern_depends_on_R(c->patterns)) {
        if (!o->given[O_tp]) o->tp = c->R; // the rest has no meaning
        return;
    }
    if (o->given[O_tp] && o->tp != c->R) {
        fail("-tp %lld, but %s was trained with -tp %d", (long long)o->tp, where, c->R);
    }
    if (o->given[O_rule] && o->rule != c->rule) {
        fail("-pm %s, but %s was trained with -pm %s", word_at(RULE_NAMES, o->rule, asked), where,
             word_at(RULE_NAMES, c->rule, found));
    }
    o->tp = c->R;
    o->rule = c->rule;
}

#endif
