// Checkpoints: models and optimizer state on disk, always as whole tensors, so that a file fits
// every process mesh.
//
//   OUT/model_%08d.bin   llm.c's model file, version 3 (fp32; version 5, bf16, is read too)
//   OUT/state_%08d.bin   the two AdamW moments, fp32, in the order of the model file
//   OUT/DONE_%08d        empty, written last: a checkpoint without it does not exist
//
// What a process holds of a tensor is its own affair: it hands over and takes rows of whole tensors
// through a function.
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "../tp_blocks.h"
#include <dirent.h>

enum {
    MODEL_MAGIC = 20240326,
    MODEL_FP32 = 3,
    MODEL_BF16 = 5,
    STATE_MAGIC = 20261121,
    STATE_VERSION = 1
};
enum { SET_PARAMS, SET_MOMENT1, SET_MOMENT2 }; // which copy of the parameter table a row belongs to

// Where things stand in a model header. The extension from H_R on is zero in llm.c's files.
enum { H_MAXT = 2, H_V, H_L, H_NH, H_C, H_VP, H_R, H_RULE, H_PATTERN_LENGTH, H_PATTERN,
       H_REMOVED = H_PATTERN + PATTERN_MAX, H_STATE_STEP = H_R };
enum { H_REMOVED_COUNT = 2 }; // flags of block variants that were tried and removed

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
    if (pattern_is_plain(c->pattern)) return;
    h[H_R] = c->R;
    h[H_RULE] = c->rule;
    h[H_PATTERN_LENGTH] = (int32_t)strlen(c->pattern);
    for (int i = 0; c->pattern[i]; i++) h[H_PATTERN + i] = c->pattern[i];
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
    range_check(path, "the length of the pattern", h[H_PATTERN_LENGTH], 0, PATTERN_MAX);
    for (int i = 0; i < h[H_PATTERN_LENGTH]; i++) {
        int letter = h[H_PATTERN + i];
        if (letter < 1 || letter > 127 || !strchr(PATTERN_LETTERS, letter)) {
            fail("%s: character %d of the block pattern has code %d, expected one of %s", path, i,
                 letter, PATTERN_LETTERS);
        }
        c->pattern[i] = (char)letter;
    }
    for (int i = 0; i < H_REMOVED_COUNT; i++) {
        if (!h[H_REMOVED + i]) continue;
        fail("%s: header field %d is %d, expected 0: the model was trained with scaled partial "
             "outputs or LayerNorms of each rank's own, which helped nothing and were removed",
             path, H_REMOVED + i, h[H_REMOVED + i]);
    }
    if (!c->pattern[0]) memcpy(c->pattern, "t", 2); // plain GPT-2
    char where[PATH_MAX + 32], letters[L_MAX + 1], closes[L_MAX];
    snprintf(where, sizeof where, "%s: block pattern", path);
    pattern_lay(letters, closes, c->pattern, c->L, where);
}

// ----------------------------------------------------------------------------
// bodies

static float float_from_bf16(uint16_t half) {
    union { uint32_t bits; float value; } u = {.bits = (uint32_t)half << 16};
    return u.value;
}

// Reads one copy of all tensors and hands it over row by row.
static void tensors_read(File *file, const ParamSpec specs[P_COUNT], int bf16, int set,
                         RowsPut *put, void *owner) {
    float *values = NULL;
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
                put(owner, set, p, layer, row, rows, values);
            }
        }
    }
    free(values);
}

