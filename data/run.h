// A run: options made into a model, data and a log; updates, validation, samples, checkpoints.
// These are the calls that the main of both trainers consists of. Nothing here touches a tensor:
// that is the trainer's, which includes this header after it has defined
//
//   GPT2    a struct that is valid when all zero, with at least
//       GPT2Config config;  Plan plan;  Mesh mesh;  Traffic traffic[TRAFFIC_KINDS];
//
//   void gpt2_create_for(GPT2 *m, const GPT2Config *config, Mesh mesh, const Options *o,
//                        int purpose)
//       A model with memory for what `purpose` says (FOR_..., tp_blocks.h) of batches of -b x -t.
//       Fails when that cannot be had. The Mesh is connected.
//   void gpt2_free(GPT2 *m)
//   void gpt2_init_weights(GPT2 *m, int how, uint64_t seed)
//   uint64_t gpt2_load(GPT2 *m, const char *path)
//       Weights, from a model file. Returns the file's hash.
//   uint64_t gpt2_load_state(GPT2 *m, const char *path, int64_t updates)
//       Moments, from a state file of that update. The same.
//   void checkpoint_save(GPT2 *m, const char *folder, int64_t updates, int64_t keep,
//                        const char *record)
//       All processes call it; keep 0 keeps all. See checkpoint_write.
//   void gpt2_check(GPT2 *m, const char *where)
//       Fails in rank 0 if a weight is not finite, naming its tensor after `where`. All processes
//       call it.
//
//   double gpt2_forward(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T)
//       Mean loss of a batch (B,T), or NaN when targets is NULL; B and T may be smaller than -b
//       and -t.
//   void gpt2_read(GPT2 *m, const int32_t *tokens, int T, int past, int scored)
//       The same forward pass of T more tokens of one sequence, after `past` ones that earlier
//       calls have read and whose keys and values are still there. With `scored` it need not be
//       done before logits_collect returns.
//   void logits_collect(GPT2 *m, int row, float *out)
//       Logits (V) of one token of the last forward pass; after gpt2_read, of one of the last
//       `scored`. All tensor ranks call it and get the same.
//   void gpt2_micro_step(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
//                        int micro, int micro_steps)
//       Forward and backward pass of micro-batch number `micro` (from 0) of this replica's
//       `micro_steps`. The gradient is that of the mean over all micro-batches of all replicas;
//       number 0 replaces what it was, the others add to it.
//   void gpt2_teach(GPT2 *m, GPT2 *teacher, double weight)
//       From now on `weight` times the distance to the streams of a teacher, created FOR_TEACHING
//       on the same Mesh, is in the loss of m's micro-steps, in which it reads the same tokens:
//       the mean over segments of the mean squared difference (plan_distill, tp_blocks.h).
//   UpdateSums gpt2_gradients(GPT2 *m)
//       After the last micro-step: sums gradients over ranks and replicas; see UpdateSums. All
//       processes get the same.
//   void gpt2_update(GPT2 *m, AdamW h, int64_t update)
//       One AdamW step, number `update` from 1. The time of an update is taken when it returns.
//
//   void gpt2_take_pattern(GPT2 *m, const char *pattern)
//       From here on passes are those of this pattern. That of `config` stays. Fails when there is
//       no memory for it.
//   uint64_t replicated_hash(GPT2 *m)
//       Changes when any bit of the tensors changes that every rank has whole.
//   int gpt2_describe(GPT2 *m, int i, char *line, size_t size)
//       Line i (from 0) of the "# ..." facts that only this trainer has, or 0 when there are no
//       more. All processes call it.
//   int gpt2_describe_end(char *line, size_t size)
//       A "# ..." fact that shows only at the end of a run, or 0 when there is none.
//   int gpt2_describe_process(GPT2 *m, char out[PROCESS_WHAT])
//       What one process computes with. It stands once in the line of the mesh (", ... each"), or
//       in a line for each process ("on ..."): where processes differ in it, or when 1 is returned.
#ifndef RUN_H
#define RUN_H

#include "../tp_blocks.h"
#include "checkpoint.h"
#include "folder.h"
#include "options.h"
#include "record.h"
#include "runlog.h"
#include "sampler.h"
#include "tokens.h"
#include <poll.h>

// ----------------------------------------------------------------------------
// a run: options made into a model, data and a log

typedef struct {
    Options options;
    Tokens train, val;
    Sampler sampler;
    GPT2 model, teacher;       // the teacher of -kd is all zero where there is none
    Runlog log;
    char model_path[PATH_MAX]; // the file the weights come from; "" = new weights
    int resumes;               // 1: it goes on from checkpoint `first`
    int64_t first, updates;    // updates done before this run, and to have been done at its end
    int64_t done;              // updates done so far, with those before
    int stop;                  // the signal that ends this run after `done`, or 0
    int logged[2];             // whether its log has validation and sample after `first`
    Done found;                // DONE of checkpoint `first`
    Record was, is;            // what it says of its run, and what this run's checkpoints will
    int lock;                  // of the folder of -o, in rank 0; see folder.h
    uint64_t loaded[2];        // hashes of the files of model and state
    int64_t micro_steps;       // micro-batches per update
    char drawn[PATTERN_MAX + 1]; // from -pe, for the update under way
    int64_t val_sequences;     // per validation
    int32_t *tokens, *targets; // (B,T) of a micro-batch
    Traffic executed[TRAFFIC_KINDS]; // in updates, not in validation and samples
    double seconds;                  // in this run's updates
} Run;

// Options on a few lines of the terminal; one per line in the log.
static void run_say_options(Run *run) {
    int column = 0;
    for (int i = 0; i < O_COUNT; i++) {
        char value[32], pair[PATH_MAX];
        if (!option_is_built_in(&option_specs[i])) continue;
        const char *text = option_value(&run->options, i, value);
        snprintf(pair, sizeof pair, "%s %s", option_specs[i].flag, text[0] ? text : "''");
        text_printable(pair);
        if (column + strlen(pair) > 117) {
            column = 0;
            printf("\n");
        }
        column += printf(column ? " %s" : "# %s", pair);
        runlog_line(&run->log, "# %s", pair);
    }
    printf("\n");
}

