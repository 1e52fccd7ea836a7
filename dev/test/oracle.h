// The CPU trainer behind opaque pointers, for tests of the CUDA trainer: both cannot stand in one
// program as they are, since they use the same names. All R tensor ranks are folded into the one
// process. Tensors are whole, as in a model file, and counted from 0 in its order.
#ifndef ORACLE_H
#define ORACLE_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int maxT, V, L, NH, C, R, rule;
    const char *pattern;
    int vocab_parallel;
    int B, T; // room for
} OracleShape;

typedef struct {
    double loss, norm, distance;
} OracleSums;

enum { ORACLE_PARAMS, ORACLE_MOMENT1, ORACLE_MOMENT2, ORACLE_GRADIENT };

typedef struct Oracle Oracle;

void oracle_teach(Oracle *o, Oracle *teacher, double weight); // as gpt2_teach

Oracle *oracle_create(const OracleShape *shape);
void oracle_free(Oracle *o);
void oracle_init_weights(Oracle *o, int how, uint64_t seed);

size_t oracle_size(const Oracle *o, int p); // elements of tensor p
// A whole tensor; gradients after oracle_gradients.
void oracle_get(const Oracle *o, int set, int p, float *out);
void oracle_put(Oracle *o, int set, int p, const float *values);

// As the functions gpt2_... of the same names. Logits are those of one row of the last
// oracle_forward.
double oracle_forward(Oracle *o, const int32_t *tokens, const int32_t *targets, int B, int T);
void oracle_logits(Oracle *o, int row, float *out);
void oracle_micro_step(Oracle *o, const int32_t *tokens, const int32_t *targets, int B, int T,
                       int micro, int micro_steps);
OracleSums oracle_gradients(Oracle *o);
// With betas 0.9 and 0.95, eps 1e-8.
void oracle_update(Oracle *o, double rate, double decay, double grad_scale, int64_t update);

// All-reduces so far: of activations, forward and backward; of partial gradients; of a vocabulary
// that is cut.
void oracle_traffic(const Oracle *o, long long counts[3]);

void oracle_save(Oracle *o, const char *folder, int64_t updates);
void oracle_load(Oracle *o, const char *folder, int64_t updates);

#ifdef __cplusplus
}
#endif
#endif
