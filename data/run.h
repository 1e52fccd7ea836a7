// A run: options made into a model, data and a log; updates, validation, samples, checkpoints.
// These are the calls that the main of both trainers consists of. Nothing here touches a tensor:
// that is the trainer's, which includes this header after it has defined
//
//   GPT2    a struct that is valid when all zero, with at least
//       GPT2Config config;  Plan plan;  Mesh mesh;  ParamSpec local[P_COUNT];
//       Traffic traffic[TRAFFIC_KINDS];
//       uint64_t loaded_hash;   of all numbers read from files, when processes can be compared
//
//   void gpt2_create_for(GPT2 *m, const GPT2Config *config, Mesh mesh, const Options *o,
//                        int training)
//       A model with room for batches of -b x -t; without `training` it has no gradients and no
//       moments. Fails when that cannot be had. The Mesh is connected.
//   void gpt2_free(GPT2 *m)
//   void gpt2_init_weights(GPT2 *m, int how, uint64_t seed)
//   void gpt2_load(GPT2 *m, const char *path)
//       Weights, from a model file.
//   void gpt2_load_state(GPT2 *m, const char *path, int64_t updates)
//       Moments, from a state file of that update.
//   void checkpoint_save(GPT2 *m, const char *folder, int64_t updates, int64_t keep)
//       All processes call it; keep 0 keeps all.
//
//   double gpt2_forward(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T)
//       Mean loss of a batch (B,T), or NaN when targets is NULL; B and T may be smaller than -b
//       and -t.
//   void logits_collect(GPT2 *m, int row, float *out)
//       Logits (V) of one token of the last forward pass. All tensor ranks call it and get the
//       same.
//   void gpt2_micro_step(GPT2 *m, const int32_t *tokens, const int32_t *targets, int B, int T,
//                        int micro, int micro_steps)
//       Forward and backward pass of micro-batch number `micro` (from 0) of this replica's
//       `micro_steps`. The gradient is that of the mean over all micro-batches of all replicas;
//       number 0 replaces what it was, the others add to it.
//   UpdateSums gpt2_gradients(GPT2 *m)
//       After the last micro-step: sums gradients over ranks and replicas; see UpdateSums. All
//       processes get the same.
//   void gpt2_update(GPT2 *m, AdamW h, int64_t update)
//       One AdamW step, number `update` from 1. The time of an update is taken when it returns.
//
//   uint64_t replicated_hash(GPT2 *m)
//       Changes when any bit of the tensors changes that every rank has whole.
//   int gpt2_describe(GPT2 *m, int i, char *line, size_t size)
//       Line i (from 0) of the "# ..." facts that only this trainer has, or 0 when there are no
//       more. All processes call it.
//   int gpt2_describe_process(GPT2 *m, char out[PROCESS_WHAT])
//       What one process computes with. Returns 1 when processes differ in it and it stands in a
//       line for each of them ("on ..."), 0 when it stands once in the line of the mesh (", ...
//       each").
#ifndef RUN_H
#define RUN_H

#include "../tp_blocks.h"
#include "bpe.h"
#include "checkpoint.h"
#include "options.h"
#include "runlog.h"
#include "tokens.h"

// ----------------------------------------------------------------------------
// sampling

static int compare_descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

// Draws a token from logits (V): `u` uniform in [0, 1), temperature 0 takes the likeliest, top_k 0
// means all. scratch (V).
static int token_draw(const float *logits, float *scratch, int V, double temperature, int top_k,
                      double u) {
    int likeliest = 0, drawn = -1;
    double sum = 0, below = 0;
    for (int v = 1; v < V; v++) likeliest = logits[v] > logits[likeliest] ? v : likeliest;
    if (temperature == 0) return likeliest;
    float threshold = -INFINITY;
    if (top_k > 0 && top_k < V) {
        memcpy(scratch, logits, (size_t)V * sizeof(float));
        qsort(scratch, (size_t)V, sizeof(float), compare_descending);
        threshold = scratch[top_k - 1];
    }
    for (int v = 0; v < V; v++) {
        double p = logits[v] >= threshold
                       ? exp(((double)logits[v] - (double)logits[likeliest]) / temperature)
                       : 0;
        scratch[v] = (float)p;
        sum += (double)scratch[v];
    }
    for (int v = 0; v < V; v++) {
        if (scratch[v] == 0) continue;
        drawn = v;
        below += (double)scratch[v];
        if (u * sum < below) break;
    }
    return drawn < 0 ? likeliest : drawn;
}

