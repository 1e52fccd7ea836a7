// Checkpoints: models and optimizer state on disk, always as whole tensors, so that a file fits
// every process mesh.
//
//   OUT/model_%08d.bin   llm.c's model file, version 3 (fp32; version 5, bf16, is read too)
//   OUT/state_%08d.bin   the two AdamW moments, fp32, in the order of the model file
//   OUT/DONE_%08d        text, written last: a checkpoint without it does not exist
//
// DONE has sizes and hashes of both files, then lines on the run that wrote them (data/record.h),
// and its own hash. Older versions left it empty. Whoever reads a model or a state beside its DONE
// checks the very bytes that are used. What is written and read is finite, so that a run that went
// wrong replaces no good checkpoint.
//
// What a process holds of a tensor is its own affair: it hands over and takes rows of whole tensors
// through a function.
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "../tp_blocks.h"
#include <dirent.h>
#include <float.h>
#include <setjmp.h>

enum {
    MODEL_MAGIC = 20240326,
    MODEL_FP32 = 3,
    MODEL_BF16 = 5,
    STATE_MAGIC = 20261121,
    STATE_VERSION = 1
};
enum { SET_PARAMS, SET_MOMENT1, SET_MOMENT2 }; // which copy of the parameter table a row belongs to

// Where things stand in a model header. The extension from H_R on is zero in llm.c's files. Right
// behind the pattern stands the list of -pe; both together have at most PATTERN_MAX characters.
enum { H_MAXT = 2, H_V, H_L, H_NH, H_C, H_VP, H_R, H_RULE, H_PATTERN_LENGTH, H_PATTERN,
       H_REMOVED = H_PATTERN + PATTERN_MAX, H_REMOVED_END = H_REMOVED + 2, // tried, and removed
       H_LIST_LENGTH = H_REMOVED_END, H_STATE_STEP = H_R };

// Takes rows row .. row+rows-1 of one layer of tensor p, whole rows; `set` as above.
typedef void RowsPut(void *owner, int set, int p, int layer, int row, int rows,
                     const float *values);
// Fills in the same. Every process of the mesh calls it, since it may have to gather.
typedef void RowsGet(void *owner, int set, int p, int layer, int row, int rows, float *values);

enum { ROWS_BYTES = 1 << 20 }; // rows travel in pieces of about this size

static int rows_at_once(const ParamSpec *spec) {
    int rows = ROWS_BYTES / (int)sizeof(float) / spec->cols;
    if (rows < 1) return 1;
    return rows < spec->rows ? rows : spec->rows;
}

// ----------------------------------------------------------------------------
// headers

static void header_from_config(int32_t h[HEADER_INTS], const GPT2Config *c) {
    h[H_MAXT] = c->maxT;
    h[H_V] = c->V;
    h[H_L] = c->L;
    h[H_NH] = c->NH;
    h[H_C] = c->C;
    h[H_VP] = c->Vp;
}

static void model_header_make(int32_t h[HEADER_INTS], const GPT2Config *c) {
    memset(h, 0, HEADER_BYTES);
    h[0] = MODEL_MAGIC;
    h[1] = MODEL_FP32;
    header_from_config(h, c);
    if (config_is_plain(c)) return;
    h[H_R] = c->R;
    h[H_RULE] = c->rule;
    h[H_PATTERN_LENGTH] = (int32_t)strlen(c->pattern);
    h[H_LIST_LENGTH] = (int32_t)strlen(c->patterns);
    int32_t *next = h + H_PATTERN;
    for (const char *letter = c->pattern; *letter; letter++) *next++ = *letter;
    for (const char *letter = c->patterns; *letter; letter++) *next++ = *letter;
}

// Takes a text from a header, whose characters have to be some of `allowed`.
static void header_text(char *out, const int32_t *text, int length, const char *allowed,
                        const char *path, const char *what) {
    for (int i = 0; i < length; i++) {
        if (text[i] < 1 || text[i] > 127 || !strchr(allowed, text[i])) {
            fail("%s: character %d of the %s has code %d, expected one of %s", path, i, what,
                 text[i], allowed);
        }
        out[i] = (char)text[i];
    }
}

