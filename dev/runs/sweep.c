/*
Runs lists of experiments, a bounded number at a time, and writes one row per run into a table.

  make dev/runs/sweep
  dev/runs/sweep -j 2 -o out/shakespeare dev/runs/shakespeare.list
  dev/runs/sweep --help                     the options, what a list holds, what a row says

Three processes stand behind each run: the sweep, a worker that it forks per run, and the trainer
that the worker starts. Each may die at any moment. The worker notes the trainer's exit status in a
file and only then writes the row, so that a worker whose sweep is gone ends its run all the same,
and a later sweep writes the row of a worker that is gone. The lock of a run's folder is inherited
by the trainer: it is held as long as anybody is at work there.

It is no scheduler: it knows one machine, and for several GPUs or hosts the experiment's script
starts what it needs.
*/
#define _GNU_SOURCE // nftw, sched_getaffinity
#include "table.h"
#include <ctype.h>
#include <dirent.h>
#include <fnmatch.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

static const char help[] =
    "Runs lists of experiments and writes one row per run into FOLDER/runs.tsv.\n"
    "\n"
    "  dev/runs/sweep [-j JOBS] [-o FOLDER] [-k] [-n] [--retry] [--alone] LIST...\n"
    "  dev/runs/sweep -j 2 -o out/shakespeare dev/runs/shakespeare.list\n"
    "\n"
    "1 job and out/sweep, unless said. A LIST of - is standard input.\n"
    "\n"
    "A list has one run per line: SCRIPT PATTERN R RULE SEED [OPTION VALUE]...; `#` begins a\n"
    "comment. A SEED of 1337-1339 is three runs; a list's runs of first seeds come first. SCRIPT\n"
    "is a name in dev/runs, or a path; it ends in `. dev/runs/run.sh`, or prints its program and\n"
    "ends where SHOW=trainer is in its environment. A run's folder is\n"
    "FOLDER/SCRIPT/PATTERN_R.._RULE_SEED.., with its main.log. Its checkpoints are removed when\n"
    "it has ended well, unless -k keeps them. -n only prints each run and its status. Each run\n"
    "gets cores/JOBS OpenMP threads (OMP_NUM_THREADS overrules).\n"
    "\n"
    "Any of it may be stopped at any moment: the same command goes on. What has a row is not run\n"
    "again: `ok` rows never, `failed: WHY` rows only with --retry, `interrupted: signal N` rows\n"
    "always. A run with a checkpoint goes on from it (-y 1), others begin again. kill -9 of the\n"
    "sweep alone leaves its runs at work: they end and write their rows, and the next sweep waits\n"
    "for them. A lock on each run's folder, which the trainer holds too, makes several sweeps in\n"
    "one FOLDER safe: they take turns.\n"
    "\n"
    "Every number of a row is read from the run's main.log; absent ones are `-`. `ms` is the\n"
    "median over updates, and says little when the machine was busy. --alone, with 1 job, notes\n"
    "whether it was: a column `alone` says `yes` where everybody else kept at most 0.10 cores\n"
    "busy while the run was at work, and `no` elsewhere. Only times with a `yes` are reported. It\n"
    "looks at the processors of this machine, not at GPUs or the network.\n"
    "\n"
    "Exit status: 0 all rows ok, 1 some are not or could not be written, 2 wrong use, 130\n"
    "stopped by a signal.\n";

static const double alone_most = 0.10; // cores that others may keep busy beside a run that is alone

enum { WORDS_MAX = 200, TEXT_MAX = 1024 };

typedef struct {
    char *name;       // EXPERIMENT/PATTERN..: its folder in the sweep's, and its key in the table
    char *experiment; // the script's name, see experiment_name
    char *script;     // an absolute path
    char *line;       // where the words lie
    char *words[WORDS_MAX]; // SCRIPT PATTERN R RULE SEED, then the options
    int count;
    int turn;      // the runs of a list come by it: which seed of the line's this is, from 0
    char *options; // in one text
    pid_t worker;
    time_t began;
    enum { ENDED, WAITING, AT_WORK } state;
} Task;

enum { W_SCRIPT, W_PATTERN, W_R, W_RULE, W_SEED, W_OPTIONS };

static struct {
    int jobs, keep, retry, show, alone;
    char root[PATH_MAX], folder[PATH_MAX], table[PATH_MAX];
    char machine[TEXT_MAX], commit[TEXT_MAX];
    sigset_t signals_before; // what was blocked when the sweep began, for the runs
    Task *tasks;
    int count;
} sweep = {.jobs = 1};

// ----------------------------------------------------------------------------
// small things

static void exit_wrong_use(void) { exit(2); }
static void exit_worker(void) { exit(1); }

// Formats into a buffer; fails when the text does not fit.
__attribute__((format(printf, 3, 4))) static void format(char *out, size_t size, const char *how,
                                                         ...) {
    va_list arguments;
    va_start(arguments, how);
    int n = vsnprintf(out, size, how, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= size) fail("%s...: longer than %zu characters", out, size - 1);
}

static char *copy_of(const char *text) {
    char *copy = strdup(text);
    if (!copy) fail("out of memory for '%s'", text);
    return copy;
}

static void text_write(const char *folder, const char *name, const char *text) {
    char path[PATH_MAX];
    File file;
    path_join(path, folder, name);
    file_create(&file, path);
    file_write(&file, text, strlen(text));
    file_write(&file, "\n", 1);
    file_commit(&file);
}

// The first line of a small file. Returns whether there is one.
static int text_read(const char *folder, const char *name, char *out, size_t size) {
    char path[PATH_MAX];
    path_join(path, folder, name);
    FILE *file = fopen(path, "r");
    int found = file && fgets(out, (int)size, file);
    if (file) fclose(file);
    if (found) out[strcspn(out, "\n")] = 0;
    return found;
}

static int name_exists(const char *folder, const char *name) {
    char path[PATH_MAX];
    path_join(path, folder, name);
    return !access(path, F_OK);
}

