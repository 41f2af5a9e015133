// out = act(x Gᵀ) · (x Uᵀ) for Hopper: both products of a gated MLP in one tile, multiplied before they leave the registers.
//
// A cluster of two processors computes a tile of 256 tokens, 128 each, and COLUMNS of the output. One warp of a processor loads, two
// warpgroups multiply 64 tokens each by COLUMNS rows of G and, beside them in shared memory, the rows of U of the same columns: so a thread
// has gate and up of a place in its own registers. Each processor loads the rows of one of the two matrices, for both.
//
// Compiled with ELEMENT ("bf16" or "f16"), ACTIVATE(x) and COLUMNS (112 or 128, of a tile) defined.

using u32 = unsigned int;
using u64 = unsigned long long;

struct alignas(64) TensorMap { char bytes[128]; };

constexpr int TOKENS = 128, DEPTH = 64, STAGES = 4;  // DEPTH: one line of 128 bytes, as it is swizzled
constexpr int LINE = 128, X_BYTES = TOKENS * LINE, W_BYTES = 2 * COLUMNS * LINE;
constexpr int MULTIPLIERS = 2, CLUSTER = 2;
constexpr int TOGETHER = 8;  // tiles of different tokens that walk through the columns together, so that their x stays in the cache

// What a warpgroup writes: two boxes of half the columns. Lines of 112 bytes lie apart in the banks, those of 128 are swizzled.
constexpr int CHUNKS = COLUMNS / 16, BOX_LINE = CHUNKS * 16, BOX_BYTES = 64 * BOX_LINE;
constexpr bool SWIZZLED = BOX_LINE == LINE;

__device__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ u32 rank_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// --- barriers in shared memory

__device__ void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ void wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// The same barrier of that processor of the cluster. What was read here was read by finished products, so that nothing needs to be
// released: `.release.cluster` would wait for all of memory, which costs a quarter of the kernel's rate.
__device__ void arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// --- copies of boxes between memory and shared memory

__device__ void load_box(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

__device__ void load_box_for_all(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<unsigned short>((1 << CLUSTER) - 1))
        : "memory");
}

__device__ void store_box(const TensorMap& map, u32 from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column), "r"(row), "r"(from)
                 : "memory");
}

// --- products

// Lines of 128 bytes, swizzled in groups of eight.
__device__ u64 matrix_at(u32 address) {
    return static_cast<u64>((address & 0x3FFFF) >> 4) | (1ULL << 16) | (static_cast<u64>((8 * LINE) >> 4) << 32) | (1ULL << 62);
}

#define R8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define R16(d, i) R8(d, i), R8(d, i + 8)
#define R112(d) R16(d, 0), R16(d, 16), R16(d, 32), R16(d, 48), R16(d, 64), R16(d, 80), R16(d, 96)
#define SUMS_112                                                                                                                   \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"          \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define MULTIPLY(n, sums, x, w, add)                                                        \
    "{\n.reg .pred add;\nsetp.ne.b32 add, " add ", 0;\n"                                    \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." ELEMENT "." ELEMENT " {" sums "}, " x ", " w ", add, 1, 1, 0, 0;\n}"

// 64 tokens × 2 COLUMNS += 64 × 16 times 16 × 2 COLUMNS; `add` 0: = instead of +=.
__device__ void multiply(float (&d)[COLUMNS], u64 x, u64 w, int add) {
#if COLUMNS == 112
    asm volatile(MULTIPLY("224", SUMS_112, "%112", "%113", "%114") : R112(d) : "l"(x), "l"(w), "r"(add));
#else
    asm volatile(MULTIPLY("256", SUMS_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127",
                          "%128", "%129", "%130")
                 : R112(d), R16(d, 112)
                 : "l"(x), "l"(w), "r"(add));
#endif
}

__device__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