static void model_header_parse(const int32_t h[HEADER_INTS], GPT2Config *c, const char *path) {
    memset(c, 0, sizeof *c);
    c->maxT = h[H_MAXT];
    c->V = h[H_V];
    c->L = h[H_L];
    c->NH = h[H_NH];
    c->C = h[H_C];
    c->Vp = h[H_VP];
    c->R = h[H_R] ? h[H_R] : 1;
    c->rule = h[H_RULE];
    config_check(c, path);
    range_check(path, "the number of tensor ranks (R)", c->R, 1, c->NH);
    if (c->NH % c->R) {
        fail("%s: %d heads cannot be divided over %d tensor ranks", path, c->NH, c->R);
    }
    range_check(path, "the merge rule", c->rule, RULE_SUM, RULE_STREAMS);
    int length = h[H_PATTERN_LENGTH], listed = h[H_LIST_LENGTH];
    range_check(path, "the length of the pattern", length, listed != 0, PATTERN_MAX);
    range_check(path, "the length of the list of patterns", listed, 0, PATTERN_MAX - length);
    header_text(c->pattern, h + H_PATTERN, length, PATTERN_LETTERS, path, "block pattern");
    header_text(c->patterns, h + H_PATTERN + length, listed, PATTERN_LETTERS ",", path,
                "list of patterns");
    for (int i = H_REMOVED; i < H_REMOVED_END; i++) {
        if (!h[i]) continue;
        fail("%s: header field %d is %d, expected 0: the model was trained with scaled partial "
             "outputs or LayerNorms of each rank's own, which helped nothing and were removed",
             path, i, h[i]);
    }
    if (!c->pattern[0]) memcpy(c->pattern, "t", 2); // plain GPT-2
    char where[PATH_MAX + 32], letters[L_MAX + 1], closes[L_MAX];
    snprintf(where, sizeof where, "%s: block pattern", path);
    pattern_lay(letters, closes, c->pattern, c->L, where);
    snprintf(where, sizeof where, "%s: list of patterns", path);
    list_check(c->patterns, c->pattern, c->L, where);
}

// ----------------------------------------------------------------------------
// names

// `kind` is "model", "state" or "DONE".
static void checkpoint_name(char out[32], const char *kind, int64_t updates) {
    snprintf(out, 32, "%s_%08d%s", kind, (int)updates, strcmp(kind, "DONE") ? ".bin" : "");
}

static void checkpoint_path(char out[PATH_MAX], const char *folder, const char *kind,
                            int64_t updates) {
    char name[32];
    checkpoint_name(name, kind, updates);
    path_join(out, folder, name);
}

// Takes a file's name apart: returns its update, or -1 when it is no file of a checkpoint.
// `unfinished` means that it is one being written.
static int64_t checkpoint_of(const char *name, const char **kind, int *unfinished) {
    static const char *const kinds[] = {"model", "state", "DONE"};
    for (int k = 0; k < 3; k++) {
        char expected[32];
        size_t n = strlen(kinds[k]);
        if (strncmp(name, kinds[k], n) || name[n] != '_') continue;
        long long updates = strtoll(name + n + 1, NULL, 10);
        if (updates < 0 || updates > UPDATES_MAX) return -1;
        checkpoint_name(expected, kinds[k], updates);
        n = strlen(expected);
        if (strncmp(name, expected, n)) return -1;
        *kind = kinds[k];
        *unfinished = !strcmp(name + n, ".part");
        return name[n] && !*unfinished ? -1 : updates;
    }
    return -1;
}

// ----------------------------------------------------------------------------
// DONE

enum { DONE_BYTES = 16 * PATH_MAX, HASH_LINE = sizeof "hash 0123456789abcdef" };

