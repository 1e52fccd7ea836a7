/*
How long the trainer's all-reduce takes between processes, and the two numbers of -nl and -nb that
say the same.

  make dev/net/bench_allreduce
  mpirun -n 2 dev/net/bench_allreduce                         on one machine, through shared memory
  mpirun -n 2 --host a,b dev/net/bench_allreduce              between two machines

All processes of the world form one TP group and sum with the trainer's own mesh_sum, from 4 bytes
to 64 MiB. Each size is first checked: a wrong sum is reported and the exit status is 1. Then the
median of many runs is printed, each after a barrier and as long as the slowest process took, with
the bandwidth of the algorithm (bytes / time) and of the bus (that times 2(R-1)/R: what passes each
link of a ring), and beside it the time that the fit gives.

The fit is a ring's, t = 2(R-1) a us + 2(R-1)/R 8n/(g 10^3) us, by least squares of relative
errors, so that a size counts the same whether it takes microseconds or seconds. The last line is
options for the trainer, and the numbers for dev/net/plan. It is one straight line: where MPI
changes its algorithm with the size, and in shared memory, where large messages fall out of the
cache, the column beside the times says how far off it is.

Before that come small sums, as one token has them (3,072 bytes are the 768 floats of GPT-2 124M,
6,400 the 1,600 of XL): the trainer's, MPI's own, the one that l hides behind computation, and a
bare message of as many bytes between the first two processes, half of a round trip. They take
turns, without barriers. Times are rank 0's: half of them are below p50, one in 100 is above p99.

It does not time the sum over ranks folded into one process (dev/bench_cpu does), nor NCCL.
*/
#include "../../tp_blocks.h"
#include <time.h>

#ifndef USE_MPI
int main(void) {
    fail("built without MPI, so there is nothing to time; install it "
         "(Debian: apt-get install libopenmpi-dev openmpi-bin), make "
         "dev/net/bench_allreduce again and run mpirun -n 2 dev/net/bench_allreduce");
}
#else

enum { RUNS_MIN = 7, RUNS_MAX = 2000, SIZES = 13 }; // 4 bytes times powers of 4, up to 64 MiB
static const double seconds_per_size = 0.4;

// Whole numbers small enough that every order of adding them is exact.
static void sum_check(const Mesh *mesh, float *x, size_t n) {
    float factor = (float)mesh->world * (float)(mesh->world + 1) / 2;
    for (size_t i = 0; i < n; i++) x[i] = (float)(mesh->rank + 1) * (float)(i % 10 + 1);
    mesh_sum(mesh, MESH_TP, x, n, sizeof *x);
    for (size_t i = 0; i < n; i++) {
        float expected = factor * (float)(i % 10 + 1);
        if (x[i] != expected)
            fail("WRONG: the sum of %zu floats has %g at %zu, expected %g", n, (double)x[i], i,
                 (double)expected);
    }
}

// Seconds of one all-reduce, as long as it took in this process.
static double sum_once(const Mesh *mesh, float *x, size_t n) {
    MPI_CHECK(MPI_Barrier(mesh->tp));
    double start = seconds_now();
    mesh_sum(mesh, MESH_TP, x, n, sizeof *x);
    return seconds_now() - start;
}

// Median seconds of all-reduces of n floats, the same in every process. All of them do as many
// runs as rank 0's clock allows.
static double sum_median(const Mesh *mesh, float *x, size_t n, int *runs) {
    static double seconds[RUNS_MAX];
    memset(x, 0, n * sizeof *x); // sums of sums would grow without end
    for (int i = 0; i < 2; i++) seconds[0] = sum_once(mesh, x, n);
    *runs = seconds[0] * RUNS_MAX > seconds_per_size ? (int)(seconds_per_size / seconds[0])
                                                     : RUNS_MAX;
    if (*runs < RUNS_MIN) *runs = RUNS_MIN;
    MPI_CHECK(MPI_Bcast(runs, 1, MPI_INT, 0, mesh->tp));
    for (int i = 0; i < *runs; i++) seconds[i] = sum_once(mesh, x, n);
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, seconds, *runs, MPI_DOUBLE, MPI_MAX, mesh->tp));
    qsort(seconds, (size_t)*runs, sizeof *seconds, compare_ascending);
    return seconds[*runs / 2];
}