static void name_remove(const char *folder, const char *name) {
    char path[PATH_MAX];
    path_join(path, folder, name);
    unlink(path);
}

// How many entries of a folder match a pattern; removes them when `removes`.
static int names_matching(const char *folder, const char *pattern, int removes) {
    DIR *entries = opendir(folder);
    int n = 0;
    if (!entries) return 0;
    for (struct dirent *e = readdir(entries); e; e = readdir(entries)) {
        if (fnmatch(pattern, e->d_name, 0)) continue;
        if (removes) name_remove(folder, e->d_name);
        n++;
    }
    closedir(entries);
    return n;
}

// For nftw: removes everything but the folder itself and its lock.
static int entry_remove(const char *path, const struct stat *info, int kind, struct FTW *at) {
    (void)info, (void)kind;
    int stays = at->level == 0 || (at->level == 1 && !strcmp(path + at->base, "lock"));
    return stays ? 0 : remove(path);
}

static void folder_empty(const char *folder) {
    if (!nftw(folder, entry_remove, 16, FTW_DEPTH | FTW_PHYS)) return;
    fail("%s: cannot be emptied: %s", folder, strerror(errno));
}

static int lock_open(const char *folder, int flags) {
    char path[PATH_MAX];
    path_join(path, folder, "lock");
    int lock = open(path, O_WRONLY | O_APPEND | O_CREAT | flags, 0666);
    if (lock < 0) fail("%s: cannot be opened: %s", path, strerror(errno));
    return lock;
}

static void lock_take(int lock, const char *folder) {
    while (flock(lock, LOCK_EX)) {
        if (errno != EINTR) fail("%s/lock: cannot be locked: %s", folder, strerror(errno));
    }
}