typedef struct {
    struct { size_t bytes; unsigned long long hash; } model, state;
    char record[DONE_BYTES + 1]; // lines on the run
    int empty;                   // as older versions left it: nothing is known
} Done;

// The last line: the hash of all bytes above it.
static void hash_line(char out[HASH_LINE + 1], const char *text, size_t bytes) {
    snprintf(out, HASH_LINE + 1, "hash %016llx\n", (unsigned long long)hash_of(text, bytes));
}

static void done_write(const char *path, const File *model, const File *state,
                       const char *record) {
    char text[DONE_BYTES + 1], last[HASH_LINE + 1];
    File file;
    size_t n = (size_t)snprintf(text, sizeof text, "model %zu %016llx\nstate %zu %016llx\n%s",
                                model->size, (unsigned long long)hash_value(&model->hash),
                                state->size, (unsigned long long)hash_value(&state->hash), record);
    if (n + HASH_LINE > DONE_BYTES) fail("%s: %zu bytes, at most %d", path, n, DONE_BYTES);
    hash_line(last, text, n);
    file_create(&file, path);
    file_write(&file, text, n);
    file_write(&file, last, HASH_LINE);
    file_commit(&file);
}

static int file_is_missing(const char *path) {
    struct stat info;
    return lstat(path, &info) && errno == ENOENT;
}

// Returns 0 when there is none.
static int done_read(Done *done, const char *path) {
    char text[DONE_BYTES + 1], last[HASH_LINE + 1];
    File file;
    int record = 0;
    memset(done, 0, sizeof *done);
    if (file_is_missing(path)) return 0;
    file_open(&file, path, "the last file of a checkpoint");
    size_t n = file.size, above = n < HASH_LINE ? 0 : n - HASH_LINE;
    if (n > DONE_BYTES) fail("%s: %zu bytes, expected at most %d", path, n, DONE_BYTES);
    file_read(&file, text, n);
    file_close(&file);
    done->empty = !n;
    if (done->empty) return 1;
    hash_line(last, text, above);
    if (n < HASH_LINE || memcmp(text + above, last, HASH_LINE)) {
        fail("%s: damaged: its last line is not the hash of those above", path);
    }
    text[above] = 0;
    int found = sscanf(text, "model %zu %llx\nstate %zu %llx\n%n", &done->model.bytes,
                       &done->model.hash, &done->state.bytes, &done->state.hash, &record);
    if (found != 4) fail("%s: expected sizes and hashes of model and state at its start", path);
    memcpy(done->record, text + record, above + 1 - (size_t)record);
    return 1;
}

// Reads the DONE beside a file of model or state, whose `kind` it is, from `path`. Returns 0 where
// there is none.
static int done_beside(Done *done, const char *file, const char **kind, char path[PATH_MAX]) {
    char folder[PATH_MAX], name[PATH_MAX];
    int unfinished;
    snprintf(folder, sizeof folder, "%s", file);
    snprintf(name, sizeof name, "%s", file);
    int64_t updates = checkpoint_of(basename(name), kind, &unfinished);
    if (updates < 0 || unfinished) return 0;
    checkpoint_path(path, dirname(folder), "DONE", updates);
    return done_read(done, path) && !done->empty;
}

// Ends the reading of a model or a state: beside a DONE that knows its hash it has to be what was
// written. Returns the hash.
static uint64_t checkpoint_close(File *file) {
    char path[PATH_MAX];
    const char *kind;
    Done done;
    unsigned long long found = hash_value(&file->hash);
    file_close(file);
    if (!done_beside(&done, file->path, &kind, path)) return found;
    int is_model = !strcmp(kind, "model");
    size_t bytes = is_model ? done.model.bytes : done.state.bytes;
    unsigned long long hash = is_model ? done.model.hash : done.state.hash;
    if (file->size == bytes && found == hash) return found;
    fail("%s: damaged, or another run's: %zu bytes of hash %016llx, but %s says %zu of %016llx",
         file->path, file->size, found, path, bytes, hash);
}

// ----------------------------------------------------------------------------
// bodies