// Prints a line to the terminal and to the log.
__attribute__((format(printf, 2, 3))) static void run_say(Run *run, const char *format, ...) {
    char line[2 * PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    printf("%s\n", text_printable(line));
    runlog_line(&run->log, "%s", line);
}

static void tokens_check_count(const Options *o, const char *option, const Tokens *tokens,
                               const char *path, int DP) {
    size_t needed = (size_t)o->batch * (size_t)o->length * (size_t)DP + 1;
    if (tokens->count >= needed) return;
    fail("%s %s: %zu tokens, but one batch needs %zu (b %lld x t %lld x DP %d + 1); lower -b or "
         "-t, or use more data",
         option, path, tokens->count, needed, (long long)o->batch, (long long)o->length, DP);
}

// From here on an error says where options come from that nobody typed.
static void run_advise_options(const Run *run) {
    char path[PATH_MAX];
    fail_advice[0] = 0;
    if (!run->resumes || run->found.empty) return;
    checkpoint_path(path, run->options.out, "DONE", run->first);
    snprintf(fail_advice, sizeof fail_advice, "options that are not given are those of %s", path);
}

// Finds the checkpoint to go on from.
static void run_find_checkpoint(Run *run) {
    Options *o = &run->options;
    char path[PATH_MAX];
    if (o->resume && !o->out[0]) {
        fail("-y 1: nothing to resume from; -o names the folder of checkpoints");
    }
    int64_t newest = o->out[0] ? checkpoint_find(o->out, INT64_MAX) : -1;
    if (newest >= 0 && !o->resume) {
        fail("-o %s: holds checkpoint %lld of an earlier run; -y 1 resumes it, another folder "
             "keeps it", o->out, (long long)newest);
    }
    if (newest < 0) return;
    run->resumes = 1;
    run->first = newest;
    checkpoint_advise(o->out, newest);
    checkpoint_path(path, o->out, "DONE", newest);
    if (!done_read(&run->found, path)) fail("%s: was here a moment ago, and is not", path);
    record_parse(&run->was, run->found.record, path);
    record_give_options(&run->was, o);
    run_advise_options(run);
}

// Tokens of a micro-batch are counted in int.
static void run_check_batch(const Options *o) {
    const int64_t most = 1 << 30;
    if (o->batch * o->length <= most) return;
    fail("-b %lld -t %lld: %lld tokens in a micro-batch, expected at most %lld",
         (long long)o->batch, (long long)o->length, (long long)(o->batch * o->length),
         (long long)most);
}

// The shape that -e names.
static void run_name_shape(const Options *o, int V, int maxT, GPT2Config *config) {
    if (config_parse(config, o->model, V, maxT)) return;
    fail("-e '%s': expected a model file (.bin), d12, d24, d36, d48, or LxHxC such as 4x4x128",
         o->model);
}

static int model_is_file(const Options *o) {
    size_t n = strlen(o->model);
    return n > 4 && !strcmp(o->model + n - 4, ".bin");
}

// Finds the shape of the model: from the checkpoint to go on from, from a file, or from a name.
static void run_find_model(Run *run, GPT2Config *config) {
    Options *o = &run->options;
    GPT2Config asked;
    File file;
    int is_file = model_is_file(o);
    if (run->resumes) {
        checkpoint_path(run->model_path, o->out, "model", run->first);
        const Options *was = &run->was.options;
        if (is_file && was->given[O_model] && strcmp(o->model, was->model)) {
            fail("-e %s, but the run in -o %s was started with -e %s; another -o starts a new one",
                 o->model, o->out, was->model);
        }
    } else if (is_file) {
        int length = snprintf(run->model_path, sizeof run->model_path, "%s", o->model);
        if (length >= PATH_MAX) fail("-e: a path of %d bytes", length);
    }
    if (run->model_path[0]) {
        if (run->resumes) checkpoint_advise(o->out, run->first);
        model_open(&file, run->model_path, config);
        file_close(&file);
        record_check_model(&run->was, config, run->model_path);
        run_advise_options(run);
        options_take_model(o, config, run->model_path);
        if (run->resumes && config_is_plain(config) && !pattern_is_plain(o->pattern)) {
            fail("-p %s, but the run in -o %s was trained with -p t; to start a new one from its "
                 "model: -e %s and another -o",
                 o->pattern, o->out, run->model_path);
        }
    } else {
        run_name_shape(o, run->train.V, (int)o->length, config);
    }
    int names_shape = run->resumes && o->given[O_model] && !is_file;
    if (names_shape) run_name_shape(o, config->V, config->maxT, &asked);
    if (names_shape &&
        (asked.L != config->L || asked.NH != config->NH || asked.C != config->C)) {
        fail("-e %s, but %s is a %dx%dx%d model", o->model, run->model_path, config->L, config->NH,
             config->C);
    }
    size_t letters = strlen(o->pattern);
    if (letters > PATTERN_MAX) {
        fail("-p: a pattern of %zu characters, at most %d", letters, PATTERN_MAX);
    }
    if (o->pattern != config->pattern) memmove(config->pattern, o->pattern, letters + 1);
    // Updates without -pe make it a model of -p; without updates it stays what it is.
    if (o->updates == 0 && !o->given[O_patterns]) o->patterns = config->patterns;
    list_check(o->patterns, o->pattern, config->L, "-pe");
    memmove(config->patterns, o->patterns, strlen(o->patterns) + 1);
    config->R = (int)o->tp;
    config->rule = o->rule;
}

// What this run's checkpoints will say of it. The run's id is made of what defines it at its first
// start.
static void run_make_record(Run *run) {
    char lines[DONE_BYTES];
    Record *is = &run->is;
    is->id = run->was.id;
    is->text = tokens_hash(&run->train);
    is->tokens = run->train.count;
    is->DP = run->model.mesh.DP;
    const Mesh *mesh = &run->model.mesh;
    // Two parts have one sum; that of more depends on who adds them up.
    if (mesh->R > 2 || mesh->DP > 2) is->processes = mesh->group;
    is->shape = run->model.config;
    is->options = run->options;
    record_print(lines, is); // fails now if it ever does
    if (is->id) return;
    Hash hash = hash_begin();
    hash_add(&hash, lines, strlen(lines));
    hash_add(&hash, &run->options.weights, sizeof run->options.weights);
    hash_add(&hash, run->loaded, sizeof run->loaded);
    is->id = hash_value(&hash);
}

// The header of the teacher of -kd, if one is named: a model that gives the student's streams. Of
// R it takes the student's, unless it depends on it.
static int run_find_teacher(const Run *run, const GPT2Config *student, GPT2Config *teacher) {
    const Options *o = &run->options;
    File file;
    if (!o->teacher[0]) {
        if (o->given[O_match_weight]) fail("-kw %g: no teacher; -kd names it", o->match_weight);
        return 0;
    }
    model_open(&file, o->teacher, teacher);
    file_close(&file);
    if (teacher->L != student->L || teacher->C != student->C) {
        fail("-kd %s: a teacher of %d blocks of %d channels, but the model has %d of %d",
             o->teacher, teacher->L, teacher->C, student->L, student->C);
    }
    if (teacher->maxT < o->length) {
        fail("-kd %s: the teacher reads at most %d tokens, but -t is %lld", o->teacher,
             teacher->maxT, (long long)o->length);
    }
    if (pattern_depends_on_R(teacher->pattern) && teacher->R != student->R) {
        fail("-kd %s: the teacher was trained with -tp %d, but -tp is %d", o->teacher, teacher->R,
             student->R);
    }
    teacher->R = student->R;
    if (teacher->NH % teacher->R) {
        fail("-kd %s: %d heads cannot be divided over -tp %d", o->teacher, teacher->NH, teacher->R);
    }
    return 1;
}

static void run_open_teacher(Run *run) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    GPT2Config config;
    if (!run_find_teacher(run, &m->config, &config)) return;
    if (!run->updates) fail("-kd %s: a teacher needs updates, but -x is 0", o->teacher);
    if (config.V != m->config.V) {
        fail("-kd %s: a teacher of a vocabulary of %d, but the model has %d", o->teacher, config.V,
             m->config.V);
    }
    gpt2_create_for(&run->teacher, &config, m->mesh, o, FOR_TEACHING);
    run->is.teacher = gpt2_load(&run->teacher, o->teacher);
    gpt2_teach(m, &run->teacher, o->match_weight);
}