// What a command prints to standard output, without the newlines at its end. SHOW is put into its
// environment, or when NULL what it says to stderr goes nowhere. Returns its exit status as a
// shell would, 128 and the signal's number for one that was killed.
static int command_output(char *out, size_t size, char *const argv[], const char *show) {
    int ends[2], status;
    size_t used = 0;
    char rest[TEXT_MAX];
    if (pipe(ends)) fail("%s: no pipe: %s", argv[0], strerror(errno));
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) fail("%s: cannot be started: %s", argv[0], strerror(errno));
    if (!child) {
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(ends[1], 1);
        if (show) setenv("SHOW", show, 1);
        else dup2(nowhere, 2);
        close(ends[0]);
        execvp(argv[0], argv);
        if (show) fprintf(stderr, "error: %s: cannot be started: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    close(ends[1]);
    for (;;) { // to its end, or the command would die of a closed pipe
        int fits = used < size - 1;
        ssize_t n = fits ? read(ends[0], out + used, size - 1 - used)
                         : read(ends[0], rest, sizeof rest);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        if (fits) used += (size_t)n;
    }
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    while (used && out[used - 1] == '\n') used--;
    out[used] = 0;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int is_program(const char *path) {
    struct stat info;
    return !stat(path, &info) && S_ISREG(info.st_mode) && !access(path, X_OK);
}

// Where a program lies: as named, or a name without a folder in PATH. Returns whether it does.
static int program_find(const char *name, char out[PATH_MAX]) {
    const char *path = getenv("PATH");
    char *folders = copy_of(path ? path : "/usr/bin:/bin"), *rest = folders;
    int found = 0;
    if (strchr(name, '/')) {
        format(out, PATH_MAX, "%s", name);
        found = is_program(out);
    } else {
        while (rest && !found) {
            const char *folder = strsep(&rest, ":");
            path_join(out, *folder ? folder : ".", name);
            found = is_program(out);
        }
    }
    free(folders);
    return found;
}

// The program that a script would start, as the script names it.
static int script_program(const char *script, char *out, size_t size) {
    return command_output(out, size, (char *[]){(char *)script, "OUT", "t", NULL}, "trainer");
}

static void program_hash(const char *name, char out[TEXT_MAX]) {
    char path[PATH_MAX], printed[TEXT_MAX];
    snprintf(out, TEXT_MAX, "-");
    if (!program_find(name, path)) return;
    if (command_output(printed, sizeof printed, (char *[]){"sha256sum", path, NULL}, NULL)) return;
    snprintf(out, TEXT_MAX, "%.12s", printed + (printed[0] == '\\')); // escapes odd names
}

// ----------------------------------------------------------------------------
// lists

static uint32_t crc_byte(uint32_t crc, uint32_t byte) {
    crc ^= byte << 24;
    for (int bit = 0; bit < 8; bit++) {
        uint32_t carry = crc & 0x80000000u ? 0x04C11DB7u : 0;
        crc = crc << 1 ^ carry;
    }
    return crc;
}

// What cksum prints for a text and a newline.
static uint32_t text_checksum(const char *text) {
    size_t length = strlen(text);
    uint32_t crc = 0;
    for (size_t i = 0; i < length; i++) crc = crc_byte(crc, (unsigned char)text[i]);
    crc = crc_byte(crc, '\n');
    for (size_t n = length + 1; n; n >>= 8) crc = crc_byte(crc, n & 255);
    return ~crc;
}

static void word_check(const char *where, const char *what, const char *word, int (*kind)(int),
                       const char *expected) {
    int good = word[0] != 0;
    for (const char *c = word; *c; c++) good &= kind((unsigned char)*c) != 0;
    if (!good) fail("%s: %s '%s': expected %s", where, what, word, expected);
}

static int is_letter(int c) { return c >= 'a' && c <= 'z'; }
static int is_letter_or_dot(int c) { return is_letter(c) || c == '.'; }

// The absolute path of a list's SCRIPT.
static char *script_path(const char *where, const char *word) {
    char path[PATH_MAX], folder[PATH_MAX], absolute[PATH_MAX];
    if (strchr(word, '/')) format(path, sizeof path, "%s", word);
    else format(path, sizeof path, "%s/dev/runs/%s.sh", sweep.root, word);
    if (!is_program(path)) fail("%s: %s: no such script", where, path);
    format(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    if (!realpath(folder[0] ? folder : "/", absolute)) {
        fail("%s: %s: %s", where, folder, strerror(errno));
    }
    format(folder, sizeof folder, "%s%s", strcmp(absolute, "/") ? absolute : "",
           strrchr(path, '/'));
    return copy_of(folder);
}

// PATTERN_R.._RULE_SEED and, made fit for a path, the options.
static void task_slug(const Task *task, char out[PATH_MAX]) {
    char *const *w = task->words;
    const char *plain = ".-", *options = task->options;
    char options_name[PATH_MAX], checksum[32] = "";
    int odd = 0;
    format(options_name, sizeof options_name, "%s", options);
    for (char *c = options_name; *c; c++) {
        if (isalnum((unsigned char)*c) || strchr(plain, *c)) continue;
        odd |= *c != ' ';
        *c = '_';
    }
    if (odd) format(checksum, sizeof checksum, "_%u", text_checksum(options)); // a/b is not a_b
    format(out, PATH_MAX, "%s_R%s_%s_%s%s%s%s", w[W_PATTERN], w[W_R], w[W_RULE], w[W_SEED],
           *options ? "_" : "", options_name, checksum);
}

// A run of a list's line, if there is anything in it.
static void task_read(const char *where, const char *text, int turn) {
    Task task = {.line = copy_of(text), .turn = turn};
    char options[PATH_MAX] = "", *rest = NULL;
    char *all = copy_of(task.line);
    for (char *word = strtok_r(task.line, " \t\n", &rest); word;
         word = strtok_r(NULL, " \t\n", &rest)) {
        if (task.count == WORDS_MAX) fail("%s: more than %d words", where, WORDS_MAX);
        task.words[task.count++] = word;
    }
    if (task.count && task.count < W_OPTIONS) {
        all[strcspn(all, "\n")] = 0;
        fail("%s: '%s': expected SCRIPT PATTERN R RULE SEED [OPTION VALUE]...", where, all);
    }
    free(all);
    if (!task.count) {
        free(task.line);
        return;
    }
    task.script = script_path(where, task.words[W_SCRIPT]);
    word_check(where, "pattern", task.words[W_PATTERN], is_letter_or_dot, "letters and dots");
    word_check(where, "R", task.words[W_R], isdigit, "a number");
    word_check(where, "merge rule", task.words[W_RULE], is_letter, "sum, mean or streams");
    word_check(where, "seed", task.words[W_SEED], isdigit, "a number");
    for (int i = W_OPTIONS; i < task.count; i++) {
        size_t used = strlen(options);
        format(options + used, sizeof options - used, "%s%s", used ? " " : "", task.words[i]);
    }
    task.options = copy_of(options);
    sweep.tasks = realloc(sweep.tasks, (size_t)(sweep.count + 1) * sizeof *sweep.tasks);
    if (!sweep.tasks) fail("%s: out of memory", where);
    sweep.tasks[sweep.count++] = task;
}

// A run for every seed of the line.
static void line_read(const char *where, char *line) {
    unsigned first, last;
    int at = 0, end = 0;
    line[strcspn(line, "#")] = 0;
    if (sscanf(line, "%*s %*s %*s %*s %n%9u-%9u%n", &at, &first, &last, &end) < 2 || !end) {
        task_read(where, line, 0);
        return;
    }
    if (last < first || last - first >= 1000) {
        fail("%s: seeds %u-%u: expected FIRST-LAST, at most 1000", where, first, last);
    }
    for (unsigned seed = first; seed <= last; seed++) {
        char *one = NULL;
        if (asprintf(&one, "%.*s%u%s", at, line, seed, line + end) < 0) fail("out of memory");
        task_read(where, one, (int)(seed - first));
        free(one);
    }
}

static void list_read(const char *path) {
    if (!strcmp(path, "-")) path = "/dev/stdin";
    FILE *file = fopen(path, "r");
    struct stat info;
    char *line = NULL, where[PATH_MAX + 32];
    size_t room = 0;
    int begin = sweep.count;
    if (!file) fail("%s: no such list", path);
    if (!fstat(fileno(file), &info) && S_ISDIR(info.st_mode)) {
        fail("%s: a folder, expected a list, such as %s/NAME.list", path, path);
    }
    for (int number = 1; getline(&line, &room, file) > 0; number++) {
        format(where, sizeof where, "%s:%d", path, number);
        line_read(where, line);
    }
    for (int i = begin + 1; i < sweep.count; i++) { // by turns, else as they stand
        Task task = sweep.tasks[i];
        int at = i;
        for (; at > begin && sweep.tasks[at - 1].turn > task.turn; at--) {
            sweep.tasks[at] = sweep.tasks[at - 1];
        }
        sweep.tasks[at] = task;
    }
    if (ferror(file)) fail("%s: read error: %s", path, strerror(errno));
    free(line);
    fclose(file);
}

// The name under which a script's runs stand: its own, without .sh. Where it is another script's
// already, in this sweep or by the file `script` of an earlier one, the checksum of the path tells
// the two apart. In the repository the path counts from its root, so that it may be moved.
// Contract: the caller holds the folder's lock, or only shows.
static char *experiment_name(const Task *task) {
    char base[NAME_MAX + 1], folder[PATH_MAX], owner[PATH_MAX], name[NAME_MAX + 16];
    const char *path = task->script;
    size_t n = strlen(sweep.root);
    if (!strncmp(path, sweep.root, n) && path[n] == '/') path += n + 1;
    format(base, sizeof base, "%s", strrchr(task->script, '/') + 1);
    size_t length = strlen(base);
    if (length > 3 && !strcmp(base + length - 3, ".sh")) base[length - 3] = 0;
    path_join(folder, sweep.folder, base);
    int noted = text_read(folder, "script", owner, sizeof owner);
    int taken = noted && strcmp(owner, path);
    for (const Task *other = sweep.tasks; other < task; other++) {
        if (!strcmp(other->script, task->script)) return copy_of(other->experiment);
        taken |= !strcmp(other->experiment, base);
    }
    format(name, sizeof name, taken ? "%s_%u" : "%s", base, text_checksum(path));
    path_join(folder, sweep.folder, name);
    if (!sweep.show && (!noted || taken)) {
        folder_create(folder);
        text_write(folder, "script", path);
    }
    return copy_of(name);
}

// Names the runs, and drops those listed before.
static void tasks_name(void) {
    int lock = sweep.show ? -1 : lock_open(sweep.folder, O_CLOEXEC), kept = 0;
    char slug[PATH_MAX], name[PATH_MAX];
    if (!sweep.show) lock_take(lock, sweep.folder);
    for (int i = 0; i < sweep.count; i++) {
        sweep.tasks[i].experiment = experiment_name(&sweep.tasks[i]);
        task_slug(&sweep.tasks[i], slug);
        path_join(name, sweep.tasks[i].experiment, slug);
        sweep.tasks[i].name = copy_of(name);
    }
    if (!sweep.show) close(lock);
    for (int i = 0; i < sweep.count; i++) {
        int j = 0;
        while (j < kept && strcmp(sweep.tasks[j].name, sweep.tasks[i].name)) j++;
        if (j < kept) continue;
        Task first = sweep.tasks[kept];
        sweep.tasks[kept++] = sweep.tasks[i];
        sweep.tasks[i] = first; // what is dropped stays behind the last
    }
    sweep.count = kept;
}

// ----------------------------------------------------------------------------
// rows

// The status in a run's row, "" when it has none.
static void row_status(const Task *task, char out[TEXT_MAX]) {
    Table table = {};
    table_read(&table, sweep.table, 1);
    const Run *row = table_find(&table, task->name);
    snprintf(out, TEXT_MAX, "%s", row ? row->text[C_status] : "");
    table_free(&table);
}

static int is_done(const Task *task) {
    char status[TEXT_MAX];
    row_status(task, status);
    return !strcmp(status, "ok") || (!strncmp(status, "failed:", 7) && !sweep.retry);
}

static int is_ok(const Task *task) {
    char status[TEXT_MAX];
    row_status(task, status);
    return !strcmp(status, "ok");
}

// What a log says, as it says it. A log goes on after a resume: the last fact counts.
typedef struct {
    char merges[64], allreduces[64], mib[64], updates[64], train[64], best[64], val[64];
    char threads[64], gpu[TEXT_MAX], text[PATH_MAX];
    long gpus;
    double at, at_val; // the last update, and the last that was followed by a validation
    double drawn, drawn_allreduces, drawn_mib; // updates of -pe so far, and what they add up to
    double *ms;        // of each update
    size_t count, room;
} Facts;

static void fact_put(char *out, size_t size, const char *text, size_t length) {
    snprintf(out, size, "%.*s", (int)length, text);
    for (char *c = out; *c; c++) *c = (unsigned char)*c < 32 ? ' ' : *c;
}

#define FACT(out, text, length) fact_put(out, sizeof(out), text, length)

// The word after a key; without the key, nothing.
static void fact_after(char *out, size_t size, const char *line, const char *key) {
    const char *found = strstr(line, key);
    const char *word = found ? found + strlen(key) : "";
    fact_put(out, size, word, strcspn(word, " "));
}

// Whether a text is a number and nothing more.
static int is_number(const char *text) { return *text && !text[strspn(text, "0123456789.")]; }

static void facts_update(Facts *f, const char *path, double update, const char *rest) {
    const char *comm = NULL, *ms = NULL;
    char number[32] = "";
    for (const char *c = strstr(rest, " comm:"); c; c = strstr(c + 1, " comm:")) comm = c + 6;
    if (comm) FACT(number, comm, strcspn(comm, " ")); // behind it, what -kd and -pe say
    if (!is_number(number)) return;                   // cut short
    f->at = update;
    fact_after(f->train, sizeof f->train, rest, "trl:");
    fact_after(f->allreduces, sizeof f->allreduces, rest, " ar:");
    fact_after(f->mib, sizeof f->mib, rest, " mb:");
    if (strstr(rest, " pe:")) { // of each pattern another: the mean
        f->drawn++;
        f->drawn_allreduces += strtod(f->allreduces, NULL);
        f->drawn_mib += strtod(f->mib, NULL);
        format(f->allreduces, sizeof f->allreduces, "%.6g", f->drawn_allreduces / f->drawn);
        format(f->mib, sizeof f->mib, "%.2f", f->drawn_mib / f->drawn);
    }
    for (const char *c = strstr(rest, " ms:"); c; c = strstr(c + 1, " ms:")) ms = c + 4;
    if (!ms) return;
    if (f->count == f->room) {
        f->room = f->room ? 2 * f->room : 1024;
        f->ms = realloc(f->ms, f->room * sizeof *f->ms);
        if (!f->ms) fail("%s: out of memory for %zu updates", path, f->room);
    }
    f->ms[f->count++] = strtod(ms, NULL);
}

static void facts_validation(Facts *f, double update, const char *loss) {
    if (!is_number(loss)) return;
    int better = !f->best[0] || strtod(loss, NULL) < strtod(f->best, NULL);
    f->at_val = update;
    FACT(f->val, loss, strlen(loss));
    if (better) FACT(f->best, loss, strlen(loss));
}

// "# updates 0 to 2000", "# mesh ..., 2 threads each", "# process 0 host ... on GPU 0, NAME", ...
static void facts_header(Facts *f, const char *line) {
    char key[64] = "", word[64] = "", third[64] = "";
    sscanf(line, "# %63s %63s %*s %63s", key, word, third);
    if (!strcmp(key, "merges_per_forward")) FACT(f->merges, word, strlen(word));
    if (!strcmp(key, "updates")) FACT(f->updates, third, strlen(third));
    if (!strncmp(line, "# text ", 7)) FACT(f->text, line + 7, strlen(line + 7));
    if (!strcmp(key, "mesh")) {
        const char *number = strstr(line, " threads each");
        if (!number) number = strstr(line, " thread each");
        while (number && number > line && isdigit((unsigned char)number[-1])) number--;
        if (number) FACT(f->threads, number, strcspn(number, " "));
    }
    if (!strcmp(key, "process")) {
        const char *gpu = strstr(line, " on GPU ");
        gpu = gpu ? strstr(gpu, ", ") : NULL;
        if (gpu) FACT(f->gpu, gpu + 2, strlen(gpu + 2));
        if (gpu && atol(word) >= f->gpus) f->gpus = atol(word) + 1; // processes count from 0
    }
}

static void log_read(Facts *f, const char *folder) {
    char path[PATH_MAX], *line = NULL;
    size_t room = 0;
    ssize_t length;
    *f = (Facts){};
    path_join(path, folder, "main.log");
    FILE *file = fopen(path, "r");
    while (file && (length = getline(&line, &room, file)) > 0) {
        if (line[length - 1] != '\n') continue; // cut short
        line[length - 1] = 0;
        char *rest = line + 2;
        size_t digits = strncmp(line, "s:", 2) ? 0 : strspn(rest, "0123456789");
        if (!strncmp(line, "# ", 2)) facts_header(f, line);
        if (!digits || rest[digits] != ' ') continue;
        double update = strtod(rest, &rest);
        if (!strncmp(rest, " tel:", 5)) facts_validation(f, update, rest + 5);
        if (!strncmp(rest, " trl:", 5)) facts_update(f, path, update, rest + 1);
    }
    free(line);
    if (file) fclose(file);
}

static void facts_median(const Facts *f, char *out, size_t size) {
    snprintf(out, size, "-");
    if (!f->count) return;
    qsort(f->ms, f->count, sizeof *f->ms, compare_ascending);
    snprintf(out, size, "%.1f", (f->ms[(f->count - 1) / 2] + f->ms[f->count / 2]) / 2);
}

// What a run that failed said: the first line that begins with "error:", or else the last one;
// white space in it is one blank each.
static void error_read(const char *folder, char out[304]) {
    char path[PATH_MAX], *line = NULL, *found = NULL;
    size_t room = 0, used = 0;
    path_join(path, folder, "stderr");
    FILE *file = fopen(path, "r");
    while (file && getline(&line, &room, file) > 0) {
        int error = !strncmp(line, "error:", 6);
        free(found);
        found = copy_of(line);
        if (error) break;
    }
    for (const char *c = found ? found : ""; *c && used < 300; c++) {
        int blank = *c == '\t' || *c == '\r' || *c == '\n' || *c == ' ';
        if (blank && used && out[used - 1] == ' ') continue;
        out[used++] = blank ? ' ' : *c;
    }
    if (used && out[used - 1] == ' ') used--;
    out[used] = 0;
    free(found);
    free(line);
    if (file) fclose(file);
}

static void status_make(char out[TEXT_MAX], const Facts *f, int code, const char *folder) {
    char why[304];
    int complete = f->updates[0] && f->at == strtod(f->updates, NULL);
    complete &= !f->val[0] || f->at_val == f->at;
    if (!code && complete) {
        snprintf(out, TEXT_MAX, "ok");
    } else if (!code) {
        snprintf(out, TEXT_MAX, "failed: exit status 0, but the log ends at update %.0f of %s",
                 f->at, f->updates[0] ? f->updates : "-");
    } else if (code == 128 + SIGHUP || code == 128 + SIGINT || code == 128 + SIGKILL ||
               code == 128 + SIGTERM || code == 128 + SIGUSR1) {
        snprintf(out, TEXT_MAX, "interrupted: signal %d", code - 128);
    } else {
        error_read(folder, why);
        snprintf(out, TEXT_MAX, "failed: exit status %d:%s%s", code, why[0] ? " " : "", why);
    }
}

// Makes and writes the row of a run that ended with an exit status.
static void row_make(const Task *task, const char *folder, int code, const char *program,
                     const char *alone) {
    char ms[64], jobs[32], date[32], status[TEXT_MAX], machine[2 * TEXT_MAX];
    char *const *w = task->words;
    time_t now = time(NULL);
    Facts f;
    log_read(&f, folder);
    facts_median(&f, ms, sizeof ms);
    status_make(status, &f, code, folder);
    snprintf(jobs, sizeof jobs, "%d", sweep.jobs);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%MZ", gmtime(&now));
    if (f.gpu[0]) snprintf(machine, sizeof machine, "%ld x %s", f.gpus, f.gpu);
    else snprintf(machine, sizeof machine, "%s", sweep.machine);
    const char *text[COLUMN_COUNT] = {
        [C_experiment] = task->experiment, [C_pattern] = w[W_PATTERN], [C_R] = w[W_R],
        [C_rule] = w[W_RULE], [C_seed] = w[W_SEED], [C_options] = task->options,
        [C_merges_per_forward] = f.merges, [C_allreduces_per_update] = f.allreduces,
        [C_mib_per_update] = f.mib, [C_updates] = f.updates, [C_train_loss] = f.train,
        [C_val_loss] = f.val, [C_best_val_loss] = f.best, [C_ms_per_update] = ms,
        [C_threads] = f.threads, [C_jobs] = jobs, [C_machine] = machine, [C_program] = program,
        [C_commit] = sweep.commit, [C_date] = date, [C_text] = f.text, [C_run] = task->name,
        [C_status] = status, [C_alone] = alone,
    };
    for (int c = 0; c < COLUMN_COUNT; c++) text[c] = text[c][0] ? text[c] : "-";
    int lock = lock_open(sweep.folder, O_CLOEXEC);
    lock_take(lock, sweep.folder);
    table_put(sweep.table, text);
    close(lock);
    free(f.ms);
}

// ----------------------------------------------------------------------------
// one run

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Processor seconds that this machine has worked since it started, with those that its host gave
// to others; NAN where the kernel does not tell.
static double machine_seconds(void) {
    double user, nice, system, idle, waiting, irq, soft, stolen;
    FILE *file = fopen("/proc/stat", "r");
    int n = 0;
    if (file) {
        n = fscanf(file, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &user, &nice, &system, &idle,
                   &waiting, &irq, &soft, &stolen);
        fclose(file);
    }
    if (n != 8) return NAN;
    return (user + nice + system + irq + soft + stolen) / (double)sysconf(_SC_CLK_TCK);
}

static double usage_seconds(const struct rusage *used) {
    return (double)(used->ru_utime.tv_sec + used->ru_stime.tv_sec) +
           1e-6 * (double)(used->ru_utime.tv_usec + used->ru_stime.tv_usec);
}

// Of a run that took so many seconds, while the machine worked `machine` and the run `own`.
static void alone_make(char out[TEXT_MAX], double seconds, double machine, double own) {
    double others = fmax(0, (machine - own) / seconds);
    snprintf(out, TEXT_MAX, "-");
    if (!sweep.alone || !(seconds >= 1) || isnan(others)) return; // too short to tell, or unknown
    snprintf(out, TEXT_MAX, "%s: others took %.2f cores", others <= alone_most ? "yes" : "no",
             others);
}

// In the child: becomes the run's script. Its lock stays open, its output goes to files.
__attribute__((noreturn)) static void run_become(const Task *task, char *folder, int resumes) {
    char path[PATH_MAX], *argv[WORDS_MAX + 8];
    int n = 0;
    argv[n++] = task->script;
    argv[n++] = folder;
    for (int i = W_PATTERN; i < task->count; i++) argv[n++] = task->words[i];
    if (resumes) argv[n++] = "-y";
    if (resumes) argv[n++] = "1";
    argv[n] = NULL;
    path_join(path, folder, "stdout");
    int out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    path_join(path, folder, "stderr");
    int err = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    int in = open("/dev/null", O_RDONLY);
    if (in < 0 || out < 0 || err < 0) _exit(126);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    close(in);
    close(out);
    close(err);
    sigprocmask(SIG_SETMASK, &sweep.signals_before, NULL);
    execvp(argv[0], argv);
    dprintf(2, "error: %s: cannot be started: %s\n", argv[0], strerror(errno));
    _exit(127);
}

// Runs it, and passes a request to end on. Returns the exit status as a shell would.
static int run_start(const Task *task, char *folder, int resumes, char alone[TEXT_MAX]) {
    struct rusage used;
    sigset_t wanted;
    int status, signal_number;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, &wanted, NULL); // from here on they are taken by sigwait
    double begin = seconds_now(), machine = machine_seconds();
    pid_t child = fork();
    if (child < 0) fail("%s: cannot be started: %s", task->script, strerror(errno));
    if (!child) run_become(task, folder, resumes);
    for (;;) {
        pid_t ended = wait4(child, &status, WNOHANG, &used);
        if (ended < 0 && errno != EINTR) fail("%s: lost: %s", task->name, strerror(errno));
        if (ended == child) break;
        if (sigwait(&wanted, &signal_number) || signal_number != SIGTERM) continue;
        kill(child, SIGTERM);
        _exit(128 + SIGTERM); // without a row: the run goes on another time
    }
    double seconds = seconds_now() - begin;
    alone_make(alone, seconds, machine_seconds() - machine, usage_seconds(&used));
    if (resumes) snprintf(alone, TEXT_MAX, "-"); // its log begins in another run
    char text[64];
    format(text, sizeof text, "%.0f", floor(seconds));
    text_write(folder, "seconds", text);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

// Whether the trainer wrote its last checkpoint: then it ended well, even if nobody was left to
// note its status.
static int has_ended(const char *folder) {
    char done[PATH_MAX];
    Facts f;
    log_read(&f, folder);
    free(f.ms);
    format(done, sizeof done, "DONE_%08.0f", strtod(f.updates, NULL));
    return f.updates[0] && name_exists(folder, done);
}

static void checkpoints_remove(const char *folder) {
    names_matching(folder, "DONE_*", 1);
    names_matching(folder, "model_*.bin", 1);
    names_matching(folder, "state_*.bin", 1);
}

// A run from its lock to its row, in a process of its own.
__attribute__((noreturn)) static void worker(const Task *task) {
    char folder[PATH_MAX], text[64], program[TEXT_MAX] = "-", alone[TEXT_MAX] = "-";
    signal(SIGINT, SIG_IGN); // the terminal's interrupt is for the sweep, which ends its runs
    signal(SIGQUIT, SIG_IGN);
    sigprocmask(SIG_SETMASK, &sweep.signals_before, NULL);
    fail_hook = exit_worker;
    path_join(folder, sweep.folder, task->name);
    folder_create(folder);
    int lock = lock_open(folder, 0); // inherited
    if (flock(lock, LOCK_EX | LOCK_NB)) {
        fprintf(stderr, "sweep: %s: waits for the one who is running it\n", task->name);
        lock_take(lock, folder);
    }
    if (is_done(task)) exit(0);
    text_read(folder, "program", program, sizeof program);
    if (!name_exists(folder, "exit") && has_ended(folder)) text_write(folder, "exit", "0");
    if (!name_exists(folder, "exit")) { // or else only the row is missing
        char name[PATH_MAX];
        int resumes = names_matching(folder, "DONE_*", 0) > 0;
        if (!resumes) folder_empty(folder);
        script_program(task->script, name, sizeof name);
        program_hash(name, program);
        text_write(folder, "program", program);
        format(text, sizeof text, "%d", run_start(task, folder, resumes, alone));
        text_write(folder, "exit", text);
    }
    if (!text_read(folder, "exit", text, sizeof text)) fail("%s/exit: cannot be read", folder);
    row_make(task, folder, (int)strtol(text, NULL, 10), program, alone);
    name_remove(folder, "exit"); // the row has the one, the log the other
    name_remove(folder, "stdout");
    if (!sweep.keep && is_ok(task)) checkpoints_remove(folder);
    exit(0);
}

// ----------------------------------------------------------------------------
// all runs

// Seconds that a run took, NAN for one without a note of it.
static double task_seconds(const Task *task) {
    char folder[PATH_MAX], text[64];
    path_join(folder, sweep.folder, task->name);
    return text_read(folder, "seconds", text, sizeof text) ? strtod(text, NULL) : NAN;
}

// The mean of the runs that have ended, of one script or, with NULL, of all.
static double mean_seconds(const double *seconds, const char *script) {
    double sum = 0;
    int n = 0;
    for (int i = 0; i < sweep.count; i++) {
        if (isnan(seconds[i]) || (script && strcmp(sweep.tasks[i].script, script))) continue;
        sum += seconds[i];
        n++;
    }
    return n ? sum / n : NAN;
}

// Time left: the mean of the runs of the same script that have ended, then of all; what runs
// counts for what it still needs.
static void time_left(char out[64]) {
    double *seconds = ALLOC(double, (size_t)sweep.count, "times"), left = 0;
    time_t now = time(NULL);
    int count = 0;
    for (int i = 0; i < sweep.count; i++) {
        const Task *task = &sweep.tasks[i];
        seconds[i] = task->state == ENDED ? task_seconds(task) : NAN;
    }
    double all = mean_seconds(seconds, NULL);
    for (int i = 0; i < sweep.count; i++) {
        const Task *task = &sweep.tasks[i];
        if (task->state == ENDED) continue;
        double need = mean_seconds(seconds, task->script);
        if (isnan(need)) need = all;
        if (task->state == AT_WORK) need -= (double)(now - task->began);
        if (need > 0) left += need;
        count++;
    }
    free(seconds);
    if (count) left /= sweep.jobs < count ? sweep.jobs : count;
    long whole = (long)left;
    if (count && isnan(all)) snprintf(out, 64, "unknown");
    else snprintf(out, 64, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
}

static void task_start(Task *task) {
    fflush(NULL);
    task->worker = fork();
    if (task->worker < 0) fail("%s: cannot be started: %s", task->name, strerror(errno));
    if (!task->worker) worker(task);
    task->state = AT_WORK;
    task->began = time(NULL);
}

static void task_report(const Task *task, int finished, int at_work) {
    char left[64];
    Table table = {};
    time_left(left);
    table_read(&table, sweep.table, 1);
    const Run *row = table_find(&table, task->name);
    fprintf(stderr, "sweep: %d of %d done, %d at work, %s left; %s: ", finished, sweep.count,
            at_work, left, task->name);
    if (row) {
        fprintf(stderr, "validation loss %s, %s ms per update, %s\n", row->text[C_val_loss],
                row->text[C_ms_per_update], row->text[C_status]);
    } else {
        fprintf(stderr, "no row\n");
    }
    table_free(&table);
}

__attribute__((noreturn)) static void sweep_stop(void) {
    for (int i = 0; i < sweep.count; i++) {
        if (sweep.tasks[i].state == AT_WORK) kill(sweep.tasks[i].worker, SIGTERM);
    }
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR) continue;
    fprintf(stderr, "sweep: stopped; the same command goes on\n");
    exit(128 + SIGINT);
}

static Task *task_of(pid_t process) {
    for (int i = 0; i < sweep.count; i++) {
        Task *task = &sweep.tasks[i];
        if (task->state == AT_WORK && task->worker == process) return task;
    }
    return NULL;
}

// The signals that stop a sweep, unless it was started deaf to them, and the end of a worker.
// They are blocked: the sweep takes them by sigwait, and none falls between a look and a sleep.
static void signals_block(sigset_t *wanted) {
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction old;
    sigemptyset(wanted);
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        sigaction(stops[i], NULL, &old);
        if (old.sa_handler != SIG_IGN) sigaddset(wanted, stops[i]);
    }
    sigaddset(wanted, SIGCHLD);
    sigprocmask(SIG_BLOCK, wanted, &sweep.signals_before);
}

// Returns how many workers ended without having written a row.
static int tasks_run(int finished) {
    int next = 0, at_work = 0, unwritten = 0, status, signal_number;
    sigset_t wanted;
    signals_block(&wanted);
    while (finished < sweep.count) {
        while (next < sweep.count && sweep.tasks[next].state != WAITING) next++;
        if (next < sweep.count && at_work < sweep.jobs) {
            task_start(&sweep.tasks[next]);
            at_work++;
            continue;
        }
        pid_t process = waitpid(-1, &status, WNOHANG);
        Task *task = process > 0 ? task_of(process) : NULL;
        if (task) {
            task->state = ENDED;
            at_work--;
            finished++;
            unwritten += status != 0;
            task_report(task, finished, at_work);
        }
        if (process > 0) continue;
        if (!sigwait(&wanted, &signal_number) && signal_number != SIGCHLD) sweep_stop();
    }
    return unwritten;
}

// ----------------------------------------------------------------------------
// the command

static void arguments_read(int argc, char **argv, const char **folder, int *lists) {
    char *end;
    *folder = "out/sweep";
    for (int a = 1; a < argc; a++) {
        const char *word = argv[a], *value = a + 1 < argc ? argv[a + 1] : "";
        if (!strcmp(word, "-j")) {
            long jobs = strtol(value, &end, 10);
            if (!isdigit((unsigned char)value[0]) || value[0] == '0' || *end || jobs > 9999) {
                fail("-j '%s': expected a number of jobs from 1 to 9999", value);
            }
            sweep.jobs = (int)jobs;
            a++;
        } else if (!strcmp(word, "-o")) {
            if (!*value) fail("-o: expected a folder");
            *folder = value;
            a++;
        } else if (!strcmp(word, "-k")) {
            sweep.keep = 1;
        } else if (!strcmp(word, "-n")) {
            sweep.show = 1;
        } else if (!strcmp(word, "--retry")) {
            sweep.retry = 1;
        } else if (!strcmp(word, "--alone")) {
            sweep.alone = 1;
        } else if (!strcmp(word, "-h") || !strcmp(word, "--help")) {
            fputs(help, stdout);
            exit(0);
        } else if (word[0] == '-' && word[1]) {
            fail("%s: expected -j JOBS, -o FOLDER, -k, -n, --retry, --alone, or lists "
                 "(dev/runs/sweep --help)", word);
        } else {
            argv[(*lists)++] = argv[a]; // the lists move to the front
        }
    }
    if (sweep.alone && sweep.jobs != 1) {
        fail("--alone: found -j %d, expected 1 job: several are not alone", sweep.jobs);
    }
    if (!*lists) {
        fail("expected the name of a list, such as dev/runs/shakespeare.list "
             "(dev/runs/sweep --help)");
    }
}

// The repository: two folders above the one in which this program lies.
static void root_find(void) {
    char self[PATH_MAX], above[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) fail("/proc/self/exe: %s", strerror(errno));
    self[n] = 0;
    format(above, sizeof above, "%s/../..", dirname(self));
    if (!realpath(above, sweep.root)) fail("%s: %s", above, strerror(errno));
}

// Better now than as many failed rows.
static void programs_check(void) {
    for (int i = 0; i < sweep.count; i++) {
        const char *script = sweep.tasks[i].script;
        char program[PATH_MAX], path[PATH_MAX];
        int j = 0;
        while (strcmp(sweep.tasks[j].script, script)) j++;
        if (j < i) continue;
        if (script_program(script, program, sizeof program)) exit(2);
        if (program_find(program, path)) continue;
        const char *slash = strrchr(program, '/');
        fail("%s: %s is not here; build it with make %s, or name another with TRAINER=", script,
             program, slash ? slash + 1 : program);
    }
}

// The processor's name, cores and this commit for the rows; threads and their manners for the runs.
static void machine_read(void) {
    char line[TEXT_MAX], name[TEXT_MAX] = "", number[32];
    struct utsname system;
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        char *colon = strstr(line, ": ");
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "model name", 10) && colon) snprintf(name, sizeof name, "%s", colon + 2);
    }
    if (file) fclose(file);
    if (!name[0] && !uname(&system)) snprintf(name, sizeof name, "%s", system.machine);
    format(sweep.machine, sizeof sweep.machine, "%.900s, %d cores", name, cores);
    char *git[] = {"git", "describe", "--always", "--dirty", "--abbrev=10", NULL};
    if (command_output(sweep.commit, sizeof sweep.commit, git, NULL)) sweep.commit[0] = 0;
    int threads = cores / sweep.jobs;
    format(number, sizeof number, "%d", threads > 0 ? threads : 1);
    const char *asked = getenv("OMP_NUM_THREADS"), *spin = getenv("GOMP_SPINCOUNT");
    if (!asked || !*asked) setenv("OMP_NUM_THREADS", number, 1);
    // threads that wait give up their core to the others soon
    if (!spin || !*spin) setenv("GOMP_SPINCOUNT", "10000", 1);
}

