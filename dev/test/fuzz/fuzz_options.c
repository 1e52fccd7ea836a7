// Fuzzes what the user types: the command line, block patterns and the names of models. Whatever
// the text, it means something in range or `fail` is called. A libFuzzer target; not a test of
// the messages or of the defaults.
//
//   dev/test/fuzz.sh                    builds it with clang, makes a first corpus, runs it
//   dev/test/fuzz/fuzz_options INPUT    runs one input again, such as one kept after a crash
//
// An input is one letter, then:
//   o  a command line, one argument per line (-h and --help are left out: they end the process)
//   p  4 bytes: merge rule, R - 1, and L - 1 (little-endian); then a block pattern
//   e  4 bytes: V - 1 and T - 1 (little-endian); then the name of a model, such as d12 or 4x4x128
//
// What the text means is worked out a second time, in another way. CHECK prints
// what does not hold and aborts.
#define BUILT_IN (CUDA | CPU) // every row of the option table is to be reached
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../../../data/options.h"
#include "../scalar_plan.h"

// 2 is the real stderr: `stderr` itself is sent to /dev/null, with all that `fail` has to say.
#define CHECK(condition) ((condition) ? (void)0 : check_failed(__LINE__, #condition))
static void check_failed(int line, const char *condition) {
    dprintf(2, "fuzz_options.c:%d: does not hold: %s\n", line, condition);
    abort();
}

// A copy of the input as a string, of the exact size, for the sanitizer to see the first step
// beyond.
static char *text;

// ----------------------------------------------------------------------------
// command line

enum { ARGUMENTS_MAX = 256 };

static void fuzz_options(void) {
    static char program[] = "train_gpt2";
    char *argv[ARGUMENTS_MAX + 1] = {program}, out[32], found[32];
    Options options, again;
    int argc = 1;
    for (char *line = text, *next; line && argc < ARGUMENTS_MAX; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        if (strcmp(line, "-h") && strcmp(line, "--help")) argv[argc++] = line;
    }
    if (argc == 2 && !*argv[1]) argc = 1; // no text, no arguments
    options_parse(&options, argc, argv);

    // Every value is in range, and what is printed of it reads back as the same
    // (reals: as one that prints the same).
    again = options;
    for (int i = 0; i < O_COUNT; i++) {
        const OptionSpec *spec = &option_specs[i];
        const char *field = (const char *)&options + spec->offset;
        const char *value = option_value(&options, i, out);
        int64_t count;
        double real;
        int choice;
        memcpy(&count, field, sizeof count);
        memcpy(&real, field, sizeof real);
        memcpy(&choice, field, sizeof choice);
        if (spec->kind == KIND_COUNT)
            CHECK((double)count >= spec->low && (double)count <= spec->high);
        if (spec->kind == KIND_REAL) CHECK(real >= spec->low && real <= spec->high);
        if (spec->kind == KIND_CHOICE)
            CHECK(choice >= 0 && word_find(spec->words, value) == choice);
        CHECK(strlen(value) < sizeof out || spec->kind == KIND_TEXT);
        option_set(&again, spec, value);
        CHECK(!strcmp(value, option_value(&again, i, found)));
        // The last of several counts, and the default counts when there is none.
        const char *given = spec->initial;
        int was_given = 0, plan = 0;
        for (int a = 1; a < argc; a += 2) {
            if (!strcmp(argv[a], spec->flag)) given = argv[a + 1], was_given = 1;
            if (!strcmp(argv[a], "--plan")) plan = 1, a--; // has no value
        }
        CHECK(options.show_plan == plan);
        CHECK(options.given[i] == was_given);
        if (spec->kind == KIND_TEXT || spec->kind == KIND_CHOICE) CHECK(!strcmp(given, value));
        if (spec->kind == KIND_COUNT) CHECK(strtoll(given, NULL, 10) == count);
        if (spec->kind == KIND_REAL) CHECK(strtod(given, NULL) == real);
    }

    for (int world = 1; world <= 12; world += 1 + (world > 4)) {
        // Fails when it does not fit.
        Mesh m = mesh_make(world, world / 2, (int)options.tp, (int)options.fold);
        CHECK(m.F >= 1 && m.group >= 1 && m.DP >= 1 && m.F * m.group == m.R &&
              m.group * m.DP == world);
        CHECK(m.group_rank >= 0 && m.group_rank < m.group && m.dp_rank >= 0 && m.dp_rank < m.DP);
        CHECK(m.dp_rank * m.group + m.group_rank == world / 2);
    }
}