// Whether the run is a sample and nothing else: -x 0 with -g or -gp. It needs no validation text,
// and leaves nothing but a log.
static int run_only_samples(const Run *run) {
    const Options *o = &run->options;
    return o->updates == 0 && (o->given[O_prompt] || o->given[O_sample_tokens]);
}

static int run_samples(const Run *run) {
    return run->options.sample_every > 0 || run_only_samples(run);
}

static int run_validates(const Run *run) {
    const Options *o = &run->options;
    return o->val_every > 0 && (!run_only_samples(run) || o->given[O_val_every]);
}

static int run_saves(const Run *run) { return run->options.out[0] && !run_only_samples(run); }

// The path of the tokenizer beside a file. Returns whether there is one.
static int tokenizer_beside(const char *file, char path[PATH_MAX]) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", file);
    path_join(path, dirname(folder), "tokenizer.bin");
    return !access(path, F_OK);
}

// Where the tokenizer is: -tk, or beside the tokens of -i, or, if these are not named, beside the
// model, or where the run that made the model had it.
static void run_find_tokenizer(const Run *run, char path[PATH_MAX]) {
    const Options *o = &run->options;
    const char *kind, *model = run->model_path;
    Record made = {};
    Done done;
    if (!o->tokenizer[0] && model[0] && !o->given[O_train_data]) {
        if (tokenizer_beside(model, path)) return;
        if (done_beside(&done, model, &kind, path)) record_parse(&made, done.record, path);
        if (made.options.given[O_train_data]) o = &made.options;
    }
    // a DONE of an older version has no -tk
    if (o->tokenizer && o->tokenizer[0]) snprintf(path, PATH_MAX, "%s", o->tokenizer);
    else tokenizer_beside(o->train_data, path);
}

// Tokenizer and prompt, when samples are asked for.
static void run_open_sampler(Run *run) {
    Options *o = &run->options;
    char path[PATH_MAX], letters[L_MAX + 1], closes[L_MAX];
    if (o->drafts || o->given[O_draft_pattern]) {
        pattern_lay(letters, closes, o->draft_pattern, run->model.config.L, "-sp");
    }
    if (!run_samples(run)) {
        const int theirs[] = {O_prompt, O_sample_tokens, O_temperature, O_top_k, O_drafts,
                              O_draft_pattern, O_tokenizer};
        for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++) {
            if (!o->given[theirs[i]]) continue;
            fail("%s: samples are off; -s N prints one every N updates, -x 0 with -g or -gp one "
                 "and no updates", option_specs[theirs[i]].flag);
        }
        return;
    }
    if (o->given[O_draft_pattern] && !o->given[O_drafts] && !o->drafts) {
        fail("-sp %s: no drafts; -sd N drafts N tokens for each check", o->draft_pattern);
    }
    if (o->drafts && o->length < 2) {
        fail("-sd %lld: a window of -t %lld has no room for drafts, expected at least 2",
             (long long)o->drafts, (long long)o->length);
    }
    run_find_tokenizer(run, path);
    sampler_open(&run->sampler, o, path, run->model.config.V, &run->model.mesh);
}

static void run_check_vocabulary(const char *option, const char *path, const Tokens *tokens,
                                 const GPT2Config *config) {
    if (tokens->V == config->V) return;
    fail("%s %s: a vocabulary of %d, but the model has %d", option, path, tokens->V, config->V);
}

// Replicated tensors are bitwise the same in all processes, or a run has gone wrong without a word.
static void run_check_replicas(Run *run, int64_t done) {
    char what[160];
    uint64_t hash = replicated_hash(&run->model);
    snprintf(what, sizeof what,
             "after update %lld this rank's copy of the replicated tensors (from another "
             "processor, compiler or CFLAGS?)", (long long)done);
    processes_same(&run->model.mesh, &hash, sizeof hash, what);
}

// Processes that read different files would train a model that nobody asked for.
static void run_check_files(Run *run) {
    const Mesh *mesh = &run->model.mesh;
    if (mesh->world == 1) return;
    uint64_t val = tokens_hash(&run->val);
    processes_same(mesh, &run->is.text, sizeof run->is.text, "the text of -i");
    processes_same(mesh, &val, sizeof val, "the text of -j");
    processes_same(mesh, run->loaded, sizeof run->loaded,
                   run->resumes ? "the checkpoint that -y resumes from" : "the model of -e");
    processes_same(mesh, &run->is.teacher, sizeof run->is.teacher, "the model of -kd");
    if (run_samples(run)) {
        uint64_t prompt = hash_of(run->sampler.ids, (size_t)run->sampler.prompt * sizeof(int32_t));
        processes_same(mesh, &prompt, sizeof prompt, "the prompt, as tokens by -tk's file,");
    }
}

