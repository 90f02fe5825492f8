// Trains and evaluates LANES networks of one architecture at once: network l lives in lane l of every vector.
//
// Compiled by flownlib/speed/lanes.py with -DREAL (float or double), -DLANES, -DACCUMULATORS (vector registers that a tile of
// sums may use), -DSAMPLES (samples that pass through the layers together) and -DNET (the list of layers), e.g.
//   -DNET="Conv<1,8,5,2,1,28,28>,Conv<8,6,5,2,1,12,12>,Conv<6,4,2,1,1,4,4>,Linear<36,20,true>,Linear<20,10,false>"
// Parameters are stored as V[inputs][outputs] with the bias as the last row, activations as V[row][column][channel].
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

typedef REAL V __attribute__((vector_size(LANES * sizeof(REAL))));
typedef std::conditional_t<sizeof(REAL) == 4, int32_t, int64_t> Place;
typedef Place Places __attribute__((vector_size(sizeof(V))));
#define UNROLL _Pragma("GCC unroll 32")
// gcc would load a weight again for every product, and loads are as scarce as products: this keeps it in a register
#if defined(__clang__) || ACCUMULATORS < 16 || !(defined(__x86_64__) || defined(__aarch64__))
#define KEEP(value)
#elif defined(__x86_64__)
#define KEEP(value) asm("" : "+v"(value))
#else
#define KEEP(value) asm("" : "+w"(value))
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE V relu(V a) { return V{} > a ? V{} : a; }             // keeps NaN, as torch does
INLINE V in_lanes(V a) { return a; }
INLINE V in_lanes(REAL a) { return a - V{}; }                // a - 0 is a, whereas a + 0 would cost an addition
INLINE V where_positive(V a, V g) { return a <= V{} ? V{} : g; }
constexpr int largest_divisor(int n, int limit) {
    for (int d = limit < n ? limit : n; d > 1; d--)
        if (n % d == 0) return d;
    return 1;
}
constexpr int at_least_one(int n) { return n < 1 ? 1 : n; }

// Convolution without padding, ReLU, max-pooling by POOL. The input is [HEIGHT][WIDTH][IN_C].
template <int IN_C, int OUT_C, int K, int STRIDE, int POOL, int HEIGHT, int WIDTH>
struct Conv {
    static constexpr int OH = (HEIGHT - K) / STRIDE + 1, OW = (WIDTH - K) / STRIDE + 1, PH = OH / POOL, PW = OW / POOL;
    static constexpr int IN = HEIGHT * WIDTH * IN_C, OUT = PH * PW * OUT_C, RAW = OH * OW * OUT_C;
    static constexpr int TAPS = K * IN_C;  // of one kernel row; they are neighbours in memory
    static constexpr int WEIGHTS = K * TAPS * OUT_C, SIZE = WEIGHTS + OUT_C;
    static constexpr int O = largest_divisor(OUT_C, 6);              // outputs in a tile
    static constexpr int T = at_least_one(ACCUMULATORS / O);         // positions, or taps, in a tile
    static constexpr int X = STRIDE > 1 ? ACCUMULATORS / 2 : 4;      // input columns in a tile of the input gradient
    static constexpr int C = largest_divisor(IN_C, at_least_one(ACCUMULATORS / X));
    static constexpr int BLOCK = at_least_one(8192 / int(OW * OUT_C * sizeof(V)));  // rows of gradient that stay in L1
    V raw[SAMPLES][POOL > 1 ? RAW : 1], d_raw[POOL > 1 ? RAW : 1];

    template <int N, class In>
    INLINE void forward_tile(const V* w, const V* bias, const In* x, V* out) {
        V sum[N][O];
        UNROLL for (int t = 0; t < N; t++) UNROLL for (int o = 0; o < O; o++) sum[t][o] = bias[o];
        for (int i = 0; i < K; i++)
            for (int k = 0; k < TAPS; k++) {
                V weight[O];
                UNROLL for (int o = 0; o < O; o++) { weight[o] = w[(i * TAPS + k) * OUT_C + o]; KEEP(weight[o]); }
                const In* in = x + i * WIDTH * IN_C + k;
                UNROLL for (int t = 0; t < N; t++) {
                    V value = in_lanes(in[t * STRIDE * IN_C]);
                    UNROLL for (int o = 0; o < O; o++) sum[t][o] += value * weight[o];
                }
            }
        UNROLL for (int t = 0; t < N; t++) UNROLL for (int o = 0; o < O; o++) out[t * OUT_C + o] = relu(sum[t][o]);
    }

