// A sweep's table, FOLDER/runs.tsv: a line of names, then one row per run, fields apart by tabs.
// dev/runs/sweep writes it, dev/runs/report and dev/runs/plot.sh read it.
//
// A table is replaced as a whole (data/files.h): after a power cut it is the old or the new one.
// Who replaces it holds the lock of its folder from reading to writing.
#ifndef TABLE_H
#define TABLE_H

#include "../../data/files.h"
#include <math.h>

enum { FIELDS_MAX = 64, ROWS_MAX = 100000 };

// The columns in the order in which they are written, and whether those of a row that is ok hold
// a number. The last stands in a table only where some row says something there.
#define COLUMNS(X)                                                                               \
    X(experiment, 0) X(pattern, 0) X(R, 1) X(rule, 0) X(seed, 1) X(options, 0)                   \
    X(merges_per_forward, 1) X(allreduces_per_update, 1) X(mib_per_update, 1) X(updates, 1)      \
    X(train_loss, 0) X(val_loss, 1) X(best_val_loss, 1) X(ms_per_update, 1) X(threads, 0)        \
    X(jobs, 1) X(machine, 0) X(program, 0) X(commit, 0) X(date, 0) X(text, 0) X(run, 0)          \
    X(status, 0) X(alone, 0)

#define X(name, number) C_##name,
enum { COLUMNS(X) COLUMN_COUNT };
#undef X
#define X(name, number) {#name, number},
static const struct { const char *name; int number; } columns[] = {COLUMNS(X)};
#undef X

typedef struct {
    const char *text[COLUMN_COUNT];
    double number[COLUMN_COUNT]; // NAN where there is none
    const char *path;            // of the table, and the line there
    int line;
    char *copy; // of the line: where the texts lie
} Run;

typedef struct {
    const char *path; // of the table that was read last
    Run *runs; // all rows
    int count, room, not_ok;
} Table;

// It ended well, and with a validation loss to judge.
static int run_is_ok(const Run *run) {
    return !strcmp(run->text[C_status], "ok") && strcmp(run->text[C_val_loss], "-");
}

// Whether the row says that the run had the machine to itself; only then its times mean something.
static int run_was_alone(const Run *run) { return !strncmp(run->text[C_alone], "yes", 3); }

static int line_split(char *line, char **fields) {
    int n = 0;
    for (char *rest = line; rest && n < FIELDS_MAX; n++) fields[n] = strsep(&rest, "\t");
    return n;
}

static double number_read(const char *path, int line, const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value)) {
        fail("%s:%d: column %s is '%s', expected a number", path, line, name, text);
    }
    return value;
}

// A row more, of fields of which those of column c stand at place[c], -1 for nowhere.
static Run *table_add(Table *table, int line, char **fields, const int *place) {
    if (table->count == ROWS_MAX) fail("%s:%d: more than %d runs", table->path, line, ROWS_MAX);
    if (table->count == table->room) {
        table->room = table->room ? 2 * table->room : 64;
        table->runs = realloc(table->runs, (size_t)table->room * sizeof *table->runs);
        if (!table->runs) fail("%s:%d: out of memory", table->path, line);
    }
    Run *run = &table->runs[table->count++];
    run->path = table->path;
    run->line = line;
    for (int c = 0; c < COLUMN_COUNT; c++) {
        run->text[c] = place[c] < 0 ? "-" : fields[place[c]];
        run->number[c] = NAN;
    }
    table->not_ok += !run_is_ok(run);
    return run;
}

// Fails unless the numbers of a row that is ok are numbers and the run has no earlier row.
static void row_check(const Table *table, Run *run) {
    for (int c = 0; c < COLUMN_COUNT && run_is_ok(run); c++) {
        if (!columns[c].number) continue;
        run->number[c] = number_read(table->path, run->line, columns[c].name, run->text[c]);
    }
    for (const Run *other = table->runs; other < run; other++) {
        if (strcmp(other->text[C_run], run->text[C_run])) continue;
        fail("%s:%d: the run %s has a row already: %s:%d", run->path, run->line, run->text[C_run],
             other->path, other->line);
    }
}

// Where each column stands in the line of names; -1 for nowhere.
static void header_places(char **names, int width, int *place) {
    for (int c = 0; c < COLUMN_COUNT; c++) {
        place[c] = 0;
        while (place[c] < width && strcmp(names[place[c]], columns[c].name)) place[c]++;
        if (place[c] == width) place[c] = -1;
    }
}