static float float_from_bf16(uint16_t half) {
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)half << 16};
    return u.value;
}

// Fails unless all values are finite, and second moments not negative. `where` is the file, or what
// had these values.
static void values_check(const char *where, const ParamSpec *spec, int set, int layer, int row,
                       int rows, const float *values) {
    static const char *const sets[] = {"", "the first moment of ", "the second moment of "};
    size_t n = (size_t)rows * spec->cols, i = 0;
    float least = set == SET_MOMENT2 ? 0 : -FLT_MAX;
    int wrong = 0;
    for (size_t j = 0; j < n; j++) wrong |= !(values[j] >= least && values[j] <= FLT_MAX);
    if (!wrong) return;
    while (values[i] >= least && values[i] <= FLT_MAX) i++;
    fail("%s: %s%s is %g in block %d, row %d; expected a finite number%s", where, sets[set],
         spec->name, (double)values[i], layer, row + (int)i / spec->cols,
         set == SET_MOMENT2 ? " from 0" : "");
}

// Reads one copy of all tensors and hands it over row by row.
static void tensors_read(File *file, const ParamSpec specs[P_COUNT], int bf16, int set,
                         RowsPut *put, void *owner) {
    static float *values; // where `fail` comes back, the next call goes on with it
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *spec = &specs[p];
        int step = rows_at_once(spec);
        values = (float *)realloc(values, (size_t)step * spec->cols * sizeof(float));
        if (!values) fail("%s: out of memory for %d rows of %s", file->path, step, spec->name);
        for (int layer = 0; layer < spec->layers; layer++) {
            for (int row = 0; row < spec->rows; row += step) {
                int rows = row + step <= spec->rows ? step : spec->rows - row;
                size_t n = (size_t)rows * spec->cols;
                // bf16 is read into the upper half: widening from the front never overtakes it.
                uint16_t *halves = (uint16_t *)values + n;
                if (!bf16) file_read(file, values, n * sizeof(float));
                else file_read(file, halves, n * sizeof(uint16_t));
                for (size_t i = 0; bf16 && i < n; i++) values[i] = float_from_bf16(halves[i]);
                values_check(file->path, spec, set, layer, row, rows, values);
                put(owner, set, p, layer, row, rows, values);
            }
        }
    }
    free(values);
    values = NULL;
}

// The same outwards. Processes that only take part in gathering pass NULL twice; the one that gets
// the rows passes `where`, for values_check, and the file, if it is to write them.
static void tensors_write(File *file, const char *where, const ParamSpec specs[P_COUNT], int set,
                          RowsGet *get, void *owner) {
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *spec = &specs[p];
        int step = rows_at_once(spec);
        float *values = ALLOC(float, (size_t)step * spec->cols, "checkpoint rows");
        for (int layer = 0; layer < spec->layers; layer++) {
            for (int row = 0; row < spec->rows; row += step) {
                int rows = row + step <= spec->rows ? step : spec->rows - row;
                get(owner, set, p, layer, row, rows, values);
                if (where) values_check(where, spec, set, layer, row, rows, values);
                if (file) file_write(file, values, (size_t)rows * spec->cols * sizeof(float));
            }
        }
        free(values);
    }
}

// Opens a model file, checks magic, version, every dimension and the exact size, and leaves it at
// its body. Returns 1 if the body is bf16.
static int model_open(File *file, const char *path, GPT2Config *config) {
    int32_t header[HEADER_INTS];
    ParamSpec specs[P_COUNT];
    file_open(file, path, "a model file");
    header_read(file, header, MODEL_MAGIC, MODEL_FP32, MODEL_BF16, "a model file");
    model_header_parse(header, config, path);
    param_specs(specs, config);
    int bf16 = header[1] == MODEL_BF16;
    size_t expected = HEADER_BYTES + param_count(specs) * (bf16 ? sizeof(uint16_t) : sizeof(float));
    if (file->size != expected) {
        fail("%s: %zu bytes, but its header (L %d, C %d, V %d, maxT %d, %s) means %zu", path,
             file->size, config->L, config->C, config->V, config->maxT, bf16 ? "bf16" : "fp32",
             expected);
    }
    return bf16;
}