// Opens what a caller closed of standard input, output and error: a file that took their number
// would get what is printed. Also makes a write beyond `ulimit -f` fail, where its signal would end
// the process.
static void descriptors_open(void) {
    int opened = 0;
    signal(SIGXFSZ, SIG_IGN);
    while (opened >= 0 && opened <= STDERR_FILENO) opened = open("/dev/null", O_RDWR);
    if (opened >= 0) close(opened);
}

// Reads the command line. From here on rank 0 speaks for all processes.
static void run_parse(Run *run, int argc, char **argv, int rank) {
    Options *o = &run->options;
    if (rank && !freopen("/dev/null", "w", stdout)) fail("/dev/null: %s", strerror(errno));
    options_parse(o, argc, argv);
    if (!o->out[0] && (o->save_every || o->save_keep)) {
        fail("%s %lld: no folder for checkpoints; -o names it", o->save_every ? "-n" : "-nk",
             (long long)(o->save_every ? o->save_every : o->save_keep));
    }
    if (strlen(o->out) > FOLDER_BYTES) {
        fail("-o: a path of %zu bytes is too long, expected at most %d", strlen(o->out),
             (int)FOLDER_BYTES);
    }
}

// `--plan`: prints the steps of the model's plan. It needs no data.
static void run_show_plan(Run *run) {
    const Options *o = &run->options;
    GPT2Config c, t;
    Plan plan, teacher;
    run->train.V = 1;
    run_find_checkpoint(run);
    run_check_batch(o);
    run_find_model(run, &c);
    heads_check(&c);
    plan_make(&plan, c.pattern, c.L, c.rule, c.R, "-p");
    if (run_find_teacher(run, &c, &t)) {
        plan_make(&teacher, t.pattern, t.L, t.rule, t.R, "-kd");
        plan_distill(&plan, &teacher);
        plan_free(&teacher);
    }
    plan_print(&plan, c.C, (int)(o->batch * o->length), sizeof(real));
    plan_free(&plan);
}

// What is asked for instead of a run. Returns 0 when it is a run.
static int run_instead(Run *run) {
    const Options *o = &run->options;
    if (!o->show_plan && !o->verify) return 0;
    if (o->show_plan) run_show_plan(run);
    else checkpoints_verify(o->verify);
    stdout_flush();
    return 1;
}

// Fails where processes have found other checkpoints to go on from, or only some have one, before
// they differ in the options that these keep.
static void run_check_resumed(const Run *run, const Mesh *mesh) {
    int64_t from = run->resumes ? run->first : -1;
    processes_same(mesh, &from, sizeof from, "the checkpoint that -y resumes from");
}

// A run that has all its updates already ends here, in all processes.
static void run_end_finished(const Run *run) {
    const Options *o = &run->options;
    if (!run->resumes || run->updates > run->first) return;
    if (run->lock >= 0) checkpoint_clean(o->out);
    printf("nothing to do: -o %s has checkpoint %lld, and -x %lld asks for no more updates\n",
           o->out, (long long)run->first, (long long)run->updates);
    stdout_flush();
    processes_end();
    exit(EXIT_SUCCESS);
}

// Fails if another run has been in the folder of -o, or models are there that no run has made: this
// run's checkpoints would take their names.
static void run_check_folder(const Run *run) {
    char path[PATH_MAX];
    const Options *o = &run->options;
    int64_t newest = checkpoint_find(o->out, INT64_MAX);
    if (newest != (run->resumes ? run->first : -1)) {
        fail("-o %s: its checkpoints changed while this run began; start again, with -y 1 to go on "
             "from the newest", o->out);
    }
    if (runlog_exists(o->out) && !o->resume) {
        fail("-o %s: holds main.log of an earlier run without a checkpoint; -y 1 starts it anew at "
             "update 0, another folder keeps it", o->out);
    }
    if (!run->resumes && !runlog_exists(o->out) && checkpoint_stray(o->out, path)) {
        fail("%s: no run has made it here (there is no main.log, nor a DONE beside it); -o needs a "
             "folder without models, as checkpoints take their names", path);
    }
}

// Makes the folder of -o this run's, and begins its log. Until here nothing has been written.
static void run_take_folder(Run *run) {
    const Options *o = &run->options;
    run_check_folder(run);
    folder_prepare(o->out);
    if (run->lock < 0) run->lock = lock_take(o->out, 1);
    run_check_folder(run); // again, for those who came and went before the lock
    lock_sign(run->lock);
    checkpoint_clean(o->out);
    runlog_open(&run->log, o->out, (int)o->resume, run->resumes ? run->first : -1);
    run->logged[0] = runlog_has(&run->log, "s", run->first, " tel:");
    run->logged[1] = runlog_has(&run->log, "g", run->first, " ");
    if (flock(run->lock, LOCK_EX | LOCK_NB)) {
        run_say(run, "# lock none (%s): do not start a second run in %s", strerror(errno), o->out);
    }
}

static void run_try_pattern(Run *run, const char *pattern, const char *option) {
    size_t n = strlen(fail_advice);
    snprintf(fail_advice + n, sizeof fail_advice - n, "%sthat is for pattern %s of %s",
             n ? "; " : "", pattern, option);
    gpt2_take_pattern(&run->model, pattern);
    fail_advice[n] = 0;
}

// Every pattern that the run will take, of -pe and of drafts, is taken once before anything is
// written: memory does not grow later.
static void run_try_patterns(Run *run) {
    GPT2 *m = &run->model;
    const Options *o = &run->options;
    const char *list = o->updates || run_validates(run) ? m->config.patterns : "";
    char pattern[PATTERN_MAX + 1];
    for (int i = 0; i < list_count(list); i++) {
        run_try_pattern(run, list_at(list, i, pattern), "-pe");
    }
    if (run_samples(run) && o->drafts) run_try_pattern(run, o->draft_pattern, "-sp");
    gpt2_take_pattern(m, m->config.pattern);
}