static void header_check(const char *path, int width, const int *place, int lenient) {
    int own = width == COLUMN_COUNT || (width == COLUMN_COUNT - 1 && place[C_alone] < 0);
    for (int c = 0; c < width && own; c++) own = place[c] == c;
    if (lenient && !own) {
        fail("%s: other columns than this dev/runs/sweep writes; use another -o", path);
    }
    for (int c = 0; c < C_alone; c++) {
        if (place[c] >= 0) continue;
        fail("%s:1: no column '%s'; is it a table of dev/runs/sweep?", path, columns[c].name);
    }
}

// Adds the rows of a file to a table, {} for the first. A table of several files is only read.
//
// For a page or a figure (lenient 0) columns are taken by their names, and what cannot be read is
// an error with its line: a page from half a table would look like a whole one. For a sweep
// (lenient 1) no table is one without rows, a line that cannot be read is not there and its run
// is run again, and the columns have to be its own.
static void table_read(Table *table, const char *path, int lenient) {
    char *line = NULL, *fields[FIELDS_MAX];
    size_t room = 0;
    ssize_t length;
    int place[COLUMN_COUNT], width = 0;
    table->path = path;
    FILE *file = fopen(path, "r");
    if (!file && lenient && errno == ENOENT) return;
    if (!file) fail("%s: %s; dev/runs/sweep writes it", path, strerror(errno));
    for (int number = 1; (length = getline(&line, &room, file)) > 0; number++) {
        int whole = line[length - 1] == '\n', text = !memchr(line, 0, (size_t)length);
        if (!whole && !lenient) {
            fail("%s:%d: cut off in the middle of a line; run dev/runs/sweep again", path, number);
        }
        if (!text && !lenient) {
            fail("%s:%d: holds a zero byte; is it a table of dev/runs/sweep?", path, number);
        }
        if (whole) line[length - 1] = 0;
        char *copy = strdup(line); // a row's texts point into it
        if (!copy) fail("%s:%d: out of memory", path, number);
        int n = line_split(copy, fields);
        if (number == 1) {
            width = n;
            header_places(fields, width, place);
            header_check(path, width, place, lenient);
        } else if (n != width && !lenient) {
            fail("%s:%d: %d columns, expected %d as in the first line", path, number, n, width);
        } else if (n == width && whole && text) {
            Run *run = table_add(table, number, fields, place);
            run->copy = copy;
            if (!lenient) row_check(table, run);
            continue;
        }
        free(copy);
    }
    if (ferror(file)) fail("%s: read error: %s", path, strerror(errno));
    free(line);
    fclose(file);
    if (!width && !lenient) {
        fail("%s: empty; dev/runs/sweep writes a first line of names and one line per run", path);
    }
}

static void table_free(Table *table) {
    for (int i = 0; i < table->count; i++) free(table->runs[i].copy);
    free(table->runs);
    *table = (Table){};
}

// The row of a run, NULL when it has none.
static const Run *table_find(const Table *table, const char *run) {
    for (int i = table->count - 1; i >= 0; i--) {
        if (!strcmp(table->runs[i].text[C_run], run)) return &table->runs[i];
    }
    return NULL;
}

static void row_write(File *file, const char *const *text, int width) {
    for (int c = 0; c < width; c++) {
        file_write(file, text[c], strlen(text[c]));
        file_write(file, c < width - 1 ? "\t" : "\n", 1);
    }
}

// Puts a row in place of its run's earlier one. Contract: the caller holds the folder's lock.
static void table_put(const char *path, const char *const text[COLUMN_COUNT]) {
    const char *names[COLUMN_COUNT];
    Table table = {};
    File file;
    table_read(&table, path, 1);
    int width = strcmp(text[C_alone], "-") ? COLUMN_COUNT : COLUMN_COUNT - 1;
    for (int i = 0; i < table.count; i++) {
        if (strcmp(table.runs[i].text[C_alone], "-")) width = COLUMN_COUNT;
    }
    for (int c = 0; c < COLUMN_COUNT; c++) names[c] = columns[c].name;
    file_create(&file, path);
    row_write(&file, names, width);
    for (int i = 0; i < table.count; i++) {
        const char *const *row = table.runs[i].text;
        if (strcmp(row[C_run], text[C_run])) row_write(&file, row, width);
    }
    row_write(&file, text, width);
    file_commit(&file);
    table_free(&table);
}

#endif