// The same outwards. `file` is NULL in processes that only take part in gathering.
static void tensors_write(File *file, const ParamSpec specs[P_COUNT], int set, RowsGet *get,
                          void *owner) {
    for (int p = 0; p < P_COUNT; p++) {
        const ParamSpec *spec = &specs[p];
        int step = rows_at_once(spec);
        float *values = ALLOC(float, (size_t)step * spec->cols, "checkpoint rows");
        for (int layer = 0; layer < spec->layers; layer++) {
            for (int row = 0; row < spec->rows; row += step) {
                int rows = row + step <= spec->rows ? step : spec->rows - row;
                get(owner, set, p, layer, row, rows, values);
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

static void model_write(const char *path, const GPT2Config *config, int writer, RowsGet *get,
                        void *owner) {
    File file;
    int32_t header[HEADER_INTS];
    ParamSpec specs[P_COUNT];
    param_specs(specs, config);
    model_header_make(header, config);
    if (writer) {
        file_create(&file, path);
        file_write(&file, header, sizeof header);
    }
    tensors_write(writer ? &file : NULL, specs, SET_PARAMS, get, owner);
    if (writer) file_commit(&file);
}

// ----------------------------------------------------------------------------
// optimizer state: header as the model's to [7], then [8] updates done

static void state_write(const char *path, const GPT2Config *config, int64_t updates, int writer,
                        RowsGet *get, void *owner) {
    File file;
    int32_t header[HEADER_INTS] = {STATE_MAGIC, STATE_VERSION};
    ParamSpec specs[P_COUNT];
    param_specs(specs, config);
    header_from_config(header, config);
    header[H_STATE_STEP] = (int32_t)updates;
    if (writer) {
        file_create(&file, path);
        file_write(&file, header, sizeof header);
    }
    tensors_write(writer ? &file : NULL, specs, SET_MOMENT1, get, owner);
    tensors_write(writer ? &file : NULL, specs, SET_MOMENT2, get, owner);
    if (writer) file_commit(&file);
}

static void state_read(const char *path, const GPT2Config *config, int64_t updates, RowsPut *put,
                       void *owner) {
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
    file_close(&file);
}

// ----------------------------------------------------------------------------
// a folder of checkpoints

// `kind` is "model", "state" or "DONE".
static void checkpoint_path(char out[PATH_MAX], const char *folder, const char *kind,
                            int64_t updates) {
    char name[32];
    snprintf(name, sizeof name, "%s_%08d%s", kind, (int)updates,
             strcmp(kind, "DONE") ? ".bin" : "");
    path_join(out, folder, name);
}

// The newest checkpoint older than `below` (INT64_MAX for the newest), or -1.
static int64_t checkpoint_find(const char *folder, int64_t below) {
    int64_t newest = -1;
    DIR *dir = opendir(folder);
    if (!dir) return -1;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        char *end;
        if (strncmp(entry->d_name, "DONE_", 5) || strlen(entry->d_name) != 13) continue;
        int64_t updates = strtol(entry->d_name + 5, &end, 10);
        if (!*end && updates < below && updates > newest) newest = updates;
    }
    closedir(dir);
    return newest;
}

// Removes checkpoints beyond the newest `keep`, DONE first, so that what is half removed does not
// exist.
static void checkpoint_prune(const char *folder, int64_t keep) {
    char path[PATH_MAX];
    int64_t updates = INT64_MAX;
    for (int64_t i = 0; (updates = checkpoint_find(folder, updates)) >= 0; i++) {
        if (i < keep) continue;
        static const char *const kinds[] = {"DONE", "state", "model"};
        for (int k = 0; k < 3; k++) {
            checkpoint_path(path, folder, kinds[k], updates);
            unlink(path);
        }
    }
    folder_sync(path);
}

// Writes checkpoint `updates`, and removes all but the newest `keep` (0: none). Processes that pass
// writer 0 only take part in gathering; one passes 1.
static void checkpoint_write(const char *folder, const GPT2Config *config, int64_t updates,
                             int64_t keep, int writer, RowsGet *get, void *owner) {
    char path[PATH_MAX];
    File done;
    checkpoint_path(path, folder, "model", updates);
    model_write(path, config, writer, get, owner);
    checkpoint_path(path, folder, "state", updates);
    state_write(path, config, updates, writer, get, owner);
    if (!writer) return;
    checkpoint_path(path, folder, "DONE", updates);
    file_create(&done, path);
    file_commit(&done);
    if (keep) checkpoint_prune(folder, keep);
}

#endif