    template <class In>
    void forward(const V* w, const In* x, V* y) {
        for (int o = 0; o < OUT_C; o += O)
            for (int r = 0; r < OH; r++) {
                const In* in = x + r * STRIDE * WIDTH * IN_C;
                V* to = y + r * OW * OUT_C + o;
                int c = 0;
                for (; c + T <= OW; c += T)
                    forward_tile<T>(w + o, w + WEIGHTS + o, in + c * STRIDE * IN_C, to + c * OUT_C);
                if constexpr (OW % T) forward_tile<OW % T>(w + o, w + WEIGHTS + o, in + c * STRIDE * IN_C, to + c * OUT_C);
            }
    }

    void pool(const V* y, V* out) {
        for (int r = 0; r < PH; r++)
            for (int c = 0; c < PW; c++)
                for (int o = 0; o < OUT_C; o++) {
                    V best = y[(r * POOL * OW + c * POOL) * OUT_C + o];
                    for (int q = 1; q < POOL * POOL; q++) {
                        V a = y[((r * POOL + q / POOL) * OW + c * POOL + q % POOL) * OUT_C + o];
                        best = best > a ? best : a;
                    }
                    out[(r * PW + c) * OUT_C + o] = best;
                }
    }

    // the gradient of max-pooling goes to the first of the largest, as in torch
    void unpool(const V* y, const V* out, const V* d_out) {
        memset(d_raw, 0, sizeof d_raw);
        for (int r = 0; r < PH; r++)
            for (int c = 0; c < PW; c++)
                for (int o = 0; o < OUT_C; o++) {
                    V best = out[(r * PW + c) * OUT_C + o], left = where_positive(best, d_out[(r * PW + c) * OUT_C + o]);
                    for (int q = 0; q < POOL * POOL; q++) {
                        int place = ((r * POOL + q / POOL) * OW + c * POOL + q % POOL) * OUT_C + o;
                        auto here = y[place] == best;
                        d_raw[place] = here ? left : V{};
                        left = here ? V{} : left;
                    }
                }
    }

