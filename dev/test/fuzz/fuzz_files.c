// Fuzzes the readers of files: whatever bytes a file holds, a reader returns what they mean or
// calls `fail`; it never reads or writes out of bounds, overflows, hangs or leaves a file open. A
// libFuzzer target, and not a test of what is written or of the trainer's use of what is read:
// test_gpt2.c and dev/test/cli.sh are.
//
//   dev/test/fuzz.sh                  builds it with clang, makes a first corpus, runs it
//   dev/test/fuzz/fuzz_files INPUT    runs one input again, such as one kept after a crash
//
// An input is one letter, then the file:
//   t  a token file
//   d  two of them, read as one text; 2 bytes say how long the first one is
//   v  a tokenizer file ("vocabulary")
//   m  a model file
//   s  optimizer state of the model in state_config
//   c  DONE of a checkpoint, to which its last line is added
//
// What a reader hands over is held against the input byte by byte. CHECK prints
// what does not hold and aborts.
#define _GNU_SOURCE // memfd_create
#include <glob.h>
#include <locale.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <wchar.h>

// What tokens_open holds when it fails is lost, which is fine in a program that
// ends then. Here it would add up.
static glob_t glob_held;
static int glob_hold(const char *pattern, int flags, int (*on_error)(const char *, int),
                     glob_t *found) {
    int status = glob(pattern, flags, on_error, found);
    if (!status) glob_held = *found;
    return status;
}
static void glob_release(glob_t *found) {
    globfree(found);
    memset(&glob_held, 0, sizeof glob_held);
}
#define glob glob_hold
#define globfree glob_release
#include "../../../data/bpe.h"
#include "../../../data/checkpoint.h"
#include "../../../data/options.h"
#include "../../../data/tokens.h"
#undef glob
#undef globfree

// 2 is the real stderr: `stderr` itself is sent to /dev/null, with all that `fail` has to say.
#define CHECK(condition) ((condition) ? (void)0 : check_failed(__LINE__, #condition))
static void check_failed(int line, const char *condition) {
    dprintf(2, "fuzz_files.c:%d: does not hold: %s\n", line, condition);
    abort();
}

// ----------------------------------------------------------------------------
// files in memory, under names that the readers can open

enum { FILE_A = 100, FILE_B = 101 };
#define PATH_A "/proc/self/fd/100"
#define PATH_AB "/proc/self/fd/10[01]"

static void file_put(int fd, const uint8_t *data, size_t size) {
    CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
}

// ----------------------------------------------------------------------------
// tokens and tokenizer

static Tokens tokens;
static Tokenizer tokenizer;
// Both on the heap and of the exact size, for the sanitizer to see the first step beyond.
static int32_t *ids;
static char *text;

static uint16_t token_expected(const uint8_t *a, size_t count_a, const uint8_t *b, size_t i) {
    uint16_t id;
    memcpy(&id, (i < count_a ? a + HEADER_BYTES + 2 * i : b + HEADER_BYTES + 2 * (i - count_a)),
           sizeof id);
    return id;
}

static int tokens_vocabulary(const uint8_t *file) {
    int32_t V;
    memcpy(&V, file + 3 * sizeof V, sizeof V);
    return V ? V : GPT2_V;
}

static void fuzz_tokens(const char *pattern, const uint8_t *a, size_t size_a, const uint8_t *b,
                        size_t size_b) {
    tokens_open(&tokens, pattern);
    size_t count_a = (size_a - HEADER_BYTES) / 2;
    size_t count = count_a + (b ? (size_b - HEADER_BYTES) / 2 : 0);
    CHECK(tokens.count == count && tokens.shard_count == (b ? 2 : 1) && tokens.V >= 1 &&
          tokens.V <= 65536);
    CHECK(tokens.V == tokens_vocabulary(a) && (!b || tokens.V == tokens_vocabulary(b)));
    // So few are all checked at once.
    for (size_t i = 0; i < count; i++) CHECK(token_expected(a, count_a, b, i) < tokens.V);
    const size_t starts[] = {0, 1, count / 2, count_a - 1, count_a, count - 1};
    for (size_t k = 0; k < sizeof starts / sizeof *starts; k++) {
        size_t start = starts[k];
        if (start >= count) continue;
        size_t lengths[] = {1, (count - start + 1) / 2, count - start};
        for (int j = 0; j < 3; j++) {
            size_t n = lengths[j];
            ids = malloc(n * sizeof *ids);
            tokens_copy(&tokens, start, n, ids);
            for (size_t i = 0; i < n; i++) {
                CHECK(ids[i] == token_expected(a, count_a, b, start + i) && ids[i] < tokens.V);
            }
            free(ids), ids = NULL;
        }
    }
}

