// Token files: reading the text a model is trained on.
//
// A token file has a header of 256 int32 ([0] 20240520, [1] 1, [2] number of tokens, [3] vocabulary
// size V, 0 meaning GPT-2's 50257) and then one uint16 per token. A data set is one such file or a
// glob of shards, read as one long text. The files are mapped, not copied: a page that is never
// drawn is never read.
#ifndef TOKENS_H
#define TOKENS_H

#include "files.h"
#include <glob.h>
#include <signal.h>
#include <sys/mman.h>

enum { TOKENS_MAGIC = 20240520, TOKENS_VERSION = 1, GPT2_V = 50257 };

// Ids are checked when a data set is opened, so that a bad file stops a run before it starts. In
// sets so large that this would take minutes, the rest is checked as it is read.
#define TOKENS_CHECKED_AT_OPEN ((size_t)1 << 28)

typedef struct {
    char *path;
    void *map;           // the whole file
    size_t map_bytes;
    const uint16_t *ids; // its tokens
    size_t count;
    size_t last;         // the last of them that is not 0, or the first
    uint16_t last_id;    // what it is
} TokenShard;

typedef struct {
    TokenShard *shards; // in the order of their names
    int shard_count;
    size_t count; // tokens in all shards
    int V;        // vocabulary size: every id is below
} Tokens;

static void tokens_check_ids(const TokenShard *shard, size_t from, size_t n, int V) {
    unsigned largest = 0;
    for (size_t i = 0; i < n; i++) {
        largest = shard->ids[from + i] > largest ? shard->ids[from + i] : largest;
    }
    if (largest < (unsigned)V) return;
    size_t i = from;
    while (shard->ids[i] < V) i++;
    fail("%s: token %zu is %u, but the vocabulary has %d (ids 0 to %d)", shard->path, i,
         shard->ids[i], V, V - 1);
}

// Maps one file after checking magic, version, vocabulary and exact size. Returns its V.
static int tokens_map(TokenShard *shard, const char *path) {
    File file;
    int32_t header[HEADER_INTS];
    file_open(&file, path, "a token file");
    header_read(&file, header, TOKENS_MAGIC, TOKENS_VERSION, TOKENS_VERSION, "a token file");
    int V = header[3] ? header[3] : GPT2_V;
    if (header[2] < 1) fail("%s: header says %d tokens, expected at least 1", path, header[2]);
    if (V < 1 || V > 65536) {
        fail("%s: header says a vocabulary of %d, expected 1 to 65536", path, V);
    }
    size_t expected = HEADER_BYTES + (size_t)header[2] * sizeof(uint16_t);
    if (file.size != expected) {
        fail("%s: %zu bytes, but a header with %d tokens means %zu", path, file.size, header[2],
             expected);
    }
    void *map = mmap(NULL, file.size, PROT_READ, MAP_PRIVATE, fileno(file.stream), 0);
    if (map == MAP_FAILED) fail("%s: cannot map %zu bytes: %s", path, file.size, strerror(errno));
    file_close(&file);
    *shard = (TokenShard){.path = strdup(path), .map = map, .map_bytes = expected,
                          .ids = (const uint16_t *)((const char *)map + HEADER_BYTES),
                          .count = (size_t)header[2]};
    shard->last = shard->count - 1;
    while (shard->last > 0 && !shard->ids[shard->last]) shard->last--;
    shard->last_id = shard->ids[shard->last];
    return V;
}

static void tokens_close(Tokens *tokens) {
    for (int i = 0; i < tokens->shard_count; i++) {
        munmap(tokens->shards[i].map, tokens->shards[i].map_bytes);
        free(tokens->shards[i].path);
    }
    free(tokens->shards);
    memset(tokens, 0, sizeof *tokens);
}

// Shards in a folder that cannot be read must not go missing without a word.
static int folder_unreadable(const char *path, int error) {
    if (error != ENOENT) fail("%s: cannot read this folder: %s", path, strerror(error));
    return 0;
}

// glob says nothing of a folder that it need not list and cannot enter: b in "*/train.bin".
static void folders_check(const char *pattern) {
    char folder[PATH_MAX];
    glob_t found;
    int n = snprintf(folder, sizeof folder, "%s", pattern);
    if (n >= PATH_MAX || !pattern[0] || !strchr(pattern + 1, '/')) return;
    dirname(folder);
    if (strcmp(folder, pattern)) folders_check(folder); // "//" is its own folder
    if (glob(folder, 0, folder_unreadable, &found)) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        if (access(found.gl_pathv[i], X_OK) && errno == EACCES) {
            folder_unreadable(found.gl_pathv[i], errno);
        }
    }
    globfree(&found);
}

