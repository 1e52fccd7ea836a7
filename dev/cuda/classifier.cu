/*
Softmax and cross-entropy over the logits: `classify`, with the whole vocabulary in one matrix or
cut over 2 tensor ranks in this process (-vp 1), where losses and gradients are passes of their own,
since ranks have to talk between them.

  dev/cuda/classifier [B [T]]      shapes are parts x rows x padded vocabulary of a part
*/
#include "bench.h"

enum { SAMPLED_ROWS = 16 };

// The fields of a model that `classify` looks at, in memory of their own.
struct Classifier {
    int parts, rows, width;
    size_t n; // of one part
    Sets<real> logits;
    Sets<float> scratch, losses;
    Sets<int32_t> targets;
    std::vector<int32_t> target;
    GPT2 m;
    Classifier(Shape s, int parts, int width, int sets)
        : parts(parts), rows(s.B * s.T), width(width), n((size_t)rows * width),
          logits(parts * n, sets, 1), scratch((size_t)(3 * parts + 2) * rows, 1, 0),
          losses(rows, 1, 0), targets(rows, 1, 0), target(rows) {
        memset(&m, 0, sizeof m);
        m.config.V = s.V, m.config.R = parts, m.F = parts, m.B = s.B, m.T = s.T;
        m.scored = s.B * s.T;
        m.mesh = mesh_make(1, 0, parts, parts);
        m.vocab_cut = parts > 1, m.vocab_parts = parts, m.vocab_width = width;
        m.part_most = scratch.at, m.part_sums = m.part_most + (size_t)parts * rows;
        m.most = m.part_sums + (size_t)2 * parts * rows, m.lse = m.most + rows;
        m.losses = losses.at;
        for (int i = 0; i < rows; i++)
            target[i] = (int32_t)random_below(random_bits(4, 1, 0, (uint64_t)i), (uint64_t)s.V);
        CUDA_CHECK(
            cudaMemcpy(targets.at, target.data(), rows * sizeof(int32_t), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
        m.batch.targets = targets.at;
    }
    void run(int set, double scale) {
        m.logits = logits[set];
        classify(&m, scale);
    }
    // Row `row` of set 0, its parts one after the other, and apart from it, if wanted, what
    // comes after the tokens of each.
    std::vector<double> row_of(int row, std::vector<double> *padding) const {
        std::vector<double> out;
        for (int f = 0; f < parts; f++) {
            std::vector<double> part = fetch(logits.at + f * n + (size_t)row * width, width);
            auto end = part.begin() + vocab_range(&m, f).count;
            out.insert(out.end(), part.begin(), end);
            if (padding) padding->insert(padding->end(), end, part.end());
        }
        return out;
    }
};

// Runs set 0 forward and backward; losses and gradients of sampled rows, against plain loops.
static void classifier_errors(Classifier *k, double *loss_error, double *gradient_error) {
    std::vector<std::vector<double>> was;
    for (int i = 0; i < SAMPLED_ROWS; i++)
        was.push_back(k->row_of(sample_of(i, SAMPLED_ROWS, k->rows), NULL));
    k->run(0, 1);
    for (int i = 0; i < SAMPLED_ROWS; i++) {
        int row = sample_of(i, SAMPLED_ROWS, k->rows);
        std::vector<double> padding;
        const std::vector<double> &x = was[i], found = k->row_of(row, &padding);
        double sum = 0, V = (double)x.size();
        for (double v : x) sum += exp(v);
        *loss_error = larger(*loss_error, fetch(k->losses.at + row, 1)[0],
                             log(sum) - x[k->target[row]], 1);
        for (size_t v = 0; v < x.size(); v++) {
            double expected = exp(x[v]) / sum - ((int)v == k->target[row]);
            *gradient_error = larger(*gradient_error, found[v] * k->rows, expected,
                                     1 / V + fabs(expected));
        }
        for (double v : padding) *gradient_error = larger(*gradient_error, v * k->rows, 0, 1 / V);
    }
}

// The second half of `classify` with a cut vocabulary.
static void backward_parts(Classifier *k, int set) {
    k->m.logits = k->logits[set];
    for (int f = 0; f < k->parts; f++) {
        TokenRange r = vocab_range(&k->m, f);
        LAUNCH(classifier_backward_kernel, k->rows, classifier_threads(k->width), 0, gpu.stream,
               logits_part(&k->m, f), k->m.lse, k->targets.at, 1.0f / k->rows, r.first, r.count,
               k->width);
    }
}

static void bench_classifier(Shape s, int parts) {
    int width = ceil_div(vocabulary_pad(s.V), 8 * parts) * 8, rows = s.B * s.T;
    int threads = classifier_threads(width);
    double logits = (double)parts * rows * width * sizeof(real);
    double numbers = (double)rows * sizeof(float), read = 0;
    Classifier k(s, parts, width, sets_for(logits));
    for (int f = 0; f < parts; f++)
        read += (double)rows * ceil_div(vocab_range(&k.m, f).count, PACK) * PACK * sizeof(real);
    std::string shape = text("%dx%dx%d", parts, rows, width);
    Row forward{.kernel = parts > 1 ? "classifier_cut_fwd" : "classifier_fwd", .shape = shape,
                .bytes = read + 2 * numbers};
    Row backward{.kernel = parts > 1 ? "classifier_cut_bwd" : "classifier", .shape = shape,
                 .bytes = 2 * logits + 2 * numbers};
    forward.again = parts * threads * rows * (double)(sizeof(int32_t) + sizeof(real));
    // The largest, the sum and the target's logit of each part.
    forward.scratch = parts > 1 ? 20 * parts * numbers : 0;
    forward.why = "targets and their logits by all threads";
    forward.tolerance = 1e-4; // losses are float in every build
    backward.again = forward.again + parts * threads * numbers + (parts > 1 ? 0 : logits);
    backward.why = parts > 1 ? "targets and sums by all threads"
                             : "rows are read twice; targets and their logits by all threads";
    classifier_errors(&k, &forward.error, &backward.error);
    bench(forward, k.logits.count, [&](int set) { k.run(set, 0); });
    bench(backward, k.logits.count,
          [&](int set) { parts > 1 ? backward_parts(&k, set) : k.run(set, 1); });
}

int main(int argc, char **argv) {
    Shape s = shape_parse(argc, argv);
    bench_open("classifier", 0, 1);
    bench_classifier(s, 1);
    bench_classifier(s, 2);
    return bench_close();
}
