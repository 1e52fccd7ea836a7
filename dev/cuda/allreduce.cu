/*
All-reduces between processes, by NCCL and by MPI through host memory: the trainer's group_reduce.
(Over ranks folded into one process: dev/cuda/merge.)

  mpirun -n 2 dev/cuda/allreduce      from 4 KiB to 256 MiB

NCCL wants a GPU for each process, MPI does not.

The rate is that of the algorithm, bytes / time; in the note that of the bus, 2 (n-1)/n times as
much, which passes each link of a ring of n processes. A sample takes as long as the slowest
process. There is no ceiling that this could be a share of.
*/
#include "bench.h"

enum { RUNS_MIN = 7, RUNS_MAX = 200 };
static const size_t SMALLEST = 4 << 10, LARGEST = emulated ? 256 << 10 : 256 << 20; // bytes

#ifdef USE_MPI

// Whole numbers that bf16 holds, and so small that every order of adding them is exact.
// Returns how many sums are wrong.
static double reduce_check(GPT2 *m, real *x, size_t n) {
    std::vector<real> values(n);
    double wrong = 0;
    int world = m->mesh.world, largest = 128 / world;
    for (size_t i = 0; i < n; i++) values[i] = (real)(float)((i + m->mesh.rank) % largest);
    CUDA_CHECK(cudaMemcpy(x, values.data(), n * sizeof(real), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());
    group_reduce(m, MESH_TP, x, n, ELEMENT_REAL, 0, gpu.stream);
    std::vector<double> found = fetch(x, n);
    for (size_t i = 0; i < n; i++) {
        double expected = 0;
        for (int r = 0; r < world; r++) expected += (double)((i + r) % largest);
        wrong += found[i] != expected;
    }
    mesh_sum(&m->mesh, MESH_TP, &wrong, 1, sizeof wrong);
    return wrong;
}

// Seconds of each of `count` all-reduces in a row, in the slowest process.
static double reduce_seconds(GPT2 *m, real *x, size_t n, int count) {
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    MPI_CHECK(MPI_Barrier(m->mesh.tp));
    double began = seconds_now();
    for (int i = 0; i < count; i++) group_reduce(m, MESH_TP, x, n, ELEMENT_REAL, 0, gpu.stream);
    CUDA_CHECK(cudaStreamSynchronize(gpu.stream));
    double seconds = (seconds_now() - began) / count;
    MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, m->mesh.tp));
    return seconds;
}

// All processes do as many runs as the slowest one's clock allows.
static double reduce_median(GPT2 *m, real *x, size_t n) {
    double samples[RUNS_MAX];
    CUDA_CHECK(cudaMemset(x, 0, n * sizeof(real))); // sums of sums would grow without end
    CUDA_CHECK(cudaDeviceSynchronize());
    reduce_seconds(m, x, n, 3);
    double once = reduce_seconds(m, x, n, 3);
    int batch = once > 1e-3 ? 1 : (int)fmin(BATCH_MAX, ceil(1e-3 / once));
    int runs = (int)fmax(RUNS_MIN, fmin(RUNS_MAX, seconds_per_kernel / (once * batch)));
    for (int i = 0; i < runs; i++) samples[i] = reduce_seconds(m, x, n, batch);
    std::sort(samples, samples + runs);
    return samples[runs / 2];
}

static void bench_way(const char *name, int way, const Mesh *mesh) {
    GPT2 m;
    memset(&m, 0, sizeof m);
    m.mesh = *mesh;
    comm_open(mesh, way);
    for (size_t bytes = SMALLEST; bytes <= LARGEST; bytes *= 4) {
        size_t n = bytes / sizeof(real);
        Sets<real> x(n, 1, 0);
        Row row{.kernel = name, .shape = text("%zuKiB", bytes >> 10), .bytes = (double)bytes,
                .tolerance = 0};
        row.error = reduce_check(&m, x.at, n); // how many are wrong
        double seconds = timing ? reduce_median(&m, x.at, n) : 0;
        double ring = 2.0 * (mesh->world - 1) / mesh->world;
        std::string bus = seconds > 0 ? text("bus %.2f GB/s, ", bytes * ring / seconds * 1e-9) : "";
        row_print(row, seconds, bus + text("%d processes", mesh->world));
    }
    comm_close();
    if (m.mpi_buffer) CUDA_CHECK(cudaFreeHost(m.mpi_buffer));
}
#endif

int main(int argc, char **argv) {
    int world, rank, gpus = 0;
    processes_begin(&world, &rank);
    if (argc > 1) fail("'%s': there are no options; run mpirun -n 2 %s", argv[1], argv[0]);
    CUDA_CHECK(cudaGetDeviceCount(&gpus));
    // One prints.
    if (rank && !freopen("/dev/null", "w", stdout)) fail("/dev/null: %s", strerror(errno));
    bench_open("allreduce", processes_local_rank() % max(gpus, 1), 0);
#ifdef USE_MPI
    if (world > 1) {
        Mesh mesh = mesh_make(world, rank, world, 1);
        mesh_connect(&mesh);
        float alone = (float)processes_first_with(&gpu.properties.uuid, sizeof gpu.properties.uuid,
                                                  world, rank);
        mesh_sum(&mesh, MESH_TP, &alone, 1, sizeof alone);
#ifdef USE_NCCL
        if (alone == world) bench_way("allreduce_nccl", COMM_NCCL, &mesh);
        else
            bench_skip("allreduce_nccl",
                       text("%d processes on %.0f GPUs; it wants one for each", world, alone)
                           .c_str());
#else
        bench_skip("allreduce_nccl",
                   "built without NCCL (NVIDIA's CUDA repository: apt-get install libnccl-dev)");
#endif
        bench_way("allreduce_mpi", COMM_MPI, &mesh);
    } else
#endif
    {
        bench_skip("allreduce_nccl", "one process: mpirun -n 2 dev/cuda/allreduce, "
                                     "in a build with MPI and NCCL, on two GPUs");
        bench_skip("allreduce_mpi",
                   "one process: mpirun -n 2 dev/cuda/allreduce, in a build with MPI");
    }
    int status = bench_close();
    processes_end();
    return status;
}