// Opens the file of this path, which may have brackets in it. Where there is none, it is a shell
// glob: opens all files that match, in the order of their names.
static void tokens_open(Tokens *tokens, const char *pattern) {
    glob_t found;
    char *path = (char *)pattern;
    int is_path = !access(path, F_OK);
    memset(tokens, 0, sizeof *tokens);
    if (!is_path) folders_check(pattern);
    if (is_path) {
        found.gl_pathc = 1;
        found.gl_pathv = &path;
    } else if (glob(pattern, 0, folder_unreadable, &found)) {
        fail("%s: no such token file; `make` prepares the default text, data/*.py others", pattern);
    }
    tokens->shards = ALLOC(TokenShard, found.gl_pathc, "token shards");
    size_t unchecked = TOKENS_CHECKED_AT_OPEN;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        TokenShard *shard = &tokens->shards[tokens->shard_count];
        int V = tokens_map(shard, found.gl_pathv[i]);
        tokens->shard_count++;
        if (tokens->V && V != tokens->V) {
            fail("%s: vocabulary of %d, but %s has %d", shard->path, V, tokens->shards[0].path,
                 tokens->V);
        }
        tokens->V = V;
        tokens->count += shard->count;
        size_t n = shard->count < unchecked ? shard->count : unchecked;
        tokens_check_ids(shard, 0, n, V);
        unchecked -= n;
    }
    if (!is_path) globfree(&found);
}

// A file that is cut while it is mapped reads as 0 up to the end of its last page. Its last token
// tells; behind that there were only zeros.
static void tokens_check_last(const TokenShard *shard) {
    if (*(const volatile uint16_t *)&shard->ids[shard->last] == shard->last_id) return;
    fail("%s: token %zu is another than before: the file was cut or changed while this run used it",
         shard->path, shard->last);
}

// Beyond that page, reading raises SIGBUS, in the midst of the functions here: none of what `fail`
// needs is half done then.
static const Tokens *tokens_watched[2];
static void tokens_lost(int number, siginfo_t *info, void *context) {
    (void)context;
    const char *at = (const char *)info->si_addr;
    for (int i = 0; i < 2; i++) {
        const Tokens *tokens = tokens_watched[i];
        for (const TokenShard *s = tokens->shards; s < tokens->shards + tokens->shard_count; s++) {
            const char *map = (const char *)s->map;
            if (at < map || at >= map + s->map_bytes) continue;
            fail("%s: byte %zu of %zu cannot be read: the file was cut while this run used it, or "
                 "its disk failed", s->path, (size_t)(at - map), s->map_bytes);
        }
    }
    signal(number, SIG_DFL); // not ours: it is raised again on return
}

// From here on a run says which of its files this was.
static void tokens_watch(const Tokens *train, const Tokens *val) {
    struct sigaction action = {};
    action.sa_sigaction = tokens_lost;
    action.sa_flags = SA_SIGINFO;
    tokens_watched[0] = train;
    tokens_watched[1] = val;
    sigaction(SIGBUS, &action, NULL);
}

// Copies tokens start .. start+n-1 of the data set; the caller keeps start + n <= count.
static void tokens_copy(const Tokens *tokens, size_t start, size_t n, int32_t *out) {
    for (const TokenShard *shard = tokens->shards; n > 0; shard++) {
        if (start >= shard->count) {
            start -= shard->count;
            continue;
        }
        size_t here = shard->count - start < n ? shard->count - start : n;
        tokens_check_ids(shard, start, here, tokens->V);
        for (size_t i = 0; i < here; i++) *out++ = shard->ids[start + i];
        tokens_check_last(shard);
        n -= here;
        start = 0;
    }
}

// A number that differs for different texts: of the length, the vocabulary and the first
// TOKENS_CHECKED_AT_OPEN tokens.
static uint64_t tokens_hash(const Tokens *tokens) {
    uint64_t hash = tokens->count ^ (uint64_t)tokens->V << 48, left = TOKENS_CHECKED_AT_OPEN;
    for (int i = 0; i < tokens->shard_count; i++) {
        for (size_t j = 0; j < tokens->shards[i].count && left > 0; j++, left--) {
            hash = (hash ^ tokens->shards[i].ids[j]) * 0x100000001B3u; // FNV-1a
        }
    }
    return hash;
}

// What text a token file was made from, as its script left it in source.txt beside it: the first
// line, and how long it is; 0 where there is none.
static size_t tokens_source(const char *data, char *line, size_t size) {
    char folder[PATH_MAX], path[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", data);
    path_join(path, dirname(folder), "source.txt");
    FILE *file = fopen(path, "r");
    line[0] = 0;
    if (!file) return 0;
    if (!fgets(line, (int)size, file)) line[0] = 0;
    fclose(file);
    line[strcspn(line, "\n")] = 0;
    return strlen(line);
}

#endif