// Reads a model and hands it over row by row. Returns the hash of the file. `made` has the shape
// that there is memory for, by an earlier look at the file.
static uint64_t model_read(const char *path, const GPT2Config *made, RowsPut *put, void *owner) {
    File file;
    GPT2Config config;
    ParamSpec specs[P_COUNT];
    int bf16 = model_open(&file, path, &config);
    int same = made->L == config.L && made->NH == config.NH && made->C == config.C &&
               made->V == config.V && made->maxT == config.maxT;
    if (!same) fail("%s: another model has taken its place since this run began", path);
    param_specs(specs, &config);
    tensors_read(&file, specs, bf16, SET_PARAMS, put, owner);
    return checkpoint_close(&file);
}

// Writes all of a model but its name: the caller commits the file.
static void model_write(File *file, const char *path, const GPT2Config *config, int writer,
                        RowsGet *get, void *owner) {
    int32_t header[HEADER_INTS];
    ParamSpec specs[P_COUNT];
    param_specs(specs, config);
    model_header_make(header, config);
    if (writer) {
        file_create(file, path);
        file_write(file, header, sizeof header);
    }
    tensors_write(writer ? file : NULL, writer ? path : NULL, specs, SET_PARAMS, get, owner);
}

// ----------------------------------------------------------------------------
// optimizer state: header as the model's to [7], then [8] updates done

static void state_write(File *file, const char *path, const GPT2Config *config, int64_t updates,
                        int writer, RowsGet *get, void *owner) {
    int32_t header[HEADER_INTS] = {STATE_MAGIC, STATE_VERSION};
    ParamSpec specs[P_COUNT];
    param_specs(specs, config);
    header_from_config(header, config);
    header[H_STATE_STEP] = (int32_t)updates;
    if (writer) {
        file_create(file, path);
        file_write(file, header, sizeof header);
    }
    for (int set = SET_MOMENT1; set <= SET_MOMENT2; set++) {
        tensors_write(writer ? file : NULL, writer ? path : NULL, specs, set, get, owner);
    }
}

// As model_read.
static uint64_t state_read(const char *path, const GPT2Config *config, int64_t updates,
                           RowsPut *put, void *owner) {
    File file;
    int32_t header[HEADER_INTS], expected[HEADER_INTS] = {STATE_MAGIC, STATE_VERSION};
    ParamSpec specs[P_COUNT];
    param_specs(specs, config);
    header_from_config(expected, config);
    expected[H_STATE_STEP] = (int32_t)updates;
    file_open(&file, path, "an optimizer state file");
    header_read(&file, header, STATE_MAGIC, STATE_VERSION, STATE_VERSION,
                "an optimizer state file");
    for (int i = H_MAXT; i <= H_STATE_STEP; i++) {
        if (header[i] == expected[i]) continue;
        fail("%s: header entry %d is %d, but the model of this checkpoint has %d", path, i,
             header[i], expected[i]);
    }
    size_t bytes = HEADER_BYTES + 2 * param_count(specs) * sizeof(float);
    if (file.size != bytes) fail("%s: %zu bytes, expected %zu", path, file.size, bytes);
    tensors_read(&file, specs, 0, SET_MOMENT1, put, owner);
    tensors_read(&file, specs, 0, SET_MOMENT2, put, owner);
    return checkpoint_close(&file);
}

// ----------------------------------------------------------------------------
// a folder of checkpoints

// Opens a folder to list it; NULL when there is none.
static DIR *checkpoints_open(const char *folder) {
    DIR *dir = opendir(folder);
    if (!dir && errno != ENOENT) {
        fail("%s: cannot look for checkpoints here: %s", folder,
             errno == ENOTDIR ? "not a folder" : strerror(errno));
    }
    return dir;
}

