/*
The matrix products of a layer and of the head, forward, dX and dW, by the trainer's matmul(); for
one tensor rank, and for 2 in this process, which are a batch.

  dev/cuda/matmul [B [T]]      shapes are batch x M x N x K, of out (M,N) = a (M,K) b (K,N)

Without -ms the trainer takes the algorithm that cuBLASLt thinks best. The note says what the best
of up to 32 takes, in percent of that time, and how many there were: how much -ms can gain.
*/
#include "bench.h"

#ifdef PRECISION_TF32
static constexpr double TOLERANCE_PRODUCT = 4e-3, TOLERANCE_FLOAT = 4e-3;
#else
static constexpr double TOLERANCE_PRODUCT = sizeof(real) < sizeof(float) ? TOLERANCE : 5e-5;
// Tensor cores cut off what they add: one product of 16384 left out is 8e-3.
static constexpr double TOLERANCE_FLOAT = 2e-4;
#endif
enum { ALGORITHMS = 32, SAMPLED = 8 };
static const double seconds_per_algorithm = 0.05;

// Vectors over k of sampled rows of a matrix (n,K), which may be stored as (K,n).
static std::vector<std::vector<double>> vectors_of(const real *x, int stored_as_columns, int n,
                                                   int K, int i[SAMPLED]) {
    std::vector<std::vector<double>> out;
    for (int s = 0; s < SAMPLED; s++) {
        i[s] = (int)random_below(random_bits(3, 1, (uint64_t)stored_as_columns, (uint64_t)s),
                                 (uint64_t)n);
        out.push_back(stored_as_columns ? fetch(x + i[s], K, n) : fetch(x + (size_t)i[s] * K, K));
    }
    return out;
}

// Error of element (i,j) of part f, given its row of a and column of b.
static double element_error(const Matmul &m, int f, int i, int j, const std::vector<double> &a,
                            const std::vector<double> &b) {
    size_t at = f * m.out_stride + (size_t)i * m.N + j;
    double sum = 0, squares = 0, worst = 0;
    for (int k = 0; k < m.K; k++) sum += a[k] * b[k], squares += a[k] * b[k] * a[k] * b[k];
    if (m.bias) sum += fetch(m.bias + f * m.bias_stride + j, 1)[0];
    if (m.before_gelu) {
        worst = larger(worst, fetch(m.before_gelu + at, 1)[0], sum, fabs(sum) + sqrt(squares));
        sum = gelu_plain(sum);
    }
    if (m.gelu_in) sum *= gelu_slope_plain(fetch(m.gelu_in + at, 1)[0]);
    double found = m.out_float ? fetch((const float *)m.out + at, 1)[0]
                               : fetch((const real *)m.out + at, 1)[0];
    return larger(worst, found, sum, fabs(sum) + sqrt(squares));
}

// Error of part f's sum over the rows of out, which holds them rounded, in column j.
static double column_sum_error(const Matmul &m, int f, int j) {
    double sum = 0, squares = 0;
    for (double x : fetch((const real *)m.out + f * m.out_stride + j, m.M, m.N))
        sum += x, squares += x * x;
    double found = fetch(m.bias_grad + f * m.bias_stride + j, 1)[0];
    return larger(0, found, sum, fabs(sum) + sqrt(squares));
}

// All elements where sampled rows and columns meet, against plain sums.
static double matmul_error(const Matmul &m) {
    double worst = 0;
    int rows[SAMPLED], columns[SAMPLED];
    for (int f = 0; f < m.batch; f++) {
        auto a = vectors_of(m.a + f * m.a_stride, m.a_transposed, m.M, m.K, rows);
        auto b = vectors_of(m.b + f * m.b_stride, !m.b_transposed, m.N, m.K, columns);
        for (int i = 0; i < SAMPLED; i++) {
            for (int j = 0; j < SAMPLED; j++)
                worst = larger(worst, element_error(m, f, rows[i], columns[j], a[i], b[j]), 0, 1);
            if (m.bias_grad) worst = larger(worst, column_sum_error(m, f, columns[i]), 0, 1);
        }
    }
    return worst;
}

// "best/first 96% of 12": each algorithm in the place of the first.
template <typename Launch>
static std::string best_of_algorithms(const Matmul &m, int sets, Launch launch) {
    cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
    MatmulPlan *plan = matmul_plan(&m);
    if (!timing) return "";
    if (plan->state == 2) return "one by one: not in one call of cuBLASLt";
    int count = matmul_algorithms(plan, &m, found, ALGORITHMS), tried = 0;
    cublasLtMatmulAlgo_t first = plan->algorithm;
    double best = INFINITY, seconds = median_seconds(sets, seconds_per_algorithm, launch);
    for (int i = 0; i < count; i++) {
        if (matmul_launch(plan, &found[i].algo, &m, matmul_workspace) != CUBLAS_STATUS_SUCCESS)
            continue;
        plan->algorithm = found[i].algo;
        best = fmin(best, median_seconds(sets, seconds_per_algorithm, launch));
        tried++;
    }
    plan->algorithm = first;
    return text("best/first %.1f%% of %d", 100 * best / seconds, tried);
}