// The network whose times have the smallest sum of squared relative errors. network_seconds is
// linear in the latency and in 1/gbits: t_i = latency u + n_i / gbits v. Neither can be negative:
// one that came out so is 0, and the other is fitted alone.
static Network network_fit(const size_t *bytes, const double *seconds, int count, int R) {
    Network hop = {.latency_us = 1}, link = {.gbits = 1};
    double uu = 0, uv = 0, vv = 0, u1 = 0, v1 = 0;
    for (int i = 0; i < count; i++) {
        double u = network_seconds(&hop, R, bytes[i]) / seconds[i];
        double v = network_seconds(&link, R, bytes[i]) / seconds[i];
        uu += u * u, uv += u * v, vv += v * v, u1 += u, v1 += v;
    }
    double determinant = uu * vv - uv * uv;
    double latency = (u1 * vv - v1 * uv) / determinant;
    double per_gbit = (v1 * uu - u1 * uv) / determinant;
    if (latency < 0) latency = 0, per_gbit = v1 / vv;
    if (per_gbit <= 0) return (Network){.latency_us = u1 / uu}; // gbits 0: no limit
    return (Network){.latency_us = latency, .gbits = 1 / per_gbit};
}

// ---- small sums beside bare messages

enum { BY_TRAINER, BY_MPI, HIDDEN, MESSAGE, WAYS };
static const char *const ways[WAYS] = {"mesh_sum", "MPI_Allreduce", "begun and ended",
                                       "message, one way"};
enum { SMALL_MAX = 32768, TURNS = 20, TURN_MAX = 200 };
static const size_t small_bytes[] = {4, 256, 3072, 6400, 12288, SMALL_MAX};
enum { SMALL_SIZES = sizeof small_bytes / sizeof *small_bytes };

// There and back between the first two processes.
static void message_bounce(const Mesh *mesh, float *x, int bytes) {
    int rank = mesh->rank, other = 1 - rank;
    if (rank > 1) return;
    if (rank == 0) MPI_CHECK(MPI_Send(x, bytes, MPI_BYTE, other, 0, mesh->tp));
    MPI_CHECK(MPI_Recv(x, bytes, MPI_BYTE, other, 0, mesh->tp, MPI_STATUS_IGNORE));
    if (rank == 1) MPI_CHECK(MPI_Send(x, bytes, MPI_BYTE, other, 0, mesh->tp));
}

// As the trainer sums what l hides, without computing meanwhile.
static void sum_hidden(const Mesh *mesh, float *x, float *other, size_t n) {
    static PendingSums sums;
    if (mesh->group > 2) sums_begin(&sums, mesh, MESH_TP, x, n, sizeof *x);
    else sums_exchange(&sums, mesh, x, other, n * sizeof *x);
    sums_finish(&sums);
    for (size_t i = 0; i < n && mesh->group == 2; i++) x[i] += other[i];
}

static double way_once(const Mesh *mesh, int way, float *x, float *other, size_t n) {
    double start = seconds_now();
    if (way == BY_TRAINER) mesh_sum(mesh, MESH_TP, x, n, sizeof *x);
    if (way == BY_MPI)
        MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, x, (int)n, MPI_FLOAT, MPI_SUM, mesh->tp));
    if (way == HIDDEN) sum_hidden(mesh, x, other, n);
    if (way == MESSAGE) message_bounce(mesh, x, (int)(n * sizeof *x));
    return (seconds_now() - start) / (way == MESSAGE ? 2 : 1);
}

// All processes do as many runs as rank 0's clock allows.
static int small_turn(const Mesh *mesh, float *x, float *other, size_t n) {
    double each = 1e9;
    for (int i = 0; i < 5; i++) each = fmin(each, way_once(mesh, BY_TRAINER, x, other, n));
    double allowed = seconds_per_size / TURNS / (each + 1e-9);
    int runs = allowed > TURN_MAX ? TURN_MAX : allowed < 5 ? 5 : (int)allowed;
    MPI_CHECK(MPI_Bcast(&runs, 1, MPI_INT, 0, mesh->tp));
    return runs;
}