__device__ void finish_products(float (&d)[COLUMNS]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ u32 packed(float low, float high) {
    u32 pair;
    asm("cvt.rn." ELEMENT "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ u32 gated_pair(const float (&d)[COLUMNS], int i) {  // the sums of a gate and of what it gates are half of `d` apart
    constexpr int HALF = COLUMNS / 2;
    return packed(ACTIVATE(d[i]) * d[i + HALF], ACTIVATE(d[i + 1]) * d[i + HALF + 1]);
}

// --- the kernel

struct Tile { int token, column; };

// The cluster's tile of that number: tiles of different tokens in groups, a group goes from columns to columns.
__device__ Tile tile_at(int number, int rows, int columns) {
    const int group = number / (TOGETHER * columns), place = number % (TOGETHER * columns);
    const int first = group * TOGETHER, width = min(rows - first, TOGETHER);
    return {(first + place % width) * CLUSTER * TOKENS, place / width * COLUMNS};
}

struct Ring {
    int stage = 0;
    u32 parity = 0;
    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(128 * (1 + MULTIPLIERS), 1)
    gated_product(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                  const __grid_constant__ TensorMap out_map, int num_tokens, int inner, int depth) {
    extern __shared__ char memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u;
    const u32 x_at = base, w_at = x_at + STAGES * X_BYTES, out_at = w_at + STAGES * W_BYTES;
    const u32 full = out_at + MULTIPLIERS * 2 * BOX_BYTES, empty = full + 8 * STAGES;
    const u32 rank = rank_in_cluster();
    const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(full + 8 * stage, 1);
            init_barrier(empty + 8 * stage, MULTIPLIERS * CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();
    const int rows = (num_tokens - 1) / (CLUSTER * TOKENS) + 1, columns = (inner - 1) / COLUMNS + 1;
    const int num_tiles = rows * columns, blocks = depth / DEPTH, step = gridDim.x / CLUSTER;
    Ring ring;
    if (group == MULTIPLIERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (thread == 0) {
            for (int number = blockIdx.x / CLUSTER; number < num_tiles; number += step) {
                const Tile tile = tile_at(number, rows, columns);
                for (int block = 0; block < blocks; block++, ring.advance()) {
                    const u32 here = full + 8 * ring.stage, w = w_at + ring.stage * W_BYTES;
                    wait(empty + 8 * ring.stage, ring.parity ^ 1);
                    expect_bytes(here, X_BYTES + W_BYTES);
                    load_box(x_at + ring.stage * X_BYTES, x_map, block * DEPTH, tile.token + rank * TOKENS, here);
                    load_box_for_all(w + rank * (W_BYTES / 2), w_map, block * DEPTH, rank * inner + tile.column, here);
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const u32 mine = out_at + group * 2 * BOX_BYTES;
        const int lane = thread % 32, line = thread / 32 * 16 + lane % 16;  // where this lane's chunks of stmatrix go
        float d[COLUMNS];
        for (int number = blockIdx.x / CLUSTER; number < num_tiles; number += step) {
            const Tile tile = tile_at(number, rows, columns);
            for (int block = 0; block < blocks; block++, ring.advance()) {
                wait(full + 8 * ring.stage, ring.parity);
                const u64 x = matrix_at(x_at + ring.stage * X_BYTES + group * 64 * LINE), w = matrix_at(w_at + ring.stage * W_BYTES);
                begin_products();
#pragma unroll
                for (int k = 0; k < DEPTH / 16; k++) multiply(d, x + 2 * k, w + 2 * k, block > 0 || k > 0);
                commit_products();
                finish_products(d);  // the other warpgroup's products go on meanwhile
                if (thread < CLUSTER) arrive_at(empty + 8 * ring.stage, thread);
            }
            if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
            asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
#pragma unroll
            for (int j = 0; j < 2 * CHUNKS; j += 2) {
                const int chunk = j + lane / 16, place = SWIZZLED ? chunk % CHUNKS ^ lane % 8 : chunk % CHUNKS;
                const u32 to = mine + chunk / CHUNKS * BOX_BYTES + line * BOX_LINE + place * 16;
                asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(gated_pair(d, 4 * j)),
                             "r"(gated_pair(d, 4 * j + 2)), "r"(gated_pair(d, 4 * j + 4)), "r"(gated_pair(d, 4 * j + 6))
                             : "memory");
            }
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
            if (thread == 0) {
                const int token = tile.token + rank * TOKENS + group * 64;
                if (token < num_tokens) {
                    store_box(out_map, mine, tile.column, token);
                    if (tile.column + COLUMNS / 2 < inner) store_box(out_map, mine + BOX_BYTES, tile.column + COLUMNS / 2, token);
                }
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            }
        }
        if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    __syncwarp();
    meet_cluster();  // nobody leaves while the other may still write here
}