// Printed one after the other, tokens end as UTF-8 without anything that a terminal obeys.
static void fuzz_print(void) {
    char *shown = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&shown, &size);
    for (int i = 0; i < tokenizer.V; i++) tokenizer_print(&tokenizer, i, out);
    tokenizer_print_end(&tokenizer, out);
    fclose(out);
    wchar_t c;
    mbstate_t state = {0};
    for (size_t at = 0, n; at < size; at += n) {
        n = shown[at] ? mbrtowc(&c, shown + at, size - at, &state) : 0;
        CHECK(n >= 1 && n <= 4); // not cut off, not invalid, no 0
        CHECK((c >= ' ' && c < 0x7F) || c > 0x9F || strchr("\t\n\v\f\r", (int)c));
    }
    free(shown);
}

static void fuzz_tokenizer(const uint8_t *data, size_t size) {
    tokenizer_open(&tokenizer, PATH_A);
    CHECK(tokenizer.V >= 1 && tokenizer.end_of_text >= 0 && tokenizer.end_of_text < tokenizer.V);
    const uint8_t *at = data + HEADER_BYTES;
    for (int i = 0; i < tokenizer.V; i++) {
        size_t length = tokenizer.start[i + 1] - tokenizer.start[i];
        CHECK(length == *at && !memcmp(tokenizer.bytes + tokenizer.start[i], at + 1, length));
        at += 1 + length;
    }
    CHECK(at == data + size);
    fuzz_print();
    // Two prompts: the vocabulary back to front, which mostly is one if it is of characters, and
    // the file's own end, which can be one if it is of byte pairs.
    for (int prompt = tokenizer_is_bpe(&tokenizer); prompt < 2; prompt++) {
        size_t length = 0, from = size - HEADER_BYTES < 256 ? HEADER_BYTES : size - 256;
        text = malloc(size + 1);
        for (int i = tokenizer.V - 1; i >= 0 && prompt == 0; i--) {
            size_t n = tokenizer.start[i + 1] - tokenizer.start[i];
            memcpy(text + length, tokenizer.bytes + tokenizer.start[i], n);
            length += n;
        }
        for (; from < size && prompt == 1; from++) text[length++] = (char)data[from];
        text = realloc(text, length);
        ids = malloc(length * sizeof *ids);
        int n = tokenizer_encode(&tokenizer, text, length, ids);
        size_t read = 0;
        for (int i = 0; i < n; i++) { // what the ids say is the text
            CHECK(ids[i] >= 0 && ids[i] < tokenizer.V);
            size_t bytes = tokenizer.start[ids[i] + 1] - tokenizer.start[ids[i]];
            CHECK(bytes <= length - read &&
                  !memcmp(text + read, tokenizer.bytes + tokenizer.start[ids[i]], bytes));
            read += bytes;
        }
        CHECK(read == length);
        free(text), text = NULL;
        free(ids), ids = NULL;
    }
}

// ----------------------------------------------------------------------------
// model and optimizer state

typedef struct {
    ParamSpec specs[P_COUNT];
    int bf16, set, p, layer, row; // where the next rows have to begin
    const uint8_t *at, *end;      // and what they have to hold
} Rows;

// Takes rows as the trainer does. Every row has to come once, in order, in range and as it stands
// in the file.
static void rows_check(void *owner, int set, int p, int layer, int row, int rows,
                       const float *values) {
    Rows *r = owner;
    CHECK(set == r->set && p == r->p && p < P_COUNT && layer == r->layer && row == r->row);
    const ParamSpec *spec = &r->specs[p];
    CHECK(layer < spec->layers && rows >= 1 && rows <= spec->rows - row);
    size_t n = (size_t)rows * (size_t)spec->cols, width = r->bf16 ? 2 : 4;
    CHECK(n <= (size_t)(r->end - r->at) / width);
    for (size_t i = 0; i < n; i++, r->at += width) {
        uint32_t bits, expected = 0;
        memcpy(&bits, &values[i], sizeof bits); // bits, because -0 equals 0
        memcpy((char *)&expected + 4 - width, r->at, width);
        CHECK(bits == expected);
        CHECK(values[i] >= (set == SET_MOMENT2 ? 0 : -FLT_MAX) && values[i] <= FLT_MAX);
    }
    r->row += rows;
    if (r->row == spec->rows) r->row = 0, r->layer++;
    if (r->layer == spec->layers) r->layer = 0, r->p++;
    if (r->p == P_COUNT) r->p = 0, r->set++;
}