    template <int N, class In>
    INLINE void weight_tile(V* g, const In* x, const V* d, int rows) {
        V sum[N][O];
        UNROLL for (int k = 0; k < N; k++) UNROLL for (int o = 0; o < O; o++) sum[k][o] = g[k * OUT_C + o];
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < OW; c++) {
                const In* in = x + (r * WIDTH + c) * STRIDE * IN_C;
                V slope[O];
                UNROLL for (int o = 0; o < O; o++) { slope[o] = d[(r * OW + c) * OUT_C + o]; KEEP(slope[o]); }
                UNROLL for (int k = 0; k < N; k++) {
                    V value = in_lanes(in[k]);
                    UNROLL for (int o = 0; o < O; o++) sum[k][o] += value * slope[o];
                }
            }
        UNROLL for (int k = 0; k < N; k++) UNROLL for (int o = 0; o < O; o++) g[k * OUT_C + o] = sum[k][o];
    }

    template <class In>
    void weight_gradient(V* g, const In* x, const V* d) {
        for (int p = 0; p < OH * OW; p++)
            for (int o = 0; o < OUT_C; o++) g[WEIGHTS + o] += d[p * OUT_C + o];
        for (int r = 0; r < OH; r += BLOCK)
            for (int i = 0; i < K; i++)
                for (int o = 0; o < OUT_C; o += O) {
                    const In* in = x + (r * STRIDE + i) * WIDTH * IN_C;
                    const V* dd = d + r * OW * OUT_C + o;
                    V* to = g + i * TAPS * OUT_C + o;
                    int k = 0, rows = OH - r < BLOCK ? OH - r : BLOCK;
                    for (; k + T <= TAPS; k += T) weight_tile<T>(to + k * OUT_C, in + k, dd, rows);
                    if constexpr (TAPS % T) weight_tile<TAPS % T>(to + k * OUT_C, in + k, dd, rows);
                }
    }

    // input gradient of columns X0 … X0+N of one row: every output column that saw them, every tap that did it
    template <int X0, int N>
    INLINE void input_tile(const V* w, const V* d, V* d_x, int row) {
        constexpr int low = X0 < K ? 0 : (X0 - K) / STRIDE + 1;
        constexpr int high = (X0 + N - 1) / STRIDE < OW - 1 ? (X0 + N - 1) / STRIDE : OW - 1;
        V sum[N][C] = {};
        for (int i = row % STRIDE; i < K && i <= row; i += STRIDE) {
            int r = (row - i) / STRIDE;
            if (r >= OH) continue;
            for (int o = 0; o < OUT_C; o++) {
                V seen[high - low + 1];
                UNROLL for (int c = low; c <= high; c++) { seen[c - low] = d[(r * OW + c) * OUT_C + o]; KEEP(seen[c - low]); }
                UNROLL for (int j = 0; j < K; j++) UNROLL for (int c = 0; c < C; c++) {
                    V weight = w[((i * K + j) * IN_C + c) * OUT_C + o];
                    UNROLL for (int q = low; q <= high; q++) {
                        int x = q * STRIDE + j - X0;
                        if (x >= 0 && x < N) sum[x][c] += seen[q - low] * weight;
                    }
                }
            }
        }
        UNROLL for (int x = 0; x < N; x++) UNROLL for (int c = 0; c < C; c++) d_x[x * IN_C + c] = sum[x][c];
    }

    template <int X0>
    INLINE void input_row(const V* w, const V* d, V* d_x, int row) {
        constexpr int n = WIDTH - X0 < X ? WIDTH - X0 : X;
        input_tile<X0, n>(w, d, d_x + X0 * IN_C, row);
        if constexpr (X0 + n < WIDTH) input_row<X0 + n>(w, d, d_x, row);
    }

    void input_gradient(const V* w, const V* d, V* d_x) {
        for (int c = 0; c < IN_C; c += C)  // the slowest loop, so that this slice of the weights stays in L1
            for (int row = 0; row < HEIGHT; row++) input_row<0>(w + c * OUT_C, d, d_x + row * WIDTH * IN_C + c, row);
    }

    template <class In>
    void forward_all(const V* w, const In* x, V* out) {
        for (int s = 0; s < SAMPLES; s++) {
            forward(w, x + s * IN, POOL > 1 ? raw[s] : out + s * OUT);
            if constexpr (POOL > 1) pool(raw[s], out + s * OUT);
        }
    }

    template <class In>
    void backward_all(const V* w, V* g, const In* x, const V* out, V* d_out, V* d_x) {
        for (int s = 0; s < SAMPLES; s++) {
            V* d = POOL > 1 ? d_raw : d_out + s * OUT;
            if constexpr (POOL > 1)
                unpool(raw[s], out + s * OUT, d_out + s * OUT);
            else
                for (int k = 0; k < OUT; k++) d[k] = where_positive(out[s * OUT + k], d[k]);
            weight_gradient(g, x + s * IN, d);
            if (d_x) input_gradient(w, d, d_x + s * IN);
        }
    }
};

// Affine map, with ReLU or not. A tile covers all samples, so a weight is loaded once for all of them.
template <int IN_F, int OUT_F, bool RELU>
struct Linear {
    static constexpr int IN = IN_F, OUT = OUT_F, WEIGHTS = IN * OUT, SIZE = WEIGHTS + OUT;
    static constexpr int O = largest_divisor(OUT, at_least_one(ACCUMULATORS / SAMPLES));  // outputs in a tile
    static constexpr int I = largest_divisor(IN, at_least_one(ACCUMULATORS / SAMPLES));   // inputs in a tile

    template <class In>
    void forward_all(const V* w, const In* x, V* out) {
        for (int o = 0; o < OUT; o += O) {
            V sum[SAMPLES][O];
            UNROLL for (int s = 0; s < SAMPLES; s++) UNROLL for (int q = 0; q < O; q++) sum[s][q] = w[WEIGHTS + o + q];
            for (int k = 0; k < IN; k++)
                UNROLL for (int q = 0; q < O; q++) {
                    V weight = w[k * OUT + o + q];
                    UNROLL for (int s = 0; s < SAMPLES; s++) sum[s][q] += in_lanes(x[s * IN + k]) * weight;
                }
            UNROLL for (int s = 0; s < SAMPLES; s++) UNROLL for (int q = 0; q < O; q++)
                out[s * OUT + o + q] = RELU ? relu(sum[s][q]) : sum[s][q];
        }
    }

