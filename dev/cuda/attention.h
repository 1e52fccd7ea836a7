// What the benchmarks of attention share: one head by plain loops in double. Included after
// bench.h.

struct Head {
    int T, HS;
    std::vector<double> q, k, v, dout;               // (T,HS)
    std::vector<double> out, lse, dq, dk, dv;        // (T,HS), lse (T): what attention should give
};

static double dot(const double *x, const double *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * y[i];
    return sum;
}

// Matrix `which` of sequence b, head h, of x (B,T,matrices,heads,HS) on the GPU: (T,HS)
static std::vector<double> head_matrix(const real *x, AttentionShape s, int matrices, int which,
                                       int b, int h) {
    size_t width = (size_t)s.heads * s.HS;
    return fetch(x + ((size_t)b * s.T * matrices + which) * width + (size_t)h * s.HS, s.T,
                 matrices * width, s.HS);
}

// Row t of out, lse and the gradients of it; p (T) is scratch.
static void head_row(Head *e, int t, std::vector<double> &p) {
    int HS = e->HS;
    const double *q = &e->q[(size_t)t * HS], *d = &e->dout[(size_t)t * HS], scale = 1 / sqrt(HS);
    double most = -INFINITY, sum = 0, *out = &e->out[(size_t)t * HS];
    for (int u = 0; u <= t; u++)
        most = fmax(most, p[u] = scale * dot(q, &e->k[(size_t)u * HS], HS));
    for (int u = 0; u <= t; u++) sum += p[u] = exp(p[u] - most);
    e->lse[t] = most + log(sum);
    for (int u = 0; u <= t; u++) {
        p[u] /= sum;
        for (int c = 0; c < HS; c++) out[c] += p[u] * e->v[(size_t)u * HS + c];
    }
    double delta = dot(d, out, HS);
    for (int u = 0; u <= t; u++) {
        double ds = scale * p[u] * (dot(d, &e->v[(size_t)u * HS], HS) - delta);
        for (int c = 0; c < HS; c++) {
            e->dq[(size_t)t * HS + c] += ds * e->k[(size_t)u * HS + c];
            e->dk[(size_t)u * HS + c] += ds * q[c];
            e->dv[(size_t)u * HS + c] += p[u] * d[c];
        }
    }
}

// Head h of sequence b of qkv (B,T,3,heads,HS) and dout (B,T,heads,HS), which are on the GPU.
static Head head_expected(const real *qkv, const real *dout, AttentionShape s, int b, int h) {
    std::vector<double> zeros((size_t)s.T * s.HS), row(s.T);
    Head e = {s.T, s.HS, head_matrix(qkv, s, 3, 0, b, h), head_matrix(qkv, s, 3, 1, b, h),
              head_matrix(qkv, s, 3, 2, b, h), head_matrix(dout, s, 1, 0, b, h), zeros, row,
              zeros, zeros, zeros};
    for (int t = 0; t < s.T; t++) head_row(&e, t, row);
    return e;
}
