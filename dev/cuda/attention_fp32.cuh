// Attention in fp32: 256 threads, 16 x 16, over tiles in plain shared memory. Included by
// train_gpt2.cu, which has the bf16 kernels of the same names.
//
// Thread (ty, tx) owns the rows ty, ty+16, ... of a tile, of scores the columns tx, tx+16, ..., of
// outputs D/16 columns that lie together. A row is owned by 16 lanes of one warp: they reduce it
// with shuffles, and what a warp writes to the tile of probabilities only it reads again.

enum { ATTENTION_THREADS = 256 };

template <int D> struct AttentionTile {
    enum {
        ROWS = D <= 64 ? 64 : 32, // queries or keys of a tile: as many as leave room for four tiles
        EACH = ROWS / 16,         // of which a thread owns
        // 4 floats more, so that 8 rows' 16-byte reads of one column meet no bank twice.
        STRIDE = D + 4,
        SIZE = ROWS * STRIDE,
        P_STRIDE = ROWS + 4,
        P_SIZE = ROWS * P_STRIDE,
        COLUMNS = D / 16
    };
};

// What a launch has to know: rows that a block owns, bytes of shared memory.
template <int D> struct AttentionForward {
    enum {
        OWN = AttentionTile<D>::ROWS,
        SHARED = (3 * AttentionTile<D>::SIZE + AttentionTile<D>::P_SIZE) * sizeof(float)
    };
};
template <int D> struct AttentionBackward {
    enum {
        OWN = AttentionTile<D>::ROWS,
        SHARED = (4 * AttentionTile<D>::SIZE + AttentionTile<D>::P_SIZE) * sizeof(float)
    };
};

// N floats that are read at once: 8 or 16 bytes a time.
template <int N> struct alignas(N < 4 ? N * sizeof(float) : 16) Floats { float at[N]; };
template <int N> __device__ __forceinline__ Floats<N> floats_load(const float *from) {
    return *reinterpret_cast<const Floats<N> *>(from);
}

// tile = rows first .. first+ROWS-1 of a matrix (T,HS) with row stride `stride`; what lies outside
// of it becomes 0.
template <int D, bool FULL>
__device__ __forceinline__ void tile_load(float *tile, const float *matrix, int stride, int first,
                                          int T, int HS) {
    constexpr int PACKS = D / 4;
    for (int i = threadIdx.x; i < AttentionTile<D>::ROWS * PACKS; i += ATTENTION_THREADS) {
        int row = i / PACKS, column = i % PACKS * 4;
        Packed<float> values = {};
        bool there = first + row < T && (FULL || column < HS);
        if (there) values = pack_load(matrix + (ptrdiff_t)(first + row) * stride + column);
        pack_store(tile + row * AttentionTile<D>::STRIDE + column, values);
    }
}

// scores (EACH,EACH) = this thread's part of a bᵀ, for tiles a and b
template <int D, int EACH = AttentionTile<D>::EACH>
__device__ __forceinline__ void tile_scores(float (&scores)[EACH][EACH], const float *a,
                                            const float *b, int ty, int tx) {
    constexpr int STRIDE = AttentionTile<D>::STRIDE;
    for (int i = 0; i < EACH; i++) for (int j = 0; j < EACH; j++) scores[i][j] = 0;
    #pragma unroll 4
    for (int c = 0; c < D; c += 4) {
        Floats<4> x[EACH], y[EACH];
        for (int i = 0; i < EACH; i++) x[i] = floats_load<4>(a + (ty + 16 * i) * STRIDE + c);
        for (int j = 0; j < EACH; j++) y[j] = floats_load<4>(b + (tx + 16 * j) * STRIDE + c);
        for (int i = 0; i < EACH; i++) {
            for (int j = 0; j < EACH; j++) {
                for (int n = 0; n < 4; n++) scores[i][j] += x[i].at[n] * y[j].at[n];
            }
        }
    }
}