// The parts of a batch that lie at stride 0 are read once.
static double bytes_of(const Matmul &m) {
    double a = (double)m.M * m.K * (m.a_stride ? m.batch : 1);
    double b = (double)m.K * m.N * (m.b_stride ? m.batch : 1);
    double out = (double)m.M * m.N * m.batch, more = m.before_gelu || m.gelu_in ? out : 0;
    return (a + b + more) * sizeof(real) + out * (m.out_float ? sizeof(float) : sizeof(real));
}

template <typename At> static void bench_matmul(const char *name, int sets, At at) {
    Matmul m = at(0);
    auto launch = [&](int set) { matmul(at(set), matmul_workspace); };
    Row row{.kernel = name, .shape = text("%dx%dx%dx%d", m.batch, m.M, m.N, m.K),
            .bytes = bytes_of(m)};
    row.flops = 2.0 * m.batch * m.M * m.N * m.K;
    row.tolerance = m.out_float ? TOLERANCE_FLOAT : TOLERANCE_PRODUCT;
    launch(0);
    row.error = matmul_error(m);
    bench(row, sets, launch, best_of_algorithms(m, sets, launch));
}

// y (rows,out) = x (rows,in) Wᵀ of each of F ranks, and its gradients. Ranks may share what
// they read, forward and backward.
typedef struct {
    const char *name;
    int in, out, shares_x, shares_dy, has_bias, gelu_after, gelu_before;
} Linear;

static void bench_linear(Linear l, int rows, int F) {
    size_t nx = (size_t)rows * l.in, ny = (size_t)rows * l.out, nw = (size_t)l.in * l.out;
    size_t x_stride = l.shares_x ? 0 : nx, dy_stride = l.shares_dy ? 0 : ny;
    int sets = sets_for((double)(nx + ny) * F * sizeof(real));
    Sets<real> x(F * nx, sets, 1), y(F * ny, sets, 1), other(F * (nx > ny ? nx : ny), sets, 1);
    Sets<real> w(F * nw, 1, 1 / sqrt(l.in)), bias((size_t)F * l.out, 1, 1);
    Sets<real> dbias((size_t)F * l.in, 1, 0);
    Sets<float> dw(F * nw, 1, 0);
    auto forward = [&](int set) {
        Matmul m = {};
        m.out = y[set], m.out_stride = ny, m.a = x[set], m.a_stride = x_stride, m.b = w.at;
        m.b_stride = nw, m.b_transposed = 1;
        m.M = rows, m.N = l.out, m.K = l.in, m.batch = F;
        if (l.has_bias) m.bias = bias.at, m.bias_stride = l.out;
        return m;
    };
    auto forward_gelu = [&](int set) {
        Matmul m = forward(set);
        m.before_gelu = other[set];
        return m;
    };
    auto dx = [&](int set) {
        Matmul m = {};
        m.out = x[set], m.out_stride = nx, m.a = y[set], m.a_stride = dy_stride, m.b = w.at;
        m.b_stride = nw;
        m.M = rows, m.N = l.in, m.K = l.out, m.batch = F;
        return m;
    };
    auto dx_gelu = [&](int set) {
        Matmul m = dx(set);
        m.gelu_in = other[set];
        m.bias_grad = dbias.at, m.bias_stride = l.in;
        return m;
    };
    auto dw_of = [&](int set) {
        Matmul m = {};
        m.out = dw.at, m.out_stride = nw, m.out_float = 1, m.a = y[set], m.a_stride = dy_stride;
        m.a_transposed = 1;
        m.b = x[set], m.b_stride = x_stride, m.M = l.out, m.N = l.in, m.K = rows, m.batch = F;
        return m;
    };
    bench_matmul(text("%s_forward", l.name).c_str(), sets, forward);
    if (l.gelu_after) bench_matmul(text("%s_forward_gelu", l.name).c_str(), sets, forward_gelu);
    fill_random(y.at, y.stride * sets, 1);
    bench_matmul(text("%s_dX", l.name).c_str(), sets, dx);
    if (l.gelu_before) bench_matmul(text("%s_dX_gelu", l.name).c_str(), sets, dx_gelu);
    fill_random(x.at, x.stride * sets, 1);
    bench_matmul(text("%s_dW", l.name).c_str(), sets, dw_of);
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("matmul", 0, 1);
    for (int R = 1; R <= 2; R++) {
        bench_linear(Linear{"qkv", s.C, 3 * s.C / R, 1, 0, 1, 0, 0}, s.B * s.T, R);
        bench_linear(Linear{"attproj", s.C / R, s.C, 0, 1, 0, 0, 0}, s.B * s.T, R);
        bench_linear(Linear{"fc", s.C, 4 * s.C / R, 1, 0, 1, 1, 0}, s.B * s.T, R);
        bench_linear(Linear{"fcproj", 4 * s.C / R, s.C, 0, 1, 0, 0, 1}, s.B * s.T, R);
    }
    bench_linear(Linear{"head", s.C, vocabulary_pad(s.V), 0, 0, 0, 0, 0}, s.B * s.T, 1);
    return bench_close();
}