// From options to all that a run needs. All that can be wrong is checked before a file is written.
static void run_open(Run *run, int world, int rank) {
    GPT2Config config;
    Options *o = &run->options;
    run->lock = o->out[0] && rank == 0 ? lock_take(o->out, 0) : -1;
    run_find_checkpoint(run);
    run_check_batch(o);
    int train = o->updates != 0, validate = run_validates(run);
    tokens_watch(&run->train, &run->val);
    if (train || !model_is_file(o)) {
        tokens_open(&run->train, o->train_data);
    }
    run_find_model(run, &config);
    if (o->vocab_parallel < 0) o->vocab_parallel = config.R > 1;
    Mesh mesh = mesh_make(world, rank, config.R, (int)o->fold);
    mesh.vocab_parallel = (int)o->vocab_parallel;
    watch_start(&mesh, o->wait_say, o->wait_end);
    mesh_connect(&mesh);
    run_check_resumed(run, &mesh);
    options_same(o, &mesh);
    if (train) {
        tokens_check_count(o, "-i", &run->train, o->train_data, mesh.DP);
        run_check_vocabulary("-i", o->train_data, &run->train, &config);
    }
    int64_t micro = o->batch * o->length * mesh.DP;
    if (!o->update_tokens) o->update_tokens = micro;
    if (o->update_tokens % micro) {
        fail("-d %lld: tokens per update must be a multiple of %lld (b %lld x t %lld x DP %d)",
             (long long)o->update_tokens, (long long)micro, (long long)o->batch,
             (long long)o->length, mesh.DP);
    }
    run->micro_steps = o->update_tokens / micro;
    run->updates = o->updates >= 0 ? o->updates
                                   : (int64_t)((run->train.count - 1) / (size_t)o->update_tokens);
    if (o->updates < 0 && !run->updates) {
        fail("-x -1: one epoch of %zu tokens is less than one update of -d %lld; lower -d or name "
             "a number of updates",
             run->train.count, (long long)o->update_tokens);
    }
    if (run->updates > UPDATES_MAX) {
        fail("-x -1: one epoch is %lld updates, expected at most %d; raise -d or name a number of "
             "updates", (long long)run->updates, UPDATES_MAX);
    }
    o->updates = run->updates;
    processes_same(&mesh, &run->updates, sizeof run->updates, "the number of updates,");
    run_end_finished(run);
    if (validate) {
        if (!o->val_batches) {
            fail("-m 0: expected at least 1, or -1 for all; -v 0 turns validation off");
        }
        if (o->given[O_train_data] && !o->given[O_val_data] && !run->resumes) {
            snprintf(fail_advice, sizeof fail_advice, "-j names the validation tokens of a text");
        }
        tokens_open(&run->val, o->val_data);
        tokens_check_count(o, "-j", &run->val, o->val_data, 1);
        run_check_vocabulary("-j", o->val_data, &run->val, &config);
        run_advise_options(run);
        int64_t all = (int64_t)((run->val.count - 1) / (size_t)o->length);
        int64_t asked = o->val_batches * o->batch;
        run->val_sequences = o->val_batches < 0 || asked > all ? all : asked;
    }
    int purpose = validate ? FOR_LOSS : FOR_SAMPLES;
    if (train || run_saves(run)) purpose = FOR_TRAINING;
    gpt2_create_for(&run->model, &config, mesh, o, purpose);
    o->pattern = run->model.config.pattern; // it may have come from a file, and has to last
    o->patterns = run->model.config.patterns;
    run_open_sampler(run);
    if (run->resumes) checkpoint_advise(o->out, run->first);
    if (run->model_path[0]) run->loaded[0] = gpt2_load(&run->model, run->model_path);
    else gpt2_init_weights(&run->model, o->weights, (uint64_t)o->seed);
    if (run->resumes) {
        char path[PATH_MAX];
        checkpoint_path(path, o->out, "state", run->first);
        run->loaded[1] = gpt2_load_state(&run->model, path, run->first);
    }
    run_advise_options(run);
    run_open_teacher(run);
    run_try_patterns(run);
    fail_advice[0] = 0;
    if (o->out[0] || world > 1) run_make_record(run);
    run->tokens = ALLOC(int32_t, (size_t)(o->batch * o->length), "tokens");
    run->targets = ALLOC(int32_t, (size_t)(o->batch * o->length), "targets");
    run_check_files(run);
    if (o->out[0] && rank == 0) run_take_folder(run);
    processes_broadcast(&mesh, run->logged, sizeof run->logged);
    run->done = run->first;
    // Training goes on when nobody reads what it prints.
    if (run->updates > run->first) signal(SIGPIPE, SIG_IGN);
}

// When somebody removed the folder of -o, and a checkpoint or its owner made it again: the lock and
// the log come back too. An editor puts another file in the log's place.
static void run_restore_log(Run *run) {
    const char *out = run->options.out;
    if (!runlog_removed(&run->log) || access(out, F_OK)) return;
    if (!lock_stands(out, run->lock)) {
        close(run->lock);
        run->lock = lock_take(out, 1);
        lock_sign(run->lock);
    }
    const char *now = runlog_restore(&run->log) ? "made again" : "goes on in the file there";
    run_say(run, "# removed %s, after update %lld at the latest; %s", run->log.path,
            (long long)run->done, now);
}

// Whether those who read standard output have left, and lose nothing.
static int stdout_is_abandoned(void) {
    struct pollfd out = {};
    out.fd = STDOUT_FILENO;
    return poll(&out, 1, 0) == 1 && (out.revents & (POLLERR | POLLHUP));
}

// Fails if anything was lost on its way to the terminal or the log. Returns the exit status.
static int run_close(Run *run) {
    run_restore_log(run);
    runlog_close(&run->log);
    gpt2_free(&run->model);
    gpt2_free(&run->teacher);
    tokens_close(&run->train);
    tokens_close(&run->val);
    sampler_close(&run->sampler);
    free(run->tokens);
    free(run->targets);
    if ((fflush(stdout) || ferror(stdout)) && !stdout_is_abandoned()) {
        fail("standard output: %s", strerror(errno));
    }
    return run->stop ? 128 + run->stop : EXIT_SUCCESS;
}

// The text of the updates, and that of the validation where it is another.
static void run_say_text(Run *run) {
    const Options *o = &run->options;
    char train[512] = "", val[512];
    if (run->train.count && tokens_source(o->train_data, train, sizeof train)) {
        run_say(run, "# text %s", train);
    }
    if (run->val.count && tokens_source(o->val_data, val, sizeof val) && strcmp(val, train)) {
        run_say(run, "# val_text %s", val);
    }
}