// Makes sweep.folder of -o. Under -n it may be one that is yet to be made.
static void folder_find(const char *folder) {
    char here[PATH_MAX];
    if (!sweep.show) folder_create(folder);
    if (realpath(folder, sweep.folder)) return;
    if (!sweep.show || errno != ENOENT) fail("-o %s: %s", folder, strerror(errno));
    if (folder[0] == '/') format(sweep.folder, sizeof sweep.folder, "%s", folder);
    else if (getcwd(here, sizeof here)) path_join(sweep.folder, here, folder);
    else fail("the current folder: %s", strerror(errno));
}

int main(int argc, char **argv) {
    const char *folder;
    char status[TEXT_MAX];
    Table table = {};
    int lists = 0, finished = 0, bad = 0;
    fail_hook = exit_wrong_use;
    signal(SIGCHLD, SIG_DFL); // inherited as ignored, it would leave no child to wait for
    arguments_read(argc, argv, &folder, &lists);
    root_find();
    for (int i = 0; i < lists; i++) list_read(argv[i]);
    if (!sweep.count) fail("%s%s: no runs in it", argv[0], lists > 1 ? " and others" : "");
    folder_find(folder);
    path_join(sweep.table, sweep.folder, "runs.tsv");
    if (chdir(sweep.root)) fail("%s: %s", sweep.root, strerror(errno));
    table_read(&table, sweep.table, 1); // says what is wrong with it
    table_free(&table);
    if (!sweep.show) programs_check();
    tasks_name();
    for (int i = 0; i < sweep.count && sweep.show; i++) {
        row_status(&sweep.tasks[i], status);
        printf("%s: %s\n", sweep.tasks[i].name, status[0] ? status : "not run");
    }
    if (sweep.show) return 0;
    machine_read();
    for (int i = 0; i < sweep.count; i++) {
        sweep.tasks[i].state = is_done(&sweep.tasks[i]) ? ENDED : WAITING;
        finished += sweep.tasks[i].state == ENDED;
    }
    fprintf(stderr, "sweep: %d runs, %d of them done before; %d at a time with %s threads each; "
            "rows in %s\n", sweep.count, finished, sweep.jobs, getenv("OMP_NUM_THREADS"),
            sweep.table);
    int unwritten = tasks_run(finished);
    for (int i = 0; i < sweep.count; i++) bad += !is_ok(&sweep.tasks[i]);
    if (unwritten) {
        fprintf(stderr, "sweep: %d runs ended without a row being written, see above; the same "
                "command goes on\n", unwritten);
    }
    if (bad) {
        fprintf(stderr, "sweep: %d of %d runs are not ok; their rows say why, --retry runs failed "
                "ones again\n", bad, sweep.count);
    }
    if (bad || unwritten) return 1;
    fprintf(stderr, "sweep: all %d runs are ok\n", sweep.count);
    return 0;
}