// As run_find_model and gpt2_load go about it.
static void fuzz_model(const uint8_t *data, size_t size) {
    static Plan plan;
    GPT2Config config, again;
    Options options;
    File file;
    int32_t header[HEADER_INTS];
    Rows rows = {.at = data + HEADER_BYTES, .end = data + size};
    int bf16 = model_open(&file, PATH_A, &config);
    CHECK(config.R >= 1 && config.NH % config.R == 0 && config.C % config.NH == 0 &&
          config.L >= 1 && config.L <= L_MAX);
    CHECK(config.V >= 1 && config.V <= config.Vp && config.maxT >= 1 && config.rule >= RULE_SUM &&
          config.rule <= RULE_STREAMS);
    CHECK(strlen(config.pattern) >= 1 && strlen(config.pattern) <= PATTERN_MAX);
    rows.bf16 = bf16;
    param_specs(rows.specs, &config);
    tensors_read(&file, rows.specs, bf16, SET_PARAMS, rows_check, &rows);
    file_close(&file);
    CHECK(rows.at == rows.end && rows.set == SET_PARAMS + 1);

    // What is written of this model reads back as the same model.
    model_header_make(header, &config);
    model_header_parse(header, &again, PATH_A);
    CHECK(config_is_plain(&config) ? !strcmp(again.pattern, "t")
                                   : !memcmp(&again, &config, sizeof config));

    options_parse(&options, 1, (char *[]){"train_gpt2"});
    options_take_model(&options, &config, PATH_A);
    int depends = pattern_depends_on_R(config.pattern) || pattern_depends_on_R(config.patterns);
    CHECK(!depends || (options.tp == config.R && options.rule == config.rule));
    // The plan is checked by fuzz_options.
    plan_make(&plan, options.pattern, config.L, options.rule, (int)options.tp, "-p");
    plan_free(&plan);
    CHECK(strlen(config.pattern) + strlen(config.patterns) <= PATTERN_MAX);
    for (int i = 0; i < list_count(config.patterns); i++) {
        char pattern[PATTERN_MAX + 1];
        list_at(config.patterns, i, pattern);
        CHECK(list_find(config.patterns, pattern) >= 0);
        plan_make(&plan, pattern, config.L, options.rule, (int)options.tp, "-pe");
        plan_free(&plan);
    }
}

enum { STATE_UPDATES = 3 };
static const GPT2Config state_config =
    {.maxT = 1, .V = 1, .L = 1, .NH = 1, .C = 1, .Vp = 128, .R = 1, .pattern = "t"};

static void fuzz_state(const uint8_t *data, size_t size) {
    Rows rows = {.at = data + HEADER_BYTES, .end = data + size, .set = SET_MOMENT1};
    param_specs(rows.specs, &state_config);
    state_read(PATH_A, &state_config, STATE_UPDATES, rows_check, &rows);
    CHECK(rows.at == rows.end && rows.set == SET_MOMENT2 + 1);
}

static void fuzz_done(const uint8_t *data, size_t size) {
    static Done done;
    char last[HASH_LINE + 1];
    hash_line(last, (const char *)data, size);
    CHECK(pwrite(FILE_A, last, HASH_LINE, (off_t)size) == HASH_LINE);
    CHECK(done_read(&done, PATH_A) && !done.empty);
    size_t n = strlen(done.record);
    if (memchr(data, 0, size)) return;
    CHECK(n <= size && !memcmp(done.record, data + size - n, n)); // what stands below two lines
}

// ----------------------------------------------------------------------------
// one input

static jmp_buf back;
static void jump_back(void) { longjmp(back, 1); }

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    int a = memfd_create("a", MFD_CLOEXEC), b = memfd_create("b", MFD_CLOEXEC);
    CHECK(a >= 0 && b >= 0 && dup2(a, FILE_A) == FILE_A && dup2(b, FILE_B) == FILE_B);
    CHECK(setlocale(LC_CTYPE, "C.UTF-8"));
    FILE *sink = fopen("/dev/null", "w");
    CHECK(sink);
    stderr = sink; // glibc's is a variable; libFuzzer and the sanitizers have kept their own
    fail_hook = jump_back;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    uint8_t letter = *data++;
    size--;
    // Outside the setjmp: everything that lives across it is static or not changed after it.
    size_t cut = 0;
    if (letter == 'd') {
        if (size < 2) return 0;
        cut = (size_t)data[0] | (size_t)data[1] << 8;
        data += 2, size -= 2;
        if (cut > size) cut = size;
        file_put(FILE_B, data + cut, size - cut);
    }
    file_put(FILE_A, data, letter == 'd' ? cut : size);
    if (!setjmp(back)) {
        switch (letter) {
        case 't': fuzz_tokens(PATH_A, data, size, NULL, 0); break;
        case 'd': fuzz_tokens(PATH_AB, data, cut, data + cut, size - cut); break;
        case 'v': fuzz_tokenizer(data, size); break;
        case 'm': fuzz_model(data, size); break;
        case 's': fuzz_state(data, size); break;
        case 'c': fuzz_done(data, size); break;
        }
    }
    for (int i = 0; i < FILES_OPEN_MAX; i++) CHECK(!files_open[i]);
    tokens_close(&tokens);
    tokenizer_close(&tokenizer);
    if (glob_held.gl_pathc) glob_release(&glob_held);
    free(ids), ids = NULL;
    free(text), text = NULL;
    return 0;
}