// One line per process: where it is and which part of which replica it runs. All processes take
// part.
static void run_say_mesh(Run *run) {
    typedef struct { char host[64], what[PROCESS_WHAT]; } Process;
    GPT2 *m = &run->model;
    const Mesh *mesh = &m->mesh;
    Process *all = ALLOC(Process, (size_t)mesh->world, "host names"), here = {};
    int differ = gpt2_describe_process(m, here.what);
    gethostname(here.host, sizeof here.host - 1);
    processes_gather(mesh, &here, sizeof here, all);
    for (int i = 0; i < mesh->world && mesh->rank == 0; i++) {
        differ |= strcmp(all[i].what, here.what) != 0;
    }
    run_say(run,
            "# mesh %d process%s = DP %d x TP %d, of which each process runs %d tensor "
            "rank%s%s%s%s",
            mesh->world, mesh->world > 1 ? "es" : "", mesh->DP, mesh->R, mesh->F,
            mesh->F > 1 ? "s" : "", differ ? "" : ", ", differ ? "" : here.what,
            differ ? "" : " each");
    for (int i = 0; i < mesh->world && mesh->rank == 0 && (mesh->world > 1 || differ); i++) {
        int first = i % mesh->group * mesh->F;
        run_say(run, "# process %d host %s dp_rank %d tp_ranks %d to %d%s%s", i, all[i].host,
                i / mesh->group, first, first + mesh->F - 1, differ ? " on " : "",
                differ ? all[i].what : "");
    }
    free(all);
}

// What a run that goes on does otherwise than before.
static void run_say_changes(Run *run) {
    char change[PATH_MAX];
    if (run->found.empty) {
        run_say(run, "# checkpoint %lld is of an older version: nothing says whether its files are "
                "whole, nor which options they come from", (long long)run->first);
    }
    for (int i = 0; record_change(&run->was, &run->is, i, change, sizeof change); i++) {
        run_say(run, "# not bit for bit: %s", change);
    }
}

static void run_say_facts(Run *run) {
    GPT2 *m = &run->model;
    const GPT2Config *c = &m->config;
    const Options *o = &run->options;
    run_say_options(run);
    run_say_text(run);
    if (o->out[0]) run_say(run, "# run %016llx", (unsigned long long)run->is.id);
    if (o->resume && !run->resumes) {
        run_say(run, "# resume no checkpoint in %s yet: starts at update 0", o->out);
    }
    if (run->resumes) run_say_changes(run);
    run_say(run, "# model %s", run->model_path[0] ? run->model_path : "new weights");
    run_say(run, "# shape L %d NH %d C %d V %d Vp %d maxT %d", c->L, c->NH, c->C, c->V, c->Vp,
            c->maxT);
    ParamSpec specs[P_COUNT];
    param_specs(specs, c);
    run_say(run, "# parameters %zu", param_count(specs));
    run_say(run, "# blocks %s", m->plan.letters);
    run_say(run, "# merges_per_forward %d", c->R > 1 ? m->plan.merges : 0);
    if (o->teacher[0]) {
        run_say(run, "# teacher blocks %s, matched after %d segments", run->teacher.plan.letters,
                m->plan.matches);
    }
    run_say_mesh(run);
    run_say(run, "# train_tokens %zu", run->train.count);
    run_say(run, "# val_tokens %zu, of which each validation reads %lld", run->val.count,
            (long long)run->val_sequences * (long long)o->length);
    run_say(run, "# update %lld tokens = %lld micro-batches of %lld x %lld",
            (long long)o->update_tokens, (long long)run->micro_steps, (long long)o->batch,
            (long long)o->length);
    run_say(run, "# updates %lld to %lld", (long long)run->first, (long long)run->updates);
    int prompt = run->sampler.prompt, first = window_first(prompt, (int)o->length);
    if (first) {
        run_say(run, "# prompt %d tokens, of which the window of -t %lld takes the last %d", prompt,
                (long long)o->length, prompt - first);
    }
    char line[256];
    for (int i = 0; gpt2_describe(m, i, line, sizeof line); i++) run_say(run, "%s", line);
    for (int i = 0; o->teacher[0] && gpt2_describe(&run->teacher, i, line, sizeof line); i++) {
        if (!strncmp(line, "# memory", 8)) run_say(run, "# teacher %s", line + 2);
    }
}

// ----------------------------------------------------------------------------
// what a run does: updates, validation, samples, checkpoints

// Whether what comes every N updates (0: only at the end) is due after `done` of them. Not again
// where a run resumes and has it.
static int run_due(const Run *run, int64_t done, int64_t every, int has) {
    if (run->resumes && done == run->first && has) return 0;
    return done == run->updates || (done > 0 && every > 0 && done % every == 0);
}

// A run that is stopped saves and ends. What else was due then comes when it goes on.
static int run_validation_due(const Run *run, int64_t done) {
    if (!run_validates(run) || run->stop) return 0;
    return (done == 0 && !run->resumes) ||
           run_due(run, done, run->options.val_every, run->logged[0]);
}

static int run_sample_due(const Run *run, int64_t done) {
    return run_samples(run) && !run->stop &&
           run_due(run, done, run->options.sample_every, run->logged[1]);
}

static int run_checkpoint_due(const Run *run, int64_t done) {
    return run_saves(run) && (run->stop || run_due(run, done, run->options.save_every, 1));
}

// Row r of the batch of update s (from 0).
static void run_load_row(Run *run, int64_t s, int64_t r, int32_t *tokens, int32_t *targets) {
    const Options *o = &run->options;
    int T = (int)o->length;
    size_t start = row_start((int)o->shuffle, (uint64_t)o->seed, o->overfit ? 0 : (uint64_t)s,
                             (uint64_t)r, (uint64_t)(o->update_tokens / T), run->train.count, T);
    tokens_copy(&run->train, start, (size_t)T, tokens);
    tokens_copy(&run->train, start + 1, (size_t)T, targets);
}

// The signal that stops this run. It may have reached only some processes; all take part.
static int run_stop_signal(const Run *run) {
    const Mesh *mesh = &run->model.mesh;
    int asked = stop_asked, *all = ALLOC(int, (size_t)mesh->world, "signals");
    processes_gather(mesh, &asked, sizeof asked, all);
    for (int i = 0; i < mesh->world; i++) asked = all[i] ? all[i] : asked;
    processes_broadcast(mesh, &asked, sizeof asked);
    free(all);
    return asked;
}

// What was executed since `before`.
static Traffic traffic_since(const Traffic *now, const Traffic *before) {
    Traffic t = {now->count - before->count, now->bytes - before->bytes,
                 now->seconds - before->seconds};
    return t;
}

