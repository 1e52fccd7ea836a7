// Runs a plan's steps on scalars, where every stream is one number and sub-block k of rank i is
// o = w[k][i] x + e[k][i]: small enough to be compared with the definition of the letters, and to
// see that the backward list is the transpose of the forward list. C; included after tp_blocks.h.
#ifndef SCALAR_PLAN_H
#define SCALAR_PLAN_H

enum { SCALAR_RANKS = 12 };

typedef struct {
    const Plan *plan;
    int R;
    double (*w)[SCALAR_RANKS], (*e)[SCALAR_RANKS]; // (2L,R)
    double *b;                                     // (2L) output biases
    double (*v)[SCALAR_RANKS];                     // values, by V_...; shared: the same R times
    double (*dout)[SCALAR_RANKS];                  // (2L,R) gradients of partial outputs
    double *db;                                    // (2L) and of output biases
    double *pull;                                  // (2L+1) what STEP_MATCH adds to a gradient
    int open;                                      // V_... whose sum over ranks goes on
    double sum;                                    // and what will come out
    const char *wrong;                             // what was not allowed, or NULL
} ScalarPlan;

static void scalar_open(ScalarPlan *s, const Plan *plan, int R) {
    size_t subs = 2 * (size_t)plan->L, bytes = sizeof *s->w;
    memset(s, 0, sizeof *s);
    s->plan = plan;
    s->R = R;
    s->w = alloc_zeroed(subs, bytes, "test");
    s->e = alloc_zeroed(subs, bytes, "test");
    s->dout = alloc_zeroed(subs, bytes, "test");
    s->b = alloc_zeroed(subs, sizeof *s->b, "test");
    s->db = alloc_zeroed(subs, sizeof *s->db, "test");
    s->pull = alloc_zeroed(subs + 1, sizeof *s->pull, "test");
    for (size_t k = 0; k <= subs; k++) s->pull[k] = random_uniform(random_bits(3, 4, k, 0)) + 0.5;
    s->v = alloc_zeroed(V_STREAM + (size_t)plan->streams, bytes, "test");
    for (size_t k = 0; k < subs; k++) {
        for (int i = 0; i < R; i++) {
            s->w[k][i] = random_uniform(random_bits(3, 1, k, (uint64_t)i)) - 0.4;
        }
    }
}

static void scalar_close(ScalarPlan *s) {
    void *blocks[] = {s->w, s->e, s->dout, s->b, s->db, s->v, s->pull};
    for (int i = 0; i < 7; i++) free(blocks[i]);
}

static void scalar_sum(ScalarPlan *s, const Step *t) {
    double all = 0, bias = 0;
    int from_shared = value_is_shared(s->plan, t->from);
    for (int k = t->first; k < t->end; k++) bias += t->bias * s->b[k];
    for (int i = 0; i < s->R; i++) { // NONE is all zeros
        int brings = !from_shared || t->how == SUM_OWN; // a `from` of its own
        double own = (brings ? t->scale * s->v[t->from][i] : 0) + s->v[t->parts][i];
        if (t->how == SUM_OWN) s->v[t->to][i] = own + bias;
        all += own;
    }
    if (t->how == SUM_OWN) return;
    if (s->open != (t->how == SUM_END ? t->parts : V_NONE)) s->wrong = "two sums at a time";
    if (t->how != SUM_END) s->sum = all;
    s->open = t->how == SUM_BEGIN ? t->parts : V_NONE;
    for (int i = 0; i < s->R; i++) {
        double once = from_shared ? t->scale * s->v[t->from][i] : 0;
        if (t->how == SUM_BEGIN) s->v[t->parts][i] = NAN; // on its way: whoever reads it is wrong
        else s->v[t->to][i] = s->sum + once + bias;
    }
}