static void small_print(const Mesh *mesh, float *x) {
    static double seconds[WAYS][TURNS * TURN_MAX];
    static float other[SMALL_MAX / sizeof(float)];
    if (mesh->rank == 0) {
        printf("small sums, us: p50 and p99\n      bytes   runs");
        for (int way = 0; way < WAYS; way++) printf("  %18s", ways[way]);
        printf("\n");
    }
    for (int i = 0; i < SMALL_SIZES; i++) {
        size_t n = small_bytes[i] / sizeof *x;
        int turn = small_turn(mesh, x, other, n), runs = TURNS * turn;
        for (int t = 0; t < TURNS * WAYS; t++) {
            int way = t % WAYS;
            memset(x, 0, n * sizeof *x);
            MPI_CHECK(MPI_Barrier(mesh->tp));
            way_once(mesh, way, x, other, n); // the processes may have come late
            for (int k = 0; k < turn; k++)
                seconds[way][t / WAYS * turn + k] = way_once(mesh, way, x, other, n);
        }
        if (mesh->rank) continue;
        printf("%11zu %6d", small_bytes[i], runs);
        for (int way = 0; way < WAYS; way++) {
            qsort(seconds[way], (size_t)runs, sizeof **seconds, compare_ascending);
            printf("  %8.2f  %8.2f", 1e6 * seconds[way][runs / 2],
                   1e6 * seconds[way][runs - 1 - runs / 100]);
        }
        printf("\n");
    }
    if (mesh->rank == 0) printf("\n");
}

// ----

static void table_print(const size_t *bytes, const double *seconds, const int *runs, Network net,
                        int R) {
    double ring = 2.0 * (R - 1) / R;
    printf("      bytes   runs    median us     algorithm   bus Gbit/s       fit us   fit error\n");
    for (int i = 0; i < SIZES; i++) {
        double gbits = 8e-9 * (double)bytes[i] / seconds[i];
        double fitted = network_seconds(&net, R, bytes[i]);
        printf("%11zu %6d %12.2f  %12.4f %12.4f %12.2f %+10.1f%%\n", bytes[i], runs[i],
               1e6 * seconds[i], gbits, gbits * ring, 1e6 * fitted,
               100 * (fitted / seconds[i] - 1));
    }
    printf("\nfit of %d ranks: %.4g us per hop, %.4g Gbit/s per link\n-nl %.4g -nb %.4g\n", R,
           net.latency_us, net.gbits, net.latency_us, net.gbits);
}

int main(int argc, char **argv) {
    size_t bytes[SIZES];
    double seconds[SIZES];
    int runs[SIZES], world, rank;
    processes_begin(&world, &rank);
    if (world == 1) {
        processes_end();
        fail_hook = fail_exit;
        fail("one process has nobody to talk to; run mpirun -n 2 %s", argv[0]);
    }
    if (argc > 1) fail("'%s': there are no options; run mpirun -n 2 %s", argv[1], argv[0]);
    Mesh mesh = mesh_make(world, rank, world, 1);
    mesh_connect(&mesh);
    float *x = alloc_zeroed((size_t)1 << 2 * SIZES, 1, "the all-reduced buffer");
    small_print(&mesh, x);
    for (int i = 0; i < SMALL_SIZES; i++) sum_check(&mesh, x, small_bytes[i] / sizeof *x);
    for (int i = 0; i < SIZES; i++) {
        bytes[i] = (size_t)4 << 2 * i;
        sum_check(&mesh, x, bytes[i] / sizeof *x);
        seconds[i] = sum_median(&mesh, x, bytes[i] / sizeof *x, &runs[i]);
    }
    if (rank == 0) {
        printf("all-reduce of float sums over %d processes; sums checked\n", world);
        table_print(bytes, seconds, runs, network_fit(bytes, seconds, SIZES, world), world);
        stdout_flush();
    }
    free(x);
    processes_end();
    return 0;
}
#endif