// The next file of checkpoints, or -1 when there are no more; see checkpoint_of.
static int64_t checkpoints_next(DIR *dir, const char *folder, char path[PATH_MAX],
                                const char **kind, int *unfinished) {
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(dir);
        if (!entry && !errno) return -1;
        if (!entry) fail("%s: cannot look for checkpoints here: %s", folder, strerror(errno));
        int64_t updates = checkpoint_of(entry->d_name, kind, unfinished);
        if (updates < 0) continue;
        path_join(path, folder, entry->d_name);
        return updates;
    }
}

// The newest checkpoint older than `below` (INT64_MAX for the newest), or -1.
static int64_t checkpoint_find(const char *folder, int64_t below) {
    char path[PATH_MAX];
    const char *kind;
    int unfinished;
    int64_t newest = -1, updates;
    DIR *dir = checkpoints_open(folder);
    if (!dir) return -1;
    while ((updates = checkpoints_next(dir, folder, path, &kind, &unfinished)) >= 0) {
        int is_done = !strcmp(kind, "DONE") && !unfinished;
        if (is_done && updates < below && updates > newest) newest = updates;
    }
    closedir(dir);
    return newest;
}

// Whether the folder holds a model or state that no DONE says to be a checkpoint's; its path.
static int checkpoint_stray(const char *folder, char path[PATH_MAX]) {
    char done[PATH_MAX];
    const char *kind;
    int unfinished, is_stray = 0;
    int64_t updates;
    DIR *dir = checkpoints_open(folder);
    if (!dir) return 0;
    while (!is_stray && (updates = checkpoints_next(dir, folder, path, &kind, &unfinished)) >= 0) {
        checkpoint_path(done, folder, "DONE", updates);
        is_stray = !unfinished && file_is_missing(done);
    }
    closedir(dir);
    return is_stray;
}

// Until fail_advice is emptied again, an error says how to go on without this checkpoint.
static void checkpoint_advise(const char *folder, int64_t updates) {
    char from[PATH_MAX], to[PATH_MAX], name[32], quoted[2][PATH_MAX];
    int64_t before = checkpoint_find(folder, updates);
    snprintf(fail_advice, sizeof fail_advice, "no checkpoint is older than %lld; another folder "
             "for -o starts a new run", (long long)updates);
    if (before < 0) return;
    checkpoint_path(from, folder, "DONE", updates);
    snprintf(name, sizeof name, "BROKEN_%08d", (int)updates);
    path_join(to, folder, name);
    path_quote(quoted[0], sizeof quoted[0], from);
    path_quote(quoted[1], sizeof quoted[1], to);
    snprintf(fail_advice, sizeof fail_advice, "to go on from checkpoint %lld: mv %s %s and then "
             "-y 1 again", (long long)before, quoted[0], quoted[1]);
}

// Removes checkpoints beyond the newest `keep`. DONE goes first, so that what is half removed does
// not exist; if it cannot go, its files stay.
static void checkpoint_prune(const char *folder, int64_t keep) {
    char path[PATH_MAX];
    int64_t updates = INT64_MAX;
    for (int64_t i = 0; (updates = checkpoint_find(folder, updates)) >= 0; i++) {
        if (i < keep) continue;
        checkpoint_path(path, folder, "DONE", updates);
        if (unlink(path)) continue;
        folder_sync(path);
        checkpoint_path(path, folder, "state", updates);
        unlink(path);
        checkpoint_path(path, folder, "model", updates);
        unlink(path);
    }
}

// Removes what a killed run left in a folder that nobody else writes to: unfinished files, and
// models and states that have no DONE and are older than the newest checkpoint. Newer ones are
// written again when the run gets there.
static void checkpoint_clean(const char *folder) {
    char path[PATH_MAX], done[PATH_MAX];
    const char *kind;
    int unfinished;
    int64_t newest = checkpoint_find(folder, INT64_MAX), updates;
    DIR *dir = checkpoints_open(folder);
    if (!dir) return;
    while ((updates = checkpoints_next(dir, folder, path, &kind, &unfinished)) >= 0) {
        checkpoint_path(done, folder, "DONE", updates);
        if (unfinished || (updates < newest && file_is_missing(done))) unlink(path);
    }
    closedir(dir);
}