static void scalar_run(ScalarPlan *s, const Steps *steps) {
    for (int n = 0; n < steps->count; n++) {
        const Step *t = &steps->at[n];
        // What the sum adds up was taken as it began: no number here shows that parts are written.
        if (s->open && t->to == s->open) s->wrong = "parts are written while their sum goes on";
        if (t->kind == STEP_SUM) scalar_sum(s, t);
        for (int i = 0; i < s->R; i++) {
            double *to = &s->v[t->to][i], from = s->v[t->from][i], parts = s->v[t->parts][i];
            if (t->kind == STEP_SUB) {
                *to = (t->add ? *to : 0) + s->w[t->k][i] * from + s->e[t->k][i];
            }
            if (t->kind == STEP_BACK) {
                s->dout[t->k][i] = from;
                *to = (t->add ? *to : 0) + s->w[t->k][i] * from;
            }
            if (t->kind == STEP_MATCH) *to += s->pull[t->k];
            if (t->kind == STEP_BIAS) {
                double mine = i == 0 ? t->scale * from : parts;
                s->db[t->k] = (t->add || i ? s->db[t->k] : 0) + mine;
            }
        }
    }
    if (s->open) s->wrong = "a sum over ranks that does not end";
}

// The last stream for a given first one.
static double scalar_forward(ScalarPlan *s, double x) {
    for (int i = 0; i < s->R; i++) s->v[V_STREAM][i] = x;
    scalar_run(s, &s->plan->forward);
    return s->v[V_STREAM + s->plan->reads[2 * s->plan->L]][0];
}

static double scalar_sub(const ScalarPlan *s, int k, int i, double x) {
    return s->w[k][i] * x + s->e[k][i];
}

// The same straight from what the letters mean, without a plan.
static double scalar_defined(const ScalarPlan *s, const char *pattern, int rule, double x) {
    char letters[L_MAX + 1], closes[L_MAX];
    int L = s->plan->L, R = s->R;
    double start = x, late = x, out = 0, bias = 0;
    double h[SCALAR_RANKS], u[SCALAR_RANKS], before[SCALAR_RANKS];
    pattern_lay(letters, closes, pattern, L, "test");
    for (int block = 0; block < L; block++) {
        char letter = letters[block];
        int first = block == 0 || closes[block - 1];
        double o = 0, m = 0, ba = s->b[2 * block], bm = s->b[2 * block + 1];
        if (letter == 't') { // x += sum A(x) + bo; x += sum M(x) + b2
            for (int i = 0; i < R; i++) o += scalar_sub(s, 2 * block, i, x);
            x += o + ba;
            for (int i = 0; i < R; i++) m += scalar_sub(s, 2 * block + 1, i, x);
            x += m + bm;
        } else if (letter == 's') { // u_i = x + A_i(x) + bo; x += sum (A_i(x) + M_i(u_i)) + bo + b2
            for (int i = 0; i < R; i++) {
                double a = scalar_sub(s, 2 * block, i, x);
                o += a + scalar_sub(s, 2 * block + 1, i, x + a + ba);
            }
            x += o + ba + bm;
        } else if (letter == 'l') { // each reads the stream one sub-block late, within its run
            if (first) late = x;
            for (int i = 0; i < R; i++) o += scalar_sub(s, 2 * block, i, late);
            late = x;
            x += o + ba;
            for (int i = 0; i < R; i++) m += scalar_sub(s, 2 * block + 1, i, late);
            late = x;
            x += m + bm;
        } else if (letter == 'd') { // and each rank its own newest output at once
            double a[SCALAR_RANKS];
            for (int i = 0; i < R; i++) {
                if (first) h[i] = x;
                a[i] = scalar_sub(s, 2 * block, i, h[i]);
                o += a[i];
                u[i] = x + a[i] + ba;
            }
            x += o + ba;
            for (int i = 0; i < R; i++) {
                a[i] = scalar_sub(s, 2 * block + 1, i, u[i]);
                m += a[i];
                h[i] = x + a[i] + bm;
            }
            x += m + bm;
        } else {
            if (first) {
                start = x;
                out = bias = 0;
            }
            double last = 0, mean = 0, streams = 0;
            for (int i = 0; i < R; i++) {
                before[i] = first ? start : h[i];
                double a = scalar_sub(s, 2 * block, i, before[i]);
                u[i] = before[i] + a + ba;
                double f = scalar_sub(s, 2 * block + 1, i, u[i]);
                h[i] = u[i] + f + bm;
                last += a + f;
                mean += before[i] / R;
                streams += h[i];
            }
            out += last;
            bias += ba + bm;
            if (rule == RULE_SUM) x = start + out + bias;
            if (rule == RULE_MEAN) x = mean + last + ba + bm;
            if (rule == RULE_STREAMS) x = streams;
        }
    }
    return x;
}