// sums (EACH,COLUMNS) += this thread's part of p b, for a tile of probabilities p and a tile b. The
// warp that needs a row of p has just written it, which is all that __syncwarp has to wait for.
template <int D, int EACH = AttentionTile<D>::EACH, int COLUMNS = AttentionTile<D>::COLUMNS>
__device__ __forceinline__ void tile_accumulate(float (&sums)[EACH][COLUMNS], float *p,
                                                const float (&mine)[EACH][EACH], const float *b,
                                                int ty, int tx) {
    constexpr int ROWS = AttentionTile<D>::ROWS, P_STRIDE = AttentionTile<D>::P_STRIDE;
    for (int i = 0; i < EACH; i++) {
        for (int j = 0; j < EACH; j++) p[(ty + 16 * i) * P_STRIDE + tx + 16 * j] = mine[i][j];
    }
    __syncwarp();
    #pragma unroll 2
    for (int k = 0; k < ROWS; k += 4) {
        Floats<4> x[EACH];
        for (int i = 0; i < EACH; i++) x[i] = floats_load<4>(p + (ty + 16 * i) * P_STRIDE + k);
        for (int n = 0; n < 4; n++) {
            Floats<COLUMNS> y = floats_load<COLUMNS>(b + (k + n) * AttentionTile<D>::STRIDE +
                                                     tx * COLUMNS);
            for (int i = 0; i < EACH; i++) {
                for (int c = 0; c < COLUMNS; c++) sums[i][c] += x[i].at[n] * y.at[c];
            }
        }
    }
    __syncwarp(); // the next writer of these rows waits for their readers
}

// Rows first .. of a matrix (T,HS) = factor * sums
template <int D, int EACH = AttentionTile<D>::EACH, int COLUMNS = AttentionTile<D>::COLUMNS>
__device__ __forceinline__ void tile_store(float *matrix, int stride,
                                           const float (&sums)[EACH][COLUMNS], float factor,
                                           int first, int T, int HS, int ty, int tx) {
    for (int i = 0; i < EACH; i++) {
        int row = first + ty + 16 * i;
        if (row >= T) continue;
        for (int c = 0; c < COLUMNS; c++) {
            if (tx * COLUMNS + c < HS) {
                matrix[(ptrdiff_t)row * stride + tx * COLUMNS + c] = sums[i][c] * factor;
            }
        }
    }
}

// to (HS) = factor * the sums over the rows of a tile; scratch (16,D)
template <int D, int EACH = AttentionTile<D>::EACH, int COLUMNS = AttentionTile<D>::COLUMNS>
__device__ __forceinline__ void columns_sum(float *to, float *scratch,
                                            const float (&sums)[EACH][COLUMNS], float factor,
                                            int HS, int ty, int tx) {
    __syncthreads(); // scratch is read no more
    for (int c = 0; c < COLUMNS; c++) {
        float sum = 0;
        for (int i = 0; i < EACH; i++) sum += sums[i][c];
        scratch[ty * D + tx * COLUMNS + c] = sum;
    }
    __syncthreads();
    if ((int)threadIdx.x >= HS) return;
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += scratch[i * D + threadIdx.x];
    to[threadIdx.x] = sum * factor;
}

// A row's scores, `scores` of them in this thread, become exponentials relative to its largest
// score so far; `output` and `sum`, which were relative to an older one, follow. A NaN is not the
// largest, but its exponential is NaN and stays.
template <int EACH, int COLUMNS>
__device__ __forceinline__ void softmax_row(float (&scores)[EACH], float (&output)[COLUMNS],
                                            float &largest, float &sum) {
    float most = largest, more = 0;
    for (int j = 0; j < EACH; j++) most = fmaxf(most, scores[j]);
    for (int step = 8; step > 0; step /= 2) {
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, step));
    }
    float shrink = expf(largest - most); // 0 for the first tile
    for (int j = 0; j < EACH; j++) {
        scores[j] = expf(scores[j] - most);
        more += scores[j];
    }
    for (int c = 0; c < COLUMNS; c++) output[c] *= shrink;
    sum = sum * shrink + more; // this thread's part of it
    largest = most;
}

