/*
Embedding of tokens, its gradient, and that of positions. Of the tokens there are two kinds: all
equally frequent, and as in a text, where the n-th most frequent one is 1/n as frequent as the
first: the gradient then has long sums.

  dev/cuda/embedding [B [T]]      shapes are rows x C
*/
#include "bench.h"

enum { SAMPLED_ROWS = 64 };

// The rows of a batch sorted by token, by the trainer's own batch_send, which
// needs these fields of a model.
static void batch_open(GPT2 *m, const std::vector<int32_t> &tokens, int V) {
    size_t rows = tokens.size(), bytes = (5 * rows + 1) * sizeof(int32_t);
    memset(m, 0, sizeof *m);
    m->config.V = V;
    m->token_count = ALLOC(int32_t, V + 1, "tokens");
    CUDA_CHECK(cudaMalloc((void **)&m->batch_data, bytes));
    for (int i = 0; i < 2; i++) {
        CUDA_CHECK(cudaMallocHost((void **)&m->batch_host[i], bytes));
        CUDA_CHECK(cudaEventCreateWithFlags(&m->batch_copied[i], cudaEventDisableTiming));
    }
    batch_send(m, tokens.data(), tokens.data(), (int)rows);
    CUDA_CHECK(cudaDeviceSynchronize());
}

static void batch_close(GPT2 *m) {
    for (int i = 0; i < 2; i++) {
        CUDA_CHECK(cudaFreeHost(m->batch_host[i]));
        CUDA_CHECK(cudaEventDestroy(m->batch_copied[i]));
    }
    CUDA_CHECK(cudaFree(m->batch_data));
    free(m->token_count);
}

static void bench_embedding(Shape s, int like_text) {
    int rows = s.B * s.T, C = s.C;
    size_t n = (size_t)rows * C, table = (size_t)s.V * C;
    std::vector<int32_t> tokens(rows);
    for (int i = 0; i < rows; i++) {
        double u = random_uniform(random_bits(4, 0, 0, (uint64_t)i));
        tokens[i] = (int32_t)(like_text ? pow(s.V, u) - 1 : u * s.V);
    }
    GPT2 m;
    batch_open(&m, tokens, s.V);
    double held = (double)m.batch.groups * C, index = sizeof(int32_t); // of distinct tokens alone
    Row forward{.kernel = like_text ? "embedding_text" : "embedding",
                .shape = text("%dx%d", rows, C)};
    Row backward{.kernel = like_text ? "embedding_bwd_text" : "embedding_bwd",
                 .shape = forward.shape, .tolerance = 2e-5};
    forward.bytes = (n + held) * sizeof(real) + rows * index;
    forward.again = (n - held) * sizeof(real) + (WARP - 1) * rows * index;
    forward.why = "rows of tokens that come twice, a token by each lane";
    backward.bytes = n * sizeof(real) + 2 * held * sizeof(float) +
                     (rows + 2.0 * m.batch.groups + 1) * index;
    backward.again = n * index / PACK +
                     3.0 * BLOCK * ceil_div(C, WARP * PACK) * m.batch.groups * index;
    backward.why = "lists of rows, by all threads";
    int sets = sets_for(n * sizeof(real));
    Sets<real> out(n, sets, 0), dout(n, sets, 1), wte(table, 1, 1);
    Sets<float> dwte(table, 1, 1);
    std::vector<double> was = fetch(dwte.at, table), sums(table);
    auto embed = [&](int set) {
        embedding_forward(out[set], m.batch.tokens, wte.at, 0, s.V, rows, C);
    };
    auto sum = [&](int set) { embedding_backward(dwte.at, dout[set], m.batch, 0, s.V, C); };
    embed(0);
    sum(0);
    for (int i = 0; i < SAMPLED_ROWS; i++) {
        size_t row = sample_of(i, SAMPLED_ROWS, rows);
        std::vector<double> found = fetch(out.at + row * C, C);
        std::vector<double> expected = fetch(wte.at + (size_t)tokens[row] * C, C);
        for (int c = 0; c < C; c++) forward.error = larger(forward.error, found[c], expected[c], 1);
    }
    forward.tolerance = 0; // a copy
    std::vector<double> d = fetch(dout.at, n), found = fetch(dwte.at, table);
    for (size_t i = 0; i < n; i++) sums[(size_t)tokens[i / C] * C + i % C] += d[i];
    for (size_t i = 0; i < table; i++)
        backward.error = larger(backward.error, found[i], was[i] + sums[i], 1 + fabs(sums[i]));
    bench(forward, sets, embed, text("%d different tokens", m.batch.groups));
    bench(backward, sets, sum);
    batch_close(&m);
}

static void bench_position(Shape s) {
    size_t n = (size_t)s.B * s.T * s.C, sums = (size_t)s.T * s.C;
    Row row{.kernel = "position_bwd", .shape = text("%dx%dx%d", s.B, s.T, s.C), .tolerance = 2e-5};
    row.bytes = (double)n * sizeof(real) + (double)sums * sizeof(float);
    Sets<real> dout(n, sets_for(row.bytes), 1);
    Sets<float> dwpe(sums, 1, 0);
    auto launch = [&](int set) { position_backward(dwpe.at, dout[set], s.B, s.T, s.C, 0); };
    launch(0);
    std::vector<double> d = fetch(dout.at, n), found = fetch(dwpe.at, sums), expected(sums);
    for (size_t i = 0; i < n; i++) expected[i % sums] += d[i];
    for (size_t i = 0; i < sums; i++)
        row.error = larger(row.error, found[i], expected[i], sqrt(s.B) + fabs(expected[i]));
    bench(row, dout.count, launch);
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("embedding", 0, 1);
    bench_embedding(s, 0);
    bench_embedding(s, 1);
    bench_position(s);
    return bench_close();
}