// ----------------------------------------------------------------------------
// block patterns

static void fuzz_plan(int rule, int R, int L) {
    Plan plan;
    static char blocks[2 * L_MAX + PATTERN_MAX + 1];
    plan_make(&plan, text, L, rule, R, "-p");
    CHECK(plan.merges >= 1 && plan.merges <= 2 * L);
    CHECK(plan.streams >= 2 * L + 1 && plan.streams <= 4 * L); // one after every sub-block, d two
    if (L <= 48 && R <= SCALAR_RANKS) CHECK(!scalar_check(&plan, text, rule, R));

    size_t once = strlen(text), letters = 0;
    int length = 0, block = 0;
    CHECK(once >= 1 && once <= PATTERN_MAX);
    for (size_t i = 0; i < once; i++) letters += text[i] != '.';
    CHECK(letters >= 1 && (size_t)L % letters == 0);
    for (size_t i = 0; i < (size_t)L / letters; i++, length += (int)once)
        memcpy(blocks + length, text, once + 1);
    for (const char *c = blocks; *c; c++) {
        if (*c != '.') CHECK(plan.letters[block++] == *c);
    }
    CHECK(block == L && !plan.letters[L]);
    plan_free(&plan);
}

// ----------------------------------------------------------------------------
// names of models

static void fuzz_config(int V, int T) {
    GPT2Config c;
    ParamSpec specs[P_COUNT];
    memset(&c, -1, sizeof c);
    if (!config_parse(&c, text, V, T)) return;
    CHECK(c.V == V && c.maxT == T && c.Vp >= V && c.Vp < V + VP_MULTIPLE &&
          c.Vp % VP_MULTIPLE == 0);
    CHECK(c.R == 1 && c.rule == RULE_SUM && !strcmp(c.pattern, "t"));
    CHECK(c.L >= 1 && c.L <= L_MAX && c.NH >= 1 && c.C >= 1 && c.C <= 65536 && c.C % c.NH == 0);
    if (text[0] != 'd') { // the numbers are those in the text
        char *end = text;
        unsigned long long L = strtoull(end, &end, 10), NH = strtoull(end + 1, &end, 10);
        unsigned long long C = strtoull(end + 1, &end, 10);
        CHECK(!*end && L == (unsigned)c.L && NH == (unsigned)c.NH && C == (unsigned)c.C);
    }
    param_specs(specs, &c);
    unsigned __int128 count = 0;
    for (int p = 0; p < P_COUNT; p++) {
        CHECK(specs[p].layers > 0 && specs[p].rows > 0 && specs[p].cols > 0);
        count += (unsigned __int128)specs[p].layers * (unsigned)specs[p].rows *
                 (unsigned)specs[p].cols;
    }
    // 8 bytes each still fit.
    CHECK(count == param_count(specs) && count < (unsigned __int128)1 << 59);
}

// ----------------------------------------------------------------------------
// one input

static jmp_buf back;
static void jump_back(void) { longjmp(back, 1); }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    // With glibc it is a variable; libFuzzer and the sanitizers have kept their own.
    stderr = fopen("/dev/null", "w");
    CHECK(stderr);
    fail_hook = jump_back;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t numbers = size && data[0] != 'o' ? 4 : 0;
    if (size < 1 + numbers) return 0;
    const uint8_t *n = data + 1;
    size_t length = size - 1 - numbers;
    text = malloc(length + 1);
    if (length) memcpy(text, data + 1 + numbers, length);
    text[length] = 0;
    if (!setjmp(back)) {
        switch (data[0]) {
        case 'o': fuzz_options(); break;
        case 'p': fuzz_plan(n[0] % 3, n[1] + 1, (n[2] | n[3] << 8) % L_MAX + 1); break;
        case 'e': fuzz_config((n[0] | n[1] << 8) + 1, (n[2] | n[3] << 8) + 1); break;
        }
    }
    free(text), text = NULL;
    return 0;
}