// Update number N (from 1). From the first one on signals stop the run, after the update under way;
// before, and where there are no updates, they end it at once. Fails when loss or gradient is not a
// finite number; checkpoints of before stay. With -pe it is made under a pattern of its own; before
// and after the model runs under that of -p.
static RunlogUpdate run_update(Run *run, int64_t N) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    RunlogUpdate u = {};
    Traffic before[TRAFFIC_KINDS];
    memcpy(before, m->traffic, sizeof before);
    u.update = N;
    watch_stage("update", N);
    if (N == run->first + 1) stop_catch();
    double start = seconds_now();
    u.pattern = "";
    if (o->patterns[0]) {
        u.pattern = pattern_draw(o->patterns, (uint64_t)o->seed, N, run->drawn);
        gpt2_take_pattern(m, u.pattern);
    }
    for (int64_t micro = 0; micro < run->micro_steps; micro++) {
        for (int64_t b = 0; b < o->batch; b++) {
            int64_t r = (micro * m->mesh.DP + m->mesh.dp_rank) * o->batch + b;
            run_load_row(run, N - 1, r, run->tokens + b * o->length, run->targets + b * o->length);
        }
        gpt2_micro_step(m, run->tokens, run->targets, (int)o->batch, (int)o->length, (int)micro,
                        (int)run->micro_steps);
    }
    UpdateSums sums = gpt2_gradients(m);
    u.loss = sums.loss;
    u.distills = o->teacher[0] != 0;
    u.distance = sums.distance;
    u.norm = sums.norm;
    if (sums.culprit || !isfinite(u.loss)) {
        fail("update %lld: loss %f%s%s is not finite; checkpoints of before are kept", (long long)N,
             u.loss, sums.culprit ? ", and the gradient of " : "",
             sums.culprit ? sums.culprit : "");
    }
    u.rate = learning_rate(o->schedule, o->rate, o->warmup, o->rate_last, N, run->updates);
    double clip = o->clip > 0 && u.norm > o->clip ? o->clip / u.norm : 1;
    AdamW h = {.rate = u.rate, .beta1 = o->beta1, .beta2 = o->beta2, .eps = 1e-8,
               .decay = o->decay, .grad_scale = clip};
    gpt2_update(m, h, N);
    run->done = N;
    u.ms = 1e3 * (seconds_now() - start);
    u.tokens_per_second = (double)o->update_tokens / u.ms * 1e3;
    run->seconds += u.ms * 1e-3;
    for (int kind = 0; kind < TRAFFIC_KINDS; kind++) {
        Traffic *executed = &run->executed[kind];
        Traffic now = traffic_since(&m->traffic[kind], &before[kind]);
        executed->count += now.count;
        executed->bytes += now.bytes;
        executed->seconds += now.seconds;
        if (kind != TRAFFIC_FORWARD && kind != TRAFFIC_BACKWARD) continue; // reported apart
        u.allreduces += now.count;
        u.mib += (double)now.bytes / (1 << 20);
        u.comm_ms += 1e3 * now.seconds;
    }
    if (o->patterns[0]) gpt2_take_pattern(m, m->config.pattern);
    int check = N == run->first + 1; // processors that add up differently show in the first update
#ifdef DEBUG
    check = 1;
#endif
    if (check && m->mesh.world > 1) run_check_replicas(run, N);
    if (sums.stop && N < run->updates) run->stop = run_stop_signal(run);
    return u;
}

// Fails if any process has computed what is not finite, and names the weight it may come from. All
// processes call it, and take the same way: another would wait for them for ever.
static void run_check_finite(Run *run, int finite, int64_t updates, const char *what) {
    const Mesh *mesh = &run->model.mesh;
    double bad = !finite;
    char where[96];
    mesh_sum(mesh, MESH_TP, &bad, 1, sizeof bad);
    mesh_sum(mesh, MESH_DP, &bad, 1, sizeof bad);
    if (bad == 0) return;
    run_check_replicas(run, updates);
    snprintf(where, sizeof where, "after update %lld %s not finite", (long long)updates, what);
    gpt2_check(&run->model, where);
    if (mesh->rank == 0) {
        fail("%s, though all weights are finite; checkpoints of before are kept", where);
    }
    processes_wait(mesh); // rank 0 ends them
}

// The mean loss over the first sequences of the validation text, -b at a time, shared out over the
// replicas.
static double run_validation_loss(Run *run, int64_t updates) {
    int64_t B = run->options.batch, T = run->options.length;
    const Mesh *mesh = &run->model.mesh;
    double sum = 0;
    watch_stage("validation after update", updates);
    for (int64_t first = mesh->dp_rank * B; first < run->val_sequences; first += mesh->DP * B) {
        int64_t rows = run->val_sequences - first < B ? run->val_sequences - first : B;
        tokens_copy(&run->val, (size_t)(first * T), (size_t)(rows * T), run->tokens);
        tokens_copy(&run->val, (size_t)(first * T) + 1, (size_t)(rows * T), run->targets);
        sum += gpt2_forward(&run->model, run->tokens, run->targets, (int)rows, (int)T) *
               (double)(rows * T);
    }
    mesh_sum(mesh, MESH_DP, &sum, 1, sizeof sum);
    run_check_finite(run, isfinite(sum), updates, "the validation loss is");
    return sum / (double)(run->val_sequences * T);
}

// Prints it, with -pe also under each of the patterns there.
static void run_validate(Run *run, int64_t updates) {
    GPT2 *m = &run->model;
    const char *list = run->options.patterns, *own = m->config.pattern;
    char pattern[PATTERN_MAX + 1];
    double own_loss = run_validation_loss(run, updates);
    run_restore_log(run);
    run_say(run, "s:%lld tel:%.6f", (long long)updates, own_loss);
    for (int i = 0; i < list_count(list); i++) {
        double loss = own_loss;
        list_at(list, i, pattern);
        if (list_find(list, pattern) < i) continue; // it has its line
        if (strcmp(pattern, own)) {
            gpt2_take_pattern(m, pattern);
            loss = run_validation_loss(run, updates);
            gpt2_take_pattern(m, own);
        }
        run_say(run, "s:%lld tel[%s]:%.6f", (long long)updates, pattern, loss);
    }
}

// For dev/net/plan: means of sums that are in the time of updates and tokens, not in their `comm`.
static void run_log_sums(Run *run, const char *name, double n, const Traffic *t) {
    if (!t->count) return;
    runlog_line(&run->log, "# %s: %g all-reduces, %.6f MiB, %.4f ms", name, (double)t->count / n,
                (double)t->bytes / n / (1 << 20), 1e3 * t->seconds / n);
}