// ----------------------------------------------------------------------------
// a run: options made into a model, data and a log

typedef struct {
    Options options;
    Tokens train, val;
    Tokenizer tokenizer;
    GPT2 model;
    Runlog log;
    char model_path[PATH_MAX]; // the file the weights come from; "" = new weights
    int64_t first, updates;    // updates done before this run, and to have been done at its end
    int64_t micro_steps;       // micro-batches per update
    int64_t val_sequences;     // per validation
    int32_t *tokens, *targets; // (B,T) of a micro-batch
    int32_t *prompt;           // tokens that samples begin with
    int prompt_length;
    Traffic executed[TRAFFIC_KINDS]; // in updates, not in validation and samples
    double seconds;                  // in this run's updates
} Run;

// Options on a few lines of the terminal; one per line in the log.
static void run_say_options(Run *run) {
    int column = 0;
    for (int i = 0; i < O_COUNT; i++) {
        char value[32], pair[PATH_MAX];
        if (option_specs[i].needs & ~BUILT_IN) continue;
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

// Finds the shape of the model: from the last checkpoint, from a file, or from a name.
static void run_find_model(Run *run, GPT2Config *config) {
    Options *o = &run->options;
    File file;
    size_t n = strlen(o->model);
    if (o->resume && !o->out[0]) {
        fail("-y 1: nothing to resume from; -o names the folder of checkpoints");
    }
    int64_t newest = o->out[0] ? checkpoint_find(o->out, INT64_MAX) : -1;
    if (newest >= 0 && !o->resume) {
        fail("-o %s: holds checkpoint %lld of an earlier run; -y 1 resumes it, another folder "
             "keeps it", o->out,
             (long long)newest);
    }
    if (newest >= 0) {
        run->first = newest;
        checkpoint_path(run->model_path, o->out, "model", newest);
    } else if (n > 4 && !strcmp(o->model + n - 4, ".bin")) {
        if (n >= PATH_MAX) fail("-e: a path of %zu bytes", n);
        memcpy(run->model_path, o->model, n + 1);
    }
    if (run->model_path[0]) {
        model_open(&file, run->model_path, config);
        file_close(&file);
        options_take_model(o, config, run->model_path);
        if (newest >= 0 && pattern_is_plain(config->pattern) && !pattern_is_plain(o->pattern)) {
            fail("-p %s, but the run in -o %s was trained with -p t; to start a new one from its "
                 "model: -e %s and another -o",
                 o->pattern, o->out, run->model_path);
        }
    } else if (!config_parse(config, o->model, run->train.V, (int)o->length)) {
        fail("-e '%s': expected a model file (.bin), d12, d24, d36, d48, or LxHxC such as 4x4x128",
             o->model);
    }
    GPT2Config asked;
    if (newest >= 0 && o->given[O_model] &&
        config_parse(&asked, o->model, config->V, config->maxT) &&
        (asked.L != config->L || asked.NH != config->NH || asked.C != config->C)) {
        fail("-e %s, but %s is a %dx%dx%d model", o->model, run->model_path, config->L, config->NH,
             config->C);
    }
    size_t letters = strlen(o->pattern);
    if (letters > PATTERN_MAX) {
        fail("-p: a pattern of %zu characters, at most %d", letters, PATTERN_MAX);
    }
    if (o->pattern != config->pattern) memmove(config->pattern, o->pattern, strlen(o->pattern) + 1);
    config->R = (int)o->tp;
    config->rule = o->rule;
}

// Tokenizer and prompt, when samples are asked for.
static void run_open_sampler(Run *run) {
    Options *o = &run->options;
    char path[PATH_MAX], folder[PATH_MAX];
    if (!o->sample_every) {
        if (o->given[O_prompt]) fail("-gp: samples are off; -s N prints one every N updates");
        return;
    }
    snprintf(folder, sizeof folder, "%s", o->train_data);
    path_join(path, dirname(folder), "tokenizer.bin");
    const char *used = o->tokenizer[0] ? o->tokenizer : path;
    tokenizer_open(&run->tokenizer, used);
    if (run->tokenizer.V != run->model.config.V) {
        fail("-tk %s: a vocabulary of %d, but the model has %d", used, run->tokenizer.V,
             run->model.config.V);
    }
    run->prompt = ALLOC(int32_t, strlen(o->prompt) + 1 + (size_t)o->sample_tokens, "sample");
    run->prompt[0] = run->tokenizer.end_of_text;
    run->prompt_length = 1;
    if (!o->prompt[0]) return;
    run->prompt_length = tokenizer_encode(&run->tokenizer, o->prompt, strlen(o->prompt),
                                          run->prompt);
}

static void run_check_vocabulary(const char *option, const char *path, const Tokens *tokens,
                                 const GPT2Config *config) {
    if (tokens->V == config->V) return;
    fail("%s %s: a vocabulary of %d, but the model has %d", option, path, tokens->V, config->V);
}

// Replicated tensors are bitwise the same in all processes, or a run has gone wrong without a word.
static void run_check_replicas(Run *run, int64_t done) {
    char what[96];
    uint64_t hash = replicated_hash(&run->model);
    snprintf(what, sizeof what, "after update %lld this rank's copy of the replicated tensors",
             (long long)done);
    processes_same(&run->model.mesh, &hash, sizeof hash, what);
}

// Processes that read different files would train a model that nobody asked for.
static void run_check_files(Run *run) {
    const Mesh *mesh = &run->model.mesh;
    if (mesh->world == 1) return;
    uint64_t train = tokens_hash(&run->train), val = tokens_hash(&run->val);
    uint64_t loaded = run->model.loaded_hash;
    processes_same(mesh, &train, sizeof train, "the text of -i");
    processes_same(mesh, &val, sizeof val, "the text of -j");
    processes_same(mesh, &run->first, sizeof run->first, "the checkpoint that -y resumes from");
    processes_same(mesh, &loaded, sizeof loaded,
                   run->first ? "the checkpoint that -y resumes from" : "the model of -e");
}

// Reads the command line. From here on rank 0 speaks for all processes.
static void run_parse(Run *run, int argc, char **argv, int rank) {
    if (rank && !freopen("/dev/null", "w", stdout)) fail("/dev/null: %s", strerror(errno));
    options_parse(&run->options, argc, argv);
}

// `--plan`: prints the steps of the model's plan instead of running it. It needs no data.
static void run_show_plan(Run *run) {
    const Options *o = &run->options;
    GPT2Config c;
    Plan plan;
    run->train.V = 1;
    run_find_model(run, &c);
    if (c.NH % c.R) fail("-tp %d: %d heads cannot be divided over %d tensor ranks", c.R, c.NH, c.R);
    plan_make(&plan, c.pattern, c.L, c.rule, c.R, "-p");
    plan_print(&plan, c.C, (int)(o->batch * o->length), sizeof(real));
    plan_free(&plan);
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
}

// From options to all that a run needs. All that can be wrong is checked before a file is written.
static void run_open(Run *run, int world, int rank) {
    GPT2Config config;
    Options *o = &run->options;
    int train = o->updates != 0, validate = o->val_every > 0;
    size_t n = strlen(o->model);
    if (train || n <= 4 || strcmp(o->model + n - 4, ".bin")) {
        tokens_open(&run->train, o->train_data);
    }
    run_find_model(run, &config);
    Mesh mesh = mesh_make(world, rank, config.R, (int)o->fold);
    mesh.vocab_parallel = (int)o->vocab_parallel;
    mesh_connect(&mesh);
    options_same(o, &mesh);
    if (train) {
        tokens_check_count(o, "-i", &run->train, o->train_data, mesh.DP);
        run_check_vocabulary("-i", o->train_data, &run->train, &config);
    }
    if (validate) {
        if (!o->val_batches) {
            fail("-m 0: expected at least 1, or -1 for all; -v 0 turns validation off");
        }
        tokens_open(&run->val, o->val_data);
        tokens_check_count(o, "-j", &run->val, o->val_data, 1);
        run_check_vocabulary("-j", o->val_data, &run->val, &config);
        int64_t all = (int64_t)((run->val.count - 1) / (size_t)o->length);
        int64_t asked = o->val_batches * o->batch;
        run->val_sequences = o->val_batches < 0 || asked > all ? all : asked;
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
    gpt2_create_for(&run->model, &config, mesh, o, train || o->out[0]);
    o->pattern = run->model.config.pattern; // it may have come from a file, and has to last
    run_open_sampler(run);
    if (run->model_path[0]) gpt2_load(&run->model, run->model_path);
    else gpt2_init_weights(&run->model, o->weights, (uint64_t)o->seed);
    if (run->first) {
        char path[PATH_MAX];
        checkpoint_path(path, o->out, "state", run->first);
        gpt2_load_state(&run->model, path, run->first);
    }
    run->tokens = ALLOC(int32_t, (size_t)(o->batch * o->length), "tokens");
    run->targets = ALLOC(int32_t, (size_t)(o->batch * o->length), "targets");
    run_check_files(run);
    if (o->out[0] && rank == 0) {
        folder_create(o->out);
        runlog_open(&run->log, o->out, (int)o->resume, run->first ? run->first : -1);
    }
}

// Fails if anything was lost on its way to the terminal or the log.
static void run_close(Run *run) {
    runlog_close(&run->log);
    gpt2_free(&run->model);
    tokens_close(&run->train);
    tokens_close(&run->val);
    tokenizer_close(&run->tokenizer);
    free(run->tokens);
    free(run->targets);
    free(run->prompt);
    if (fflush(stdout) || ferror(stdout)) fail("standard output: %s", strerror(errno));
}

// What text the tokens were made from, as its script left it in source.txt beside them.
static void run_say_text(Run *run) {
    char folder[PATH_MAX], path[PATH_MAX], line[512];
    snprintf(folder, sizeof folder, "%s", run->options.train_data);
    path_join(path, dirname(folder), "source.txt");
    FILE *file = fopen(path, "r");
    if (!file) return;
    if (fgets(line, sizeof line, file)) run_say(run, "# text %.*s", (int)strcspn(line, "\n"), line);
    fclose(file);
}

// One line per process: where it is and which part of which replica it runs. All processes take
// part.
static void run_say_mesh(Run *run) {
    typedef struct { char host[64], what[PROCESS_WHAT]; } Place;
    GPT2 *m = &run->model;
    const Mesh *mesh = &m->mesh;
    Place *places = ALLOC(Place, (size_t)mesh->world, "host names"), here = {};
    int differ = gpt2_describe_process(m, here.what);
    gethostname(here.host, sizeof here.host - 1);
    run_say(run,
            "# mesh %d process%s = DP %d x TP %d, of which each process runs %d tensor "
            "rank%s%s%s%s",
            mesh->world, mesh->world > 1 ? "es" : "", mesh->DP, mesh->R, mesh->F,
            mesh->F > 1 ? "s" : "", differ ? "" : ", ", differ ? "" : here.what,
            differ ? "" : " each");
    processes_gather(mesh, &here, sizeof here, places);
    for (int i = 0; i < mesh->world && mesh->rank == 0 && (mesh->world > 1 || differ); i++) {
        int first = i % mesh->group * mesh->F;
        run_say(run, "# process %d host %s dp_rank %d tp_ranks %d to %d%s%s", i, places[i].host,
                i / mesh->group, first, first + mesh->F - 1, differ ? " on " : "",
                differ ? places[i].what : "");
    }
    free(places);
}

static void run_say_facts(Run *run) {
    GPT2 *m = &run->model;
    const GPT2Config *c = &m->config;
    const Options *o = &run->options;
    run_say_options(run);
    if (run->train.count) run_say_text(run);
    if (o->resume && !run->first) {
        run_say(run, "# resume no checkpoint in %s yet: starts at update 0", o->out);
    }
    run_say(run, "# model %s", run->model_path[0] ? run->model_path : "new weights");
    run_say(run, "# shape L %d NH %d C %d V %d Vp %d maxT %d", c->L, c->NH, c->C, c->V, c->Vp,
            c->maxT);
    ParamSpec specs[P_COUNT];
    param_specs(specs, c);
    run_say(run, "# parameters %zu", param_count(specs));
    run_say(run, "# blocks %s", m->plan.letters);
    run_say(run, "# merges_per_forward %d", m->plan.merges);
    run_say_mesh(run);
    run_say(run, "# train_tokens %zu", run->train.count);
    run_say(run, "# val_tokens %zu, of which each validation reads %lld", run->val.count,
            (long long)run->val_sequences * (long long)o->length);
    run_say(run, "# update %lld tokens = %lld micro-batches of %lld x %lld",
            (long long)o->update_tokens, (long long)run->micro_steps, (long long)o->batch,
            (long long)o->length);
    run_say(run, "# updates %lld to %lld", (long long)run->first, (long long)run->updates);
    char line[256];
    for (int i = 0; gpt2_describe(m, i, line, sizeof line); i++) run_say(run, "%s", line);
}

// ----------------------------------------------------------------------------
// what a run does: updates, validation, samples, checkpoints

// Whether what comes every N updates (0: only at the end) is due after `done` of them. Not again
// where a run resumes.
static int run_due(const Run *run, int64_t done, int64_t every) {
    if (done == run->first && run->first > 0) return 0;
    return done == run->updates || (done > 0 && every > 0 && done % every == 0);
}

static int run_validation_due(const Run *run, int64_t done) {
    return run->options.val_every && (done == 0 || run_due(run, done, run->options.val_every));
}

static int run_sample_due(const Run *run, int64_t done) {
    return run->options.sample_every && run_due(run, done, run->options.sample_every);
}

static int run_checkpoint_due(const Run *run, int64_t done) {
    return run->options.out[0] && run_due(run, done, run->options.save_every);
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

// Update number N (from 1). Fails when loss or gradient is not a finite number; checkpoints of
// before stay.
static RunlogUpdate run_update(Run *run, int64_t N) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    RunlogUpdate u = {};
    Traffic before[TRAFFIC_KINDS];
    memcpy(before, m->traffic, sizeof before);
    u.update = N;
    double start = seconds_now();
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
    u.norm = sums.norm;
    if (sums.culprit || !isfinite(u.loss)) {
        fail("update %lld: loss %f, and the gradient of %s is not finite; checkpoints of before "
             "are kept", (long long)N, u.loss,
             sums.culprit ? sums.culprit : "no tensor");
    }
    u.rate = learning_rate(o->schedule, o->rate, o->warmup, o->rate_last, N, run->updates);
    double clip = o->clip > 0 && u.norm > o->clip ? o->clip / u.norm : 1;
    AdamW h = {.rate = u.rate, .beta1 = o->beta1, .beta2 = o->beta2, .eps = 1e-8,
               .decay = o->decay, .grad_scale = clip};
    gpt2_update(m, h, N);
    u.ms = 1e3 * (seconds_now() - start);
    u.tokens_per_second = (double)o->update_tokens / u.ms * 1e3;
    run->seconds += u.ms * 1e-3;
    for (int kind = 0; kind < TRAFFIC_KINDS; kind++) {
        Traffic *executed = &run->executed[kind], *now = &m->traffic[kind];
        executed->count += now->count - before[kind].count;
        executed->bytes += now->bytes - before[kind].bytes;
        executed->seconds += now->seconds - before[kind].seconds;
        if (kind != TRAFFIC_FORWARD && kind != TRAFFIC_BACKWARD) continue; // reported apart
        u.allreduces += now->count - before[kind].count;
        u.mib += (double)(now->bytes - before[kind].bytes) / (1 << 20);
        u.comm_ms += 1e3 * (now->seconds - before[kind].seconds);
    }
#ifdef DEBUG
    run_check_replicas(run, N);
#endif
    return u;
}

// Prints the mean loss over the first sequences of the validation text, -b at a time, shared out
// over the replicas.
static void run_validate(Run *run, int64_t updates) {
    int64_t B = run->options.batch, T = run->options.length;
    const Mesh *mesh = &run->model.mesh;
    double sum = 0;
    for (int64_t first = mesh->dp_rank * B; first < run->val_sequences; first += mesh->DP * B) {
        int64_t rows = run->val_sequences - first < B ? run->val_sequences - first : B;
        tokens_copy(&run->val, (size_t)(first * T), (size_t)(rows * T), run->tokens);
        tokens_copy(&run->val, (size_t)(first * T) + 1, (size_t)(rows * T), run->targets);
        sum += gpt2_forward(&run->model, run->tokens, run->targets, (int)rows, (int)T) *
               (double)(rows * T);
    }
    mesh_sum(mesh, MESH_DP, &sum, 1, sizeof sum);
    run_say(run, "s:%lld tel:%.6f", (long long)updates, sum / (double)(run->val_sequences * T));
}

// Prints -g tokens after the prompt. The model reads the last -t of them.
static void run_sample(Run *run, int64_t updates) {
    const Options *o = &run->options;
    GPT2 *m = &run->model;
    int total = run->prompt_length + (int)o->sample_tokens, V = m->config.V;
    int32_t *ids = run->prompt;
    float *logits = ALLOC(float, (size_t)V, "sample"), *scratch = ALLOC(float, (size_t)V, "sample");
    printf("--- sample after update %lld\n%s", (long long)updates, o->prompt);
    for (int n = run->prompt_length; n < total; n++) {
        int T = n < o->length ? n : (int)o->length;
        gpt2_forward(m, ids + n - T, NULL, 1, T);
        uint64_t seed = (uint64_t)o->seed, at = (uint64_t)updates;
        double u = random_uniform(random_bits(seed, RANDOM_SAMPLE, at, (uint64_t)n));
        logits_collect(m, T - 1, logits);
        ids[n] = token_draw(logits, scratch, V, o->temperature, (int)o->top_k, u);
        tokenizer_print(&run->tokenizer, ids[n], stdout);
        fflush(stdout);
    }
    printf("\n---\n");
    free(logits);
    free(scratch);
}

static void run_checkpoint(Run *run, int64_t updates) {
    run_check_replicas(run, updates);
    checkpoint_save(&run->model, run->options.out, updates, run->options.save_keep);
}

// On a terminal a line for people, with the time left; elsewhere the line of the log.
static void run_progress(Run *run, const RunlogUpdate *u) {
    char line[256];
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
           "left %ld:%02ld:%02ld\n",
           (int)(run->updates > 99999 ? 8 : 5), (long long)u->update, (long long)run->updates,
           u->loss, u->norm, u->rate, u->ms, u->tokens_per_second, left / 3600, left / 60 % 60,
           left % 60);
}

// What this run's updates really executed, on average.
static void run_summary(const Run *run) {
    static const char *const names[TRAFFIC_KINDS] = {"activations", "gradients of activations",
                                                     "partial gradients of parameters",
                                                     "the cut vocabulary"};
    double n = (double)(run->updates - run->first);
    if (n <= 0) return;
    printf("%.0f updates in %.1f s, %.1f ms each; executed per update:\n", n, run->seconds,
           1e3 * run->seconds / n);
    for (int kind = 0; kind < TRAFFIC_KINDS; kind++) {
        const Traffic *t = &run->executed[kind];
        if (kind == TRAFFIC_VOCABULARY && !t->count) continue;
        printf("  %g all-reduces of %s, %.3f MiB, %.2f ms\n", (double)t->count / n, names[kind],
               (double)t->bytes / n / (1 << 20), 1e3 * t->seconds / n);
    }
}

#endif