// What the backward list is the gradient of: the last stream, and with a teacher the streams that
// are matched, so many times as STEP_MATCH says.
static double scalar_objective(ScalarPlan *s, double x) {
    const Plan *plan = s->plan;
    double sum = scalar_forward(s, x);
    for (int k = 0; k <= 2 * plan->L; k++) {
        if (plan->matched[k]) sum += s->pull[k] * s->v[V_STREAM + plan->boundary[k]][0];
    }
    return sum;
}

// Whether boundaries are where outputs of all sub-blocks before them are, and no others. The last
// forward pass had a bias of sub-block `biased` alone.
static int scalar_boundaries_hold(const ScalarPlan *s, int biased) {
    const Plan *plan = s->plan;
    int hold = plan->boundary[0] < 0 && plan->boundary[2 * plan->L] == plan->reads[2 * plan->L];
    for (int k = 1; k <= 2 * plan->L; k++) {
        int stream = plan->boundary[k];
        if (stream < 0) continue;
        hold &= plan->shared[stream] && (s->v[V_STREAM + stream][0] != 0) == (biased < k);
    }
    return hold;
}

// The larger error. NaN, of a sum that was read on its way, is the largest.
static double scalar_worse(double worst, double error) {
    return error > worst || error != error ? error : worst;
}

// Checks a plan; returns NULL, or what is wrong with it. R of the plan must be given again.
static const char *scalar_check(const Plan *plan, const char *pattern, int rule, int R) {
    ScalarPlan s;
    int L = plan->L;
    double worst = 0, tolerance = 1e-9, scale = 1;
    scalar_open(&s, plan, R);
    for (int i = 0; i < R; i++) s.v[V_G][i] = 1;
    scalar_run(&s, &plan->backward);
    // The pass is linear: its outcome for one input of 1 among zeros is that input's gradient.
    double gradient = scalar_objective(&s, 1);
    scale = fmax(scale, fabs(gradient));
    worst = fabs(gradient - s.v[V_G][0]);
    for (int k = 0; k < 2 * L; k++) {
        s.b[k] = 1;
        gradient = scalar_objective(&s, 0);
        s.b[k] = 0;
        if (!scalar_boundaries_hold(&s, k)) s.wrong = "a boundary is not between sub-blocks";
        scale = fmax(scale, fabs(gradient));
        worst = scalar_worse(worst, fabs(gradient - s.db[k]));
        for (int i = 0; i < R; i++) {
            s.e[k][i] = 1;
            worst = scalar_worse(worst, fabs(scalar_objective(&s, 0) - s.dout[k][i]));
            s.e[k][i] = 0;
        }
    }
    if (!(worst <= tolerance * scale)) s.wrong = "backward is not the transpose of forward";
    for (int k = 0; k < 2 * L; k++) {
        s.b[k] = random_uniform(random_bits(3, 2, (uint64_t)k, 0));
        for (int i = 0; i < R; i++) {
            s.e[k][i] = random_uniform(random_bits(3, 3, (uint64_t)k, (uint64_t)i));
        }
    }
    double found = scalar_forward(&s, 0.7), expected = scalar_defined(&s, pattern, rule, 0.7);
    if (!(fabs(found - expected) <= tolerance * fmax(1, fabs(expected)))) {
        s.wrong = "the forward list is not what the letters mean";
    }
    for (int pass = 0; pass < 2; pass++) {
        const Steps *steps = pass ? &plan->backward : &plan->forward;
        int merges = 0;
        for (int i = 0; i < steps->count; i++) merges += step_is_merge(&steps->at[i]);
        if (merges != plan->merges) s.wrong = "the number of merges";
    }
    scalar_close(&s);
    return s.wrong;
}

#endif