// What a sample took. The first of its n tokens comes from the pass over the prompt, the others
// from one each or from rounds, in which `sums` and those of the cut vocabulary were executed.
static void run_sample_say(Run *run, int n, const Traffic *sums, const Traffic *vocabulary) {
    Sampler *s = &run->sampler;
    double prompt_ms = s->ms[0], *ms = s->ms + 1, *comm = s->comm + 1, each = n > 1 ? n - 1 : 1;
    double mean = 0;
    char rounds[128] = "";
    for (int i = 0; i < n - 1; i++) mean += ms[i] / each;
    if (run->options.drafts) {
        snprintf(rounds, sizeof rounds, " rounds:%lld drafted:%lld accepted:%lld",
                 (long long)s->rounds, (long long)s->drafted, (long long)s->accepted);
    }
    qsort(ms, (size_t)(n - 1), sizeof *ms, compare_ascending);
    qsort(comm, (size_t)(n - 1), sizeof *comm, compare_ascending);
    run_say(run, "g:%lld new:%d prompt:%d prompt_ms:%.3f ms:%.3f p99:%.3f comm:%.3f ar:%g%s "
                 "mean:%.3f",
            (long long)s->update, n, s->prompt, prompt_ms, quantile(ms, n - 1, 0.5),
            quantile(ms, n - 1, 0.99), quantile(comm, n - 1, 0.5),
            (double)sums->count / each, rounds, mean);
    run_log_sums(run, "vocabulary per token", each, vocabulary);
}

// Prints the prompt and -g tokens after it, as they are made.
static void run_sample(Run *run, int64_t updates) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    Sampler *s = &run->sampler;
    const Traffic *traffic = m->traffic;
    Traffic prompt[TRAFFIC_KINDS] = {};
    int count = (int)o->sample_tokens;
    watch_stage("sample after update", updates);
    run_restore_log(run);
    printf("--- sample after update %lld\n", (long long)updates);
    tokenizer_print_text(&s->tokenizer, s->text, s->text_size, stdout);
    fflush(stdout);
    sampler_start(s, updates);
    for (int i = 0, made; i < count; i += made) {
        int n = s->prompt + i;
        double start = seconds_now(), waited = traffic[TRAFFIC_FORWARD].seconds;
        made = sampler_round(s, m, n, count - i);
        // All processes have the same logits. To ask them for every token would cost as much as
        // all-reduces do, of which p has one.
        if (!s->finite) run_check_finite(run, 0, updates, "the logits of a sample are");
        double ms = 1e3 * (seconds_now() - start);
        double comm = 1e3 * (traffic[TRAFFIC_FORWARD].seconds - waited);
        for (int k = 0; k < made; k++) {
            s->ms[i + k] = ms / made;
            s->comm[i + k] = comm / made;
            tokenizer_print(&s->tokenizer, s->ids[n + k], stdout);
        }
        if (i == 0) memcpy(prompt, traffic, sizeof prompt);
        fflush(stdout);
    }
    tokenizer_print_end(&s->tokenizer, stdout);
    printf("\n---\n");
    Traffic sums = traffic_since(&traffic[TRAFFIC_FORWARD], &prompt[TRAFFIC_FORWARD]);
    Traffic vocabulary = traffic_since(&traffic[TRAFFIC_VOCABULARY], &prompt[TRAFFIC_VOCABULARY]);
    run_sample_say(run, count, &sums, &vocabulary);
}

static void run_checkpoint(Run *run, int64_t updates) {
    watch_stage("checkpoint", updates);
    run_check_replicas(run, updates);
    runlog_sync(&run->log);
    char record[DONE_BYTES];
    record_print(record, &run->is);
    checkpoint_save(&run->model, run->options.out, updates, run->options.save_keep, record);
}

// On a terminal a line for people, with the time left; elsewhere the line of the log.
static void run_progress(Run *run, const RunlogUpdate *u) {
    char line[256 + PATTERN_MAX];
    run_restore_log(run);
    runlog_update_format(line, sizeof line, u);
    runlog_line(&run->log, "%s", line);
    if (!isatty(STDOUT_FILENO) || run->model.mesh.world > 1) { // mpirun's pipes look like terminals
        printf("%s\n", line);
        fflush(stdout);
        return;
    }
    double seconds_each = run->seconds / (double)(u->update - run->first);
    long left = (long)(seconds_each * (double)(run->updates - u->update) + 0.5);
    printf("update %*lld/%lld | loss %8.6f | norm %7.4f | lr %.2e | %7.1f ms | %7.0f tokens/s | "
           "left %ld:%02ld:%02ld%s%s\n",
           (int)(run->updates > 99999 ? 8 : 5), (long long)u->update, (long long)run->updates,
           u->loss, u->norm, u->rate, u->ms, u->tokens_per_second, left / 3600, left / 60 % 60,
           left % 60, u->pattern[0] ? " | " : "", u->pattern);
}

// How the run ended, and what its updates really executed, on average.
static void run_summary(Run *run) {
    static const char *const names[TRAFFIC_KINDS] = {"activations", "gradients of activations",
                                                     "partial gradients of parameters",
                                                     "the cut vocabulary"};
    double n = (double)(run->done - run->first);
    char line[256];
    run_log_sums(run, "vocabulary per update", n, &run->executed[TRAFFIC_VOCABULARY]);
    run_log_sums(run, "gradients per update", n, &run->executed[TRAFFIC_GRADIENTS]);
    if (gpt2_describe_end(line, sizeof line)) run_say(run, "%s", line);
    if (run->stop) {
        run_say(run, "# stopped by %s after update %lld of %lld: %s", stop_name(run->stop),
                (long long)run->done, (long long)run->updates,
                run->options.out[0] ? "its checkpoint is saved, -y 1 goes on from it"
                                    : "nothing is saved without -o");
    }
    if (n <= 0) return;
    printf("%.0f updates in %.1f s, %.1f ms each; executed per update:\n", n, run->seconds,
           1e3 * run->seconds / n);
    for (int kind = 0; kind < TRAFFIC_KINDS; kind++) {
        const Traffic *t = &run->executed[kind];
        if (kind == TRAFFIC_VOCABULARY && !t->count) continue;
        printf("  %g all-reduces of %s, %.3f MiB, %.2f ms\n", (double)t->count / n, names[kind],
               (double)t->bytes / n / (1 << 20), 1e3 * t->seconds / n);
    }
    const Traffic *t = &run->teacher.traffic[TRAFFIC_FORWARD];
    if (t->count) printf("  %g all-reduces of the teacher\n", (double)t->count / n);
}

#endif