template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
attention_forward_kernel(float *out, float *lse, const float *qkv, AttentionShape s, float scale) {
    using Tile = AttentionTile<D>;
    constexpr int ROWS = Tile::ROWS, EACH = Tile::EACH, COLUMNS = Tile::COLUMNS;
    SHARED_DYNAMIC(float, Q);
    float *K = Q + Tile::SIZE, *V = K + Tile::SIZE, *P = V + Tile::SIZE;
    int first = (gridDim.x - 1 - blockIdx.x) * ROWS; // the longest work comes first
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    AttentionHead head = attention_head(s, s.past + s.T + s.spare);
    const float *matrix = qkv + head.qkv;
    float output[EACH][COLUMNS] = {}, largest[EACH], sum[EACH] = {};
    for (int i = 0; i < EACH; i++) largest[i] = -INFINITY;
    int position = s.past + first, keys = s.past + s.T; // of the first query; rows of K and V
    int end = min(position + ROWS, keys);
    tile_load<D, FULL>(Q, matrix, head.qkv_stride, position, keys, s.HS);
    for (int key = 0; key < end; key += ROWS) {
        __syncthreads(); // the previous tile is read no more
        tile_load<D, FULL>(K, matrix + head.width, head.qkv_stride, key, keys, s.HS);
        tile_load<D, FULL>(V, matrix + 2 * head.width, head.qkv_stride, key, keys, s.HS);
        attention_tile_barrier();
        float scores[EACH][EACH];
        tile_scores<D>(scores, Q, K, ty, tx);
        for (int i = 0; i < EACH; i++) {
            for (int j = 0; j < EACH; j++) {
                bool seen = attention_sees(position + ty + 16 * i, key + tx + 16 * j);
                scores[i][j] = seen ? scores[i][j] * scale : -INFINITY;
            }
            softmax_row(scores[i], output[i], largest[i], sum[i]);
        }
        tile_accumulate<D>(output, P, scores, V, ty, tx);
    }
    for (int i = 0; i < EACH; i++) {
        int row = first + ty + 16 * i;
        for (int step = 8; step > 0; step /= 2) sum[i] += __shfl_xor_sync(FULL_WARP, sum[i], step);
        for (int c = 0; c < COLUMNS; c++) output[i][c] /= sum[i];
        if (tx == 0 && row < s.T) lse[head.row + row] = largest[i] + logf(sum[i]);
    }
    tile_store<D>(out + head.out, head.width, output, 1, first, s.T, s.HS, ty, tx);
}

// P and dS of one query and one key, from what their products came to. Rounding can push the log of
// a probability above 0, the more the larger its terms; the comparison lets a NaN through.
__device__ __forceinline__ void attention_backward_pair(float &p, float &ds, int query, int key,
                                                        float scale, float lse, float delta) {
    float log_p = p * scale - lse;
    if (log_p > 0) log_p = 0;
    p = attention_sees(query, key) ? expf(log_p) : 0;
    ds = p * (ds - delta);
}

// dQ of a tile of queries, its column sums, and `rows` of them: lse and delta
template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
attention_backward_queries_kernel(float *dqkv, float *sums, AttentionRows rows,
                                  const float *dout, const float *out, const float *lse,
                                  const float *qkv, AttentionShape s, float scale) {
    using Tile = AttentionTile<D>;
    constexpr int ROWS = Tile::ROWS, EACH = Tile::EACH;
    SHARED_DYNAMIC(float, K);
    float *V = K + Tile::SIZE, *Q = V + Tile::SIZE, *dO = Q + Tile::SIZE, *P = dO + Tile::SIZE;
    int first = (gridDim.x - 1 - blockIdx.x) * ROWS; // the longest work comes first
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    AttentionHead head = attention_head(s, s.T);
    const float *matrix = qkv + head.qkv;
    float dQ[EACH][Tile::COLUMNS] = {}, row_lse[EACH], row_delta[EACH];
    for (int i = 0; i < EACH; i++) {
        int row = first + ty + 16 * i;
        row_lse[i] = row < s.T ? lse[head.row + row] : 0;
        row_delta[i] = 0;
        for (int c = tx; c < s.HS && row < s.T; c += 16) {
            size_t at = head.out + (size_t)row * head.width + c;
            row_delta[i] += dout[at] * out[at];
        }
        for (int step = 8; step > 0; step /= 2) {
            row_delta[i] += __shfl_xor_sync(FULL_WARP, row_delta[i], step);
        }
        if (tx == 0 && row < s.T) {
            rows.lse[head.row + row] = row_lse[i];
            rows.delta[head.row + row] = row_delta[i];
        }
    }
    tile_load<D, FULL>(Q, matrix, head.qkv_stride, first, s.T, s.HS);
    tile_load<D, FULL>(dO, dout + head.out, head.width, first, s.T, s.HS);
    for (int key = 0; key <= first; key += ROWS) {
        __syncthreads(); // the previous tile is read no more
        tile_load<D, FULL>(K, matrix + head.width, head.qkv_stride, key, s.T, s.HS);
        tile_load<D, FULL>(V, matrix + 2 * head.width, head.qkv_stride, key, s.T, s.HS);
        __syncthreads();
        float p[EACH][EACH], ds[EACH][EACH];
        tile_scores<D>(p, Q, K, ty, tx);
        tile_scores<D>(ds, dO, V, ty, tx);
        for (int i = 0; i < EACH; i++) {
            for (int j = 0; j < EACH; j++) {
                attention_backward_pair(p[i][j], ds[i][j], first + ty + 16 * i, key + tx + 16 * j,
                                        scale, row_lse[i], row_delta[i]);
            }
        }
        tile_accumulate<D>(dQ, P, ds, K, ty, tx);
    }
    tile_store<D>(dqkv + head.qkv, head.qkv_stride, dQ, scale, first, s.T, s.HS, ty, tx);
    columns_sum<D>(tile_sums(sums, head, first / ROWS, s.HS), K, dQ, scale, s.HS, ty, tx);
}