// Writes checkpoint `updates` and removes all but the newest `keep` (0: none). `record` is what
// DONE says of the run. Nothing has its name before all of it is known to be good. Processes that
// pass writer 0 only take part in gathering; one passes 1.
static void checkpoint_write(const char *folder, const GPT2Config *config, int64_t updates,
                             int64_t keep, const char *record, int writer, RowsGet *get,
                             void *owner) {
    char path[PATH_MAX];
    File model, state;
    if (writer) folder_create(folder); // it may have been removed since the run began
    checkpoint_path(path, folder, "model", updates);
    model_write(&model, path, config, writer, get, owner);
    checkpoint_path(path, folder, "state", updates);
    state_write(&state, path, config, updates, writer, get, owner);
    if (!writer) return;
    file_commit(&model);
    file_commit(&state);
    checkpoint_path(path, folder, "DONE", updates);
    done_write(path, &model, &state, record);
    if (keep) checkpoint_prune(folder, keep);
}

// ----------------------------------------------------------------------------
// --verify

static void rows_ignore(void *owner, int set, int p, int layer, int row, int rows,
                        const float *values) {
    (void)owner, (void)set, (void)p, (void)layer, (void)row, (void)rows, (void)values;
}

static jmp_buf verify_back;
static void verify_return(void) { longjmp(verify_back, 1); }

// Reads a checkpoint in full, as a run would. Returns 0 when it is broken; fail_message says why.
static int checkpoint_verify(const char *folder, int64_t updates, Done *done) {
    char path[PATH_MAX];
    File file;
    GPT2Config config;
    void (*hook)(void) = fail_hook;
    volatile int whole = 0;
    fail_hook = verify_return;
    fail_quiet = 1;
    if (!setjmp(verify_back)) {
        checkpoint_path(path, folder, "DONE", updates);
        done_read(done, path);
        checkpoint_path(path, folder, "model", updates);
        model_open(&file, path, &config);
        file_close(&file);
        model_read(path, &config, rows_ignore, NULL);
        checkpoint_path(path, folder, "state", updates);
        state_read(path, &config, updates, rows_ignore, NULL);
        whole = 1;
    }
    fail_hook = hook;
    fail_quiet = 0;
    return whole;
}

// Prints a line for each checkpoint of a folder, the newest first, and for each file that belongs
// to none. Fails if a checkpoint is broken, or there is none.
static void checkpoints_verify(const char *folder) {
    char path[PATH_MAX], done_path[PATH_MAX];
    const char *kind;
    int unfinished, count = 0, broken = 0;
    Done done;
    int64_t updates = INT64_MAX;
    for (; (updates = checkpoint_find(folder, updates)) >= 0; count++) {
        printf("checkpoint %lld: ", (long long)updates);
        if (!checkpoint_verify(folder, updates, &done)) {
            printf("broken: %s\n", fail_message);
            broken++;
        } else if (done.empty) {
            printf("DONE is empty, as older versions left it; sizes, headers and numbers fit\n");
        } else {
            printf("whole, %.*s\n", (int)strcspn(done.record, "\n"), done.record);
        }
        fflush(stdout);
    }
    DIR *dir = checkpoints_open(folder);
    while (dir && (updates = checkpoints_next(dir, folder, path, &kind, &unfinished)) >= 0) {
        checkpoint_path(done_path, folder, "DONE", updates);
        if (!unfinished && !file_is_missing(done_path)) continue;
        printf("orphan: %s belongs to no checkpoint\n", text_printable(path));
    }
    if (dir) closedir(dir);
    if (!count) fail("%s: no checkpoint here", folder);
    if (broken) fail("%s: %d of %d checkpoints broken", folder, broken, count);
}

#endif
