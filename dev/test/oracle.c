// See oracle.h. Build: make dev/test/oracle.o
#define NO_MAIN
#include "../../train_gpt2.c"
#include "oracle.h"

struct Oracle {
    GPT2 m;
    // As in the file: with a vocabulary that is cut, wte has more rows in memory.
    ParamSpec specs[P_COUNT];
};

Oracle *oracle_create(const OracleShape *s) {
    Oracle *o = alloc_zeroed(1, sizeof *o, "oracle");
    omp_set_num_threads(1); // models here are tiny, and results do not depend on it
    GPT2Config c = {.maxT = s->maxT, .V = s->V, .L = s->L, .NH = s->NH, .C = s->C,
                    .Vp = vocabulary_pad(s->V), .R = s->R, .rule = s->rule};
    Mesh mesh = mesh_make(1, 0, s->R, s->R);
    snprintf(c.pattern, sizeof c.pattern, "%s", s->pattern);
    mesh.vocab_parallel = s->vocab_parallel;
    gpt2_create(&o->m, &c, mesh, s->B, s->T, FOR_TRAINING);
    param_specs(o->specs, &c);
    return o;
}

void oracle_free(Oracle *o) {
    gpt2_free(&o->m);
    free(o);
}

void oracle_init_weights(Oracle *o, int how, uint64_t seed) { gpt2_init_weights(&o->m, how, seed); }

size_t oracle_size(const Oracle *o, int p) { return spec_size(&o->specs[p]); }

static real *oracle_tensor(const Oracle *o, int set, int p) {
    const Tensors *sets[] = {&o->m.params, &o->m.moment1, &o->m.moment2, &o->m.grads};
    return sets[set]->at[p];
}

void oracle_get(const Oracle *o, int set, int p, float *out) {
    for (size_t i = 0, n = oracle_size(o, p); i < n; i++)
        out[i] = (float)oracle_tensor(o, set, p)[i];
}

void oracle_put(Oracle *o, int set, int p, const float *values) {
    for (size_t i = 0, n = oracle_size(o, p); i < n; i++)
        oracle_tensor(o, set, p)[i] = (real)values[i];
}

double oracle_forward(Oracle *o, const int32_t *tokens, const int32_t *targets, int B, int T) {
    return gpt2_forward(&o->m, tokens, targets, B, T);
}

void oracle_logits(Oracle *o, int row, float *out) { logits_collect(&o->m, row, out); }

void oracle_micro_step(Oracle *o, const int32_t *tokens, const int32_t *targets, int B, int T,
                       int micro, int micro_steps) {
    gpt2_micro_step(&o->m, tokens, targets, B, T, micro, micro_steps);
}

OracleSums oracle_gradients(Oracle *o) {
    UpdateSums sums = gpt2_gradients(&o->m);
    return (OracleSums){.loss = sums.loss, .norm = sums.norm, .distance = sums.distance};
}

void oracle_teach(Oracle *o, Oracle *teacher, double weight) {
    gpt2_teach(&o->m, &teacher->m, weight);
}

void oracle_update(Oracle *o, double rate, double decay, double grad_scale, int64_t update) {
    gpt2_update(&o->m,
                (AdamW){.rate = rate, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = decay,
                        .grad_scale = grad_scale},
                update);
}

void oracle_traffic(const Oracle *o, long long counts[3]) {
    const Traffic *t = o->m.traffic;
    counts[0] = t[TRAFFIC_FORWARD].count + t[TRAFFIC_BACKWARD].count;
    counts[1] = t[TRAFFIC_GRADIENTS].count;
    counts[2] = t[TRAFFIC_VOCABULARY].count;
}

void oracle_save(Oracle *o, const char *folder, int64_t updates) {
    checkpoint_save(&o->m, folder, updates, 0, "");
}

void oracle_load(Oracle *o, const char *folder, int64_t updates) {
    char path[PATH_MAX];
    checkpoint_path(path, folder, "model", updates);
    gpt2_load(&o->m, path);
    checkpoint_path(path, folder, "state", updates);
    gpt2_load_state(&o->m, path, updates);
}