    template <class In>
    void backward_all(const V* w, V* g, const In* x, const V* out, V* d_out, V* d_x) {
        for (int k = 0; k < SAMPLES * OUT; k++) {
            if (RELU) d_out[k] = where_positive(out[k], d_out[k]);
            g[WEIGHTS + k % OUT] += d_out[k];
        }
        for (int k = 0; k < IN; k++)
            for (int o = 0; o < OUT; o++) {
                V sum = g[k * OUT + o];
                UNROLL for (int s = 0; s < SAMPLES; s++) sum += in_lanes(x[s * IN + k]) * d_out[s * OUT + o];
                g[k * OUT + o] = sum;
            }
        if (!d_x) return;
        for (int k = 0; k < IN; k += I) {
            V sum[SAMPLES][I] = {};
            for (int o = 0; o < OUT; o++)
                UNROLL for (int q = 0; q < I; q++) {
                    V weight = w[(k + q) * OUT + o];
                    UNROLL for (int s = 0; s < SAMPLES; s++) sum[s][q] += d_out[s * OUT + o] * weight;
                }
            UNROLL for (int s = 0; s < SAMPLES; s++) UNROLL for (int q = 0; q < I; q++) d_x[s * IN + k + q] = sum[s][q];
        }
    }
};

struct Labels {
    int64_t of[LANES];  // each lane's own; all -1 where a sample only fills up the last group
};

// The layers one after another: forward on the way in, backward on the way out.
template <class... Layers>
struct Chain;

template <class First, class... Rest>
struct Chain<First, Rest...> {
    static constexpr int IN = First::IN, SIZE = First::SIZE + Chain<Rest...>::SIZE;
    First layer;
    V out[SAMPLES * First::OUT], d_out[SAMPLES * First::OUT];
    Chain<Rest...> rest;

    template <class In>
    const V* logits(const V* w, const In* x) {
        layer.forward_all(w, x, out);
        return rest.logits(w + First::SIZE, out);
    }

    // adds `scale` times the gradient of the samples' cross-entropy to g
    template <class In>
    void gradient(const V* w, V* g, const In* x, V* d_x, const Labels* labels, REAL scale) {
        layer.forward_all(w, x, out);
        rest.gradient(w + First::SIZE, g + First::SIZE, out, d_out, labels, scale);
        layer.backward_all(w, g, x, out, d_out, d_x);
    }
};

template <>
struct Chain<> {
    static constexpr int SIZE = 0;
    const V* logits(const V*, const V* x) { return x; }
    void gradient(const V*, V*, const V* x, V* d_x, const Labels* labels, REAL scale);
};

// d cross-entropy / d logits = softmax - one-hot
void Chain<>::gradient(const V*, V*, const V* x, V* d_x, const Labels* labels, REAL scale) {
    for (int s = 0; s < SAMPLES; s++, x += OUTPUTS, d_x += OUTPUTS) {
        V largest = x[0], sum = {};
        for (int k = 1; k < OUTPUTS; k++) largest = x[k] > largest ? x[k] : largest;
        for (int k = 0; k < OUTPUTS; k++) {
            V shifted = x[k] - largest;
            for (int l = 0; l < LANES; l++) d_x[k][l] = std::exp(shifted[l]);
            sum += d_x[k];
        }
        REAL weight = labels[s].of[0] < 0 ? 0 : scale;
        for (int k = 0; k < OUTPUTS; k++) d_x[k] *= weight / sum;
        for (int l = 0; l < LANES && weight; l++) d_x[labels[s].of[l]][l] -= scale;
    }
}

// LANES vectors → their transpose, by log2(LANES) rounds of interleaving the first half with the second
template <int... I>
INLINE void interleave(V a, V b, V* to, std::integer_sequence<int, I...>) {
#ifdef __clang__
    to[0] = __builtin_shufflevector(a, b, (I / 2 + I % 2 * LANES)...);
    to[1] = __builtin_shufflevector(a, b, (LANES / 2 + I / 2 + I % 2 * LANES)...);
#else
    to[0] = __builtin_shuffle(a, b, Places{(I / 2 + I % 2 * LANES)...});
    to[1] = __builtin_shuffle(a, b, Places{(LANES / 2 + I / 2 + I % 2 * LANES)...});
#endif
}
template <int ROUND>
INLINE void transpose(V* block) {
    V next[LANES];
    UNROLL for (int k = 0; k < LANES / 2; k++)
        interleave(block[k], block[k + LANES / 2], next + 2 * k, std::make_integer_sequence<int, LANES>());
    UNROLL for (int k = 0; k < LANES; k++) block[k] = next[k];
    if constexpr (2 * ROUND < LANES) transpose<2 * ROUND>(block);
}