// dK and dV of a tile of keys, and their column sums. Rows of P and dS are keys here, columns
// queries.
template <int D, bool FULL>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1)
attention_backward_keys_kernel(float *dqkv, float *sums, AttentionRows rows,
                               const float *dout, const float *qkv, AttentionShape s,
                               float scale) {
    using Tile = AttentionTile<D>;
    constexpr int ROWS = Tile::ROWS, EACH = Tile::EACH;
    SHARED_DYNAMIC(float, K);
    float *V = K + Tile::SIZE, *Q = V + Tile::SIZE, *dO = Q + Tile::SIZE, *P = dO + Tile::SIZE;
    int first = blockIdx.x * ROWS; // the first keys have the most queries
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    AttentionHead head = attention_head(s, s.T);
    const float *matrix = qkv + head.qkv;
    float dK[EACH][Tile::COLUMNS] = {}, dV[EACH][Tile::COLUMNS] = {};
    tile_load<D, FULL>(K, matrix + head.width, head.qkv_stride, first, s.T, s.HS);
    tile_load<D, FULL>(V, matrix + 2 * head.width, head.qkv_stride, first, s.T, s.HS);
    for (int query = first; query < s.T; query += ROWS) {
        __syncthreads(); // the previous tile is read no more
        tile_load<D, FULL>(Q, matrix, head.qkv_stride, query, s.T, s.HS);
        tile_load<D, FULL>(dO, dout + head.out, head.width, query, s.T, s.HS);
        __syncthreads();
        float p[EACH][EACH], ds[EACH][EACH];
        tile_scores<D>(p, K, Q, ty, tx);
        tile_scores<D>(ds, V, dO, ty, tx);
        for (int j = 0; j < EACH; j++) {
            int column = query + tx + 16 * j;
            float row_lse = column < s.T ? rows.lse[head.row + column] : 0;
            float row_delta = column < s.T ? rows.delta[head.row + column] : 0;
            for (int i = 0; i < EACH; i++) {
                attention_backward_pair(p[i][j], ds[i][j], column, first + ty + 16 * i, scale,
                                        row_lse, row_delta);
            }
        }
        tile_accumulate<D>(dV, P, p, dO, ty, tx);
        tile_accumulate<D>(dK, P, ds, Q, ty, tx);
    }
    float *dmatrix = dqkv + head.qkv;
    tile_store<D>(dmatrix + head.width, head.qkv_stride, dK, scale, first, s.T, s.HS, ty, tx);
    tile_store<D>(dmatrix + 2 * head.width, head.qkv_stride, dV, 1, first, s.T, s.HS, ty, tx);
    float *to = tile_sums(sums, head, blockIdx.x, s.HS) + head.width;
    columns_sum<D>(to, K, dK, scale, s.HS, ty, tx);
    columns_sum<D>(to + head.width, V, dV, 1, s.HS, ty, tx);
}