typedef Chain<NET> Net;
constexpr int ROW = (Net::IN + LANES - 1) / LANES * LANES;  // images are stored with rows of this many numbers

struct Batch {
    V own[SAMPLES * Net::IN + LANES];       // every lane its own images
    REAL same[SAMPLES * Net::IN + LANES];   // all lanes the same images
    Labels labels[SAMPLES];

    void gather(int s, const REAL* images, const int64_t* y, const int64_t* order, int64_t lane_stride) {
        for (int l = 0; l < LANES; l++) labels[s].of[l] = y[order[l * lane_stride]];
        for (int q = 0; q < ROW; q += LANES) {
            V block[LANES];
            UNROLL for (int l = 0; l < LANES; l++) memcpy(block + l, images + order[l * lane_stride] * ROW + q, sizeof(V));
            transpose<1>(block);
            UNROLL for (int l = 0; l < LANES; l++) own[s * Net::IN + q + l] = block[l];
        }
    }
    void copy(int s, const REAL* images, int64_t image) { memcpy(same + s * Net::IN, images + image * ROW, ROW * sizeof(REAL)); }
    void label_all(int s, int64_t label) { for (int l = 0; l < LANES; l++) labels[s].of[l] = label; }
};

struct Workspace {
    Net net;
    Batch batch;
    V gradient[Net::SIZE];
};

// Kingma and Ba 2015 with L2 weight decay, as torch.optim.Adam; each lane has its own rate and decay
INLINE void adam(V* w, V* m, V* v, V* g, const V& rate, const V& decay, double t) {
    REAL correction = std::sqrt(1 - std::pow(0.999, t));  // in double: in float it drifts within an epoch
    V step = rate / REAL(1 - std::pow(0.9, t));
    for (int k = 0; k < Net::SIZE; k++) {
        g[k] += decay * w[k];
        m[k] += REAL(0.1) * (g[k] - m[k]);
        v[k] = REAL(0.999) * v[k] + REAL(0.001) * g[k] * g[k];
        V root;
        for (int l = 0; l < LANES; l++) root[l] = std::sqrt(v[k][l]);
        w[k] -= step * m[k] / (root / correction + REAL(1e-8));
    }
}

extern "C" {
int lanes() { return LANES; }
int row() { return ROW; }
int parameters() { return Net::SIZE; }

// images [n][ROW], y [n], order [LANES][…] with lane_stride numbers between lanes; w, m, v [SIZE][LANES] change in place
void train(V* w, V* m, V* v, const REAL* images, const int64_t* y, const int64_t* order, int64_t lane_stride,
           int steps, int batch, int shared, const V* rate, const V* decay, int done) {
    Workspace* space = new Workspace();
    for (int step = 0; step < steps; step++) {
        memset(space->gradient, 0, sizeof space->gradient);
        for (int b = 0; b < batch; b += SAMPLES) {
            for (int s = 0; s < SAMPLES; s++) {
                const int64_t* image = order + int64_t(step) * batch + b + s;
                if (b + s >= batch)
                    space->batch.label_all(s, -1);
                else if (shared)
                    space->batch.label_all(s, y[*image]), space->batch.copy(s, images, *image);
                else
                    space->batch.gather(s, images, y, image, lane_stride);
            }
            if (shared)
                space->net.gradient(w, space->gradient, space->batch.same, nullptr, space->batch.labels, REAL(1) / batch);
            else
                space->net.gradient(w, space->gradient, space->batch.own, nullptr, space->batch.labels, REAL(1) / batch);
        }
        adam(w, m, v, space->gradient, *rate, *decay, done + step + 1);
    }
    delete space;
}

// out [n][OUTPUTS][LANES]
void logits(const V* w, const REAL* images, int n, V* out) {
    Workspace* space = new Workspace();
    for (int b = 0; b < n; b += SAMPLES) {
        int here = n - b < SAMPLES ? n - b : SAMPLES;
        for (int s = 0; s < here; s++) space->batch.copy(s, images, b + s);
        memcpy(out + int64_t(b) * OUTPUTS, space->net.logits(w, space->batch.same), sizeof(V) * here * OUTPUTS);
    }
    delete space;
}
}
