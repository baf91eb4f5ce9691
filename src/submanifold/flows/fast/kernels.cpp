// Affine couplings of images in channels-last order.
//
// Tensors are contiguous, [batch, height, width, channels], and passed by address. `T` is the type of
// the matrices: float, or bfloat16 as its upper sixteen bits. The interface is plain C, called by
// ctypes. The threads are those of the OpenMP library that torch has loaded.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#define STEPS
#endif

namespace {

typedef uint16_t bf16;

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
template <typename T> inline T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // round to nearest, ties to even; NaN stays NaN
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<bf16>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// e^x with a relative error of 1e-7, for x clamped to [-87, 88], in a form that compilers vectorize
inline float exponential(float x) {
    x = x > 88.f ? 88.f : x < -87.f ? -87.f : x;
    const float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // the nearest integer
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n log 2
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return y * power;
}

// Common numbers of channels are compile-time constants: a pixel's values then move as one vector.
template <long N> struct Constant { static constexpr long value = N; };
struct Variable { long value; };

template <typename F> void with_channels(long C, F f) {
    switch (C) {
        case 6: return f(Constant<6>());
        case 12: return f(Constant<12>());
        case 24: return f(Constant<24>());
        case 48: return f(Constant<48>());
        default: return f(Variable{C});
    }
}

// Scratch memory of a thread, kept between calls; each `place` is a separate array of cache lines
template <typename T, int place> T* scratch(long count) {
    static thread_local std::vector<T> memory;
    const long line = 64 / sizeof(T);
    if (static_cast<long>(memory.size()) < count + line) memory.resize(count + line);
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

// sum[w, c] = start[c] + sum_k v[p + off_k, k, c] for the pixels of row h; off_k enumerates the 3x3
// neighbours row by row. v has `stride` values per pixel.
template <typename Channels>
inline void fold_row(const float* v, long stride, const float* start, float* sum, long h, long H,
                     long W, Channels channels) {
    const long C = channels.value;
    for (long w = 0; w < W; w++) std::memcpy(sum + w * C, start, C * sizeof(float));
    for (long i = 0; i < 3; i++) {
        const long row = h + i - 1;
        if (row < 0 || row >= H) continue;
        for (long j = 0; j < 3; j++) {
            const long right = j - 1;
            const float* pixel = v + (row * W + right) * stride + (3 * i + j) * C;
            for (long w = right < 0; w < W - (right > 0); w++) {
                float* __restrict to = sum + w * C;
                const float* __restrict from = pixel + w * stride;
#pragma omp simd
                for (long c = 0; c < C; c++) to[c] += from[c];
            }
        }
    }
}

// Copy half of each pixel's channels to or from a contiguous row: loops over it vectorize, loops over
// a few channels do not.
template <typename Channels>
inline void take_half(const float* pixels, float* row, long W, Channels channels, long from) {
    const long C = channels.value, half = C / 2;
    for (long w = 0; w < W; w++)
        std::memcpy(row + w * half, pixels + w * C + from * half, half * sizeof(float));
}
template <typename Channels>
inline void put_half(const float* row, float* pixels, long W, Channels channels, long to) {
    const long C = channels.value, half = C / 2;
    for (long w = 0; w < W; w++)
        std::memcpy(pixels + w * C + to * half, row + w * half, half * sizeof(float));
}

// Add a contiguous row to the first half of the channels
template <typename Half>
inline void add_half(const float* row, float* pixels, long W, Half channels) {
    const long half = channels.value;
    for (long w = 0; w < W; w++)
#pragma omp simd
        for (long c = 0; c < half; c++) pixels[w * 2 * half + c] += row[w * half + c];
}

// scale = 2 tanh(raw / 2), x = x exp(scale) + shift or its inverse; returns the sum of scale
inline float affine(const float* __restrict raw, const float* __restrict shift,
                    float* __restrict scale, float* __restrict x, long N, bool inverse) {
    float total = 0;
#pragma omp simd
    for (long n = 0; n < N; n++) scale[n] = 2 - 4 / (1 + exponential(raw[n]));
#pragma omp simd reduction(+ : total)
    for (long n = 0; n < N; n++) total += scale[n];
    if (inverse) {
#pragma omp simd
        for (long n = 0; n < N; n++) x[n] = (x[n] - shift[n]) * exponential(-scale[n]);
    } else {
#pragma omp simd
        for (long n = 0; n < N; n++) x[n] = x[n] * exponential(scale[n]) + shift[n];
    }
    return total;
}

// Gradients of `affine`: of x in place, of shift and of raw. ld is the gradient of the log-determinant,
// and kept is x before the coupling, or after it if inverse.
inline void affine_backward(const float* __restrict scale, const float* __restrict kept, float ld,
                            float* __restrict dx, float* __restrict dshift, float* __restrict draw,
                            long N, bool inverse) {
    if (inverse) {
#pragma omp simd
        for (long n = 0; n < N; n++) {
            const float s = scale[n], d = dx[n], moved = d * exponential(-s);
            dx[n] = moved;
            dshift[n] = -moved;
            draw[n] = (1 - s * s / 4) * (-ld - d * kept[n]);
        }
    } else {
#pragma omp simd
        for (long n = 0; n < N; n++) {
            const float s = scale[n], d = dx[n], moved = d * exponential(s);
            dx[n] = moved;
            dshift[n] = d;
            draw[n] = (1 - s * s / 4) * (ld + moved * kept[n]);
        }
    }
}

// Tangent of `affine`, of x in place, given those of raw and shift; kept as above. Returns the tangent
// of the sum of scale.
inline float affine_tangent(const float* __restrict scale, const float* __restrict kept,
                            const float* __restrict draw, const float* __restrict dshift,
                            float* __restrict dx, long N, bool inverse) {
    float total = 0;
    if (inverse) {
#pragma omp simd reduction(+ : total)
        for (long n = 0; n < N; n++) {
            const float s = scale[n], ds = (1 - s * s / 4) * draw[n];
            dx[n] = (dx[n] - dshift[n]) * exponential(-s) - kept[n] * ds;
            total += ds;
        }
    } else {
#pragma omp simd reduction(+ : total)
        for (long n = 0; n < N; n++) {
            const float s = scale[n], ds = (1 - s * s / 4) * draw[n];
            dx[n] = (dx[n] + kept[n] * ds) * exponential(s) + dshift[n];
            total += ds;
        }
    }
    return total;
}

// Coupling of one image, given v, the last matrix product of its net, with `stride` values per pixel:
// raw log-scales and shifts are bias + fold(v). `affine` transforms the second half of y's channels.
// Returns the log-determinant of the computed direction.
template <typename Channels>
float couple_image(const float* v, long stride, const float* bias, const float* y, float* z,
                   float* log_scale, long H, long W, Channels channels, bool inverse) {
    const long C = channels.value, half = C / 2, N = W * half;
    float* sums = scratch<float, 20>(W * C + 3 * N);
    float *raw = sums + W * C, *shift = raw + N, *x = shift + N, total = 0;
    for (long h = 0; h < H; h++, y += W * C, z += W * C, log_scale += N) {
        fold_row(v, stride, bias, sums, h, H, W, channels);
        take_half(sums, raw, W, channels, 0);
        take_half(sums, shift, W, channels, 1);
        take_half(y, x, W, channels, 1);
        total += affine(raw, shift, log_scale, x, N, inverse);
        std::memcpy(z, y, W * C * sizeof(float));
        put_half(x, z, W, channels, 1);
    }
    return inverse ? -total : total;
}

// Gradients of `couple_image`: of y, without the dependence of the net on it, and of the net's output.
// `kept` is y, or z if inverse.
template <typename Channels>
void couple_image_backward(const float* dz, float ld, const float* kept, const float* log_scale,
                           float* dy, float* dnet, long H, long W, Channels channels,
                           bool inverse) {
    const long C = channels.value, half = C / 2, N = W * half;
    float* dx = scratch<float, 20>(4 * N);
    float *x = dx + N, *dshift = x + N, *draw = dshift + N;
    for (long h = 0; h < H; h++) {
        const long p = h * W;
        take_half(dz + p * C, dx, W, channels, 1);
        take_half(kept + p * C, x, W, channels, 1);
        affine_backward(log_scale + p * half, x, ld, dx, dshift, draw, N, inverse);
        std::memcpy(dy + p * C, dz + p * C, W * C * sizeof(float));
        put_half(dx, dy + p * C, W, channels, 1);
        put_half(draw, dnet + p * C, W, channels, 0);
        put_half(dshift, dnet + p * C, W, channels, 1);
    }
}

// Tangent of `couple_image` along dy, given v, the tangent of the last product of its net.
template <typename Channels>
float couple_image_tangent(const float* v, long stride, const float* dy, const float* kept,
                           const float* log_scale, float* dz, long H, long W, Channels channels,
                           bool inverse) {
    const long C = channels.value, half = C / 2, N = W * half;
    float* sums = scratch<float, 20>(W * C + 4 * N + C);
    float *draw = sums + W * C, *dshift = draw + N, *dx = dshift + N, *x = dx + N, *zeros = x + N;
    float total = 0;
    std::memset(zeros, 0, C * sizeof(float));
    for (long h = 0; h < H; h++, dy += W * C, dz += W * C, kept += W * C, log_scale += N) {
        fold_row(v, stride, zeros, sums, h, H, W, channels);
        take_half(sums, draw, W, channels, 0);
        take_half(sums, dshift, W, channels, 1);
        take_half(dy, dx, W, channels, 1);
        take_half(kept, x, W, channels, 1);
        total += affine_tangent(log_scale, x, draw, dshift, dx, N, inverse);
        std::memcpy(dz, dy, W * C * sizeof(float));
        put_half(dx, dz, W, channels, 1);
    }
    return inverse ? -total : total;
}

// dy[p, c] += sum_k du[p + off_k, k, c] for the first half of an image's channels; du, the gradient of
// the neighbours, has them in reverse order and `stride` values per pixel
template <typename Channels>
void fold_image_onto(const float* du, long stride, float* dy, long H, long W, Channels channels) {
    const long half = channels.value;
    float *sums = scratch<float, 20>((W + 1) * half), *zeros = sums + W * half;
    std::memset(zeros, 0, half * sizeof(float));
    for (long h = 0; h < H; h++) {
        fold_row(du, stride, zeros, sums, h, H, W, channels);
        add_half(sums, dy + h * W * 2 * half, W, channels);
    }
}

#ifdef STEPS
// ---------------------------------------------------------------------------------------------------
// Complete couplings in tiles: a few images at a time pass through net and coupling, forwards or
// backwards, and stay in the cache. Products use AVX-512 or AVX2, in float and, if the processor
// supports it, in bfloat16, whose instructions add two products at a time.
//
// Matrices are row-major or `paired`: [K / pair, N, pair], with adjacent terms of the sum in pairs.

constexpr long LANES = 16;
template <typename T> constexpr long PAIR = 4 / sizeof(T);

inline long round_up(long n, long of) { return (n + of - 1) / of * of; }

// Sixteen floats, and a mask of them
#ifdef __AVX512F__
typedef __m512 Lanes;
typedef __mmask16 Mask;
constexpr int MAX_COLUMNS = 4;  // columns of lanes whose sums fit the registers

inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes lanes(const float* x) { return _mm512_loadu_ps(x); }
inline Lanes lanes(const float* x, Mask mask) { return _mm512_maskz_loadu_ps(mask, x); }
inline Lanes broadcast(const float* x) { return _mm512_set1_ps(*x); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes add_product(Lanes sum, Lanes a, Lanes b) { return _mm512_fmadd_ps(a, b, sum); }
// this order of operands propagates NaN
inline Lanes relu(Lanes x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }
inline Lanes masked(Lanes x, Mask mask) { return _mm512_maskz_mov_ps(mask, x); }
inline void store(float* to, Lanes x) { _mm512_storeu_ps(to, x); }
inline void store(float* to, Lanes x, Mask mask) { _mm512_mask_storeu_ps(to, mask, x); }
inline Mask nonzero(const float* x) { return _mm512_cmp_ps_mask(lanes(x), zero(), _CMP_NEQ_UQ); }
inline Mask first(long count) { return count < LANES ? (1 << count) - 1 : 0xffff; }
#ifdef __AVX512BF16__
inline __m512bh lanes(const bf16* x) { return (__m512bh)_mm512_loadu_si512(x); }
inline __m512bh broadcast(const bf16* x) {
    int pair;
    std::memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}
inline Lanes add_product(Lanes sum, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }
inline void store(bf16* to, Lanes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
inline Mask nonzero(const bf16* x) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    return _mm256_test_epi16_mask(values, values);
}
#endif
#else
struct Lanes {
    __m256 low, high;
};
typedef Lanes Mask;  // all bits of a float, or none
constexpr int MAX_COLUMNS = 1;

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes lanes(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline Lanes lanes(const float* x, Mask mask) {
    return {_mm256_maskload_ps(x, (__m256i)mask.low), _mm256_maskload_ps(x + 8, (__m256i)mask.high)};
}
inline Lanes broadcast(const float* x) {
    const __m256 all = _mm256_broadcast_ss(x);
    return {all, all};
}
inline Lanes add(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes add_product(Lanes sum, Lanes a, Lanes b) {
    return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
// this order of operands propagates NaN
inline Lanes relu(Lanes x) {
    return {_mm256_max_ps(zero().low, x.low), _mm256_max_ps(zero().high, x.high)};
}
inline Lanes masked(Lanes x, Mask mask) {
    return {_mm256_and_ps(mask.low, x.low), _mm256_and_ps(mask.high, x.high)};
}
inline void store(float* to, Lanes x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
inline void store(float* to, Lanes x, Mask mask) {
    _mm256_maskstore_ps(to, (__m256i)mask.low, x.low);
    _mm256_maskstore_ps(to + 8, (__m256i)mask.high, x.high);
}
inline Mask nonzero(const float* x) {
    const Lanes each = lanes(x);
    return {_mm256_cmp_ps(each.low, zero().low, _CMP_NEQ_UQ),
            _mm256_cmp_ps(each.high, zero().high, _CMP_NEQ_UQ)};
}
inline Mask first(long count) {
    static const int32_t bits[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t* from = bits + LANES - (count < LANES ? count : LANES);
    return lanes(reinterpret_cast<const float*>(from));
}
#endif

// Calls finish(m, n, 16 floats) for R rows and V x 16 columns of the product of a and paired b; a pair
// of a's row m is at a[m * row + k / pair * step]
template <int R, int V, typename T, typename F>
inline void block(const T* a, long row, long step, const T* b, long N, long K, long m, long n,
                  F finish) {
    Lanes sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[r][v] = zero();
    a += m * row, b += n * PAIR<T>;
    for (long k = 0; k < K; k += PAIR<T>, a += step, b += N * PAIR<T>) {
        decltype(lanes(b)) columns[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) columns[v] = lanes(b + v * LANES * PAIR<T>);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const auto number = broadcast(a + r * row);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sums[r][v] = add_product(sums[r][v], number, columns[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) finish(m + r, n + v * LANES, sums[r][v]);
}

template <int V, typename T, typename F>
inline void columns(const T* a, long row, long step, const T* b, long M, long N, long K, long n,
                    F finish) {
    long m = 0;
    for (; m + 6 <= M; m += 6) block<6, V>(a, row, step, b, N, K, m, n, finish);
    for (; m + 2 <= M; m += 2) block<2, V>(a, row, step, b, N, K, m, n, finish);
    if (m < M) block<1, V>(a, row, step, b, N, K, m, n, finish);
}

// An M x N product, a sum over K; N is a multiple of 16, and K of the pair size
template <typename T, typename F>
inline void product(const T* a, long row, long step, const T* b, long M, long N, long K, F finish) {
    long n = 0;
    for (; n + MAX_COLUMNS * LANES <= N; n += MAX_COLUMNS * LANES)
        columns<MAX_COLUMNS>(a, row, step, b, M, N, K, n, finish);
    if constexpr (MAX_COLUMNS > 3) switch ((N - n) / LANES) {
        case 3: return columns<3>(a, row, step, b, M, N, K, n, finish);
        case 2: return columns<2>(a, row, step, b, M, N, K, n, finish);
        case 1: return columns<1>(a, row, step, b, M, N, K, n, finish);
    }
}

// Store a product a b in rows of N.
template <typename T>
void multiply(const T* a, long row, const T* b, long M, long N, long K, float* out) {
    product(a, row, PAIR<T>, b, M, N, K,
            [=](long m, long n, Lanes sum) { store(out + m * N + n, sum); });
}

// Add a bias and apply a ReLU.
template <typename T>
void multiply_relu(const T* a, long row, const T* b, long M, long N, long K, const float* bias,
                   T* out) {
    product(a, row, PAIR<T>, b, M, N, K, [=](long m, long n, Lanes sum) {
        store(out + m * N + n, relu(add(sum, lanes(bias + n))));
    });
}

// Gradient of the ReLU that returned h, and its sum over the rows.
template <typename T>
void multiply_relu_backward(const T* a, long row, const T* b, long M, long N, long K, const T* h,
                            T* out, float* total) {
    product(a, row, PAIR<T>, b, M, N, K, [=](long m, long n, Lanes sum) {
        __builtin_prefetch(h + (m + 6) * N + n);  // of the next block: h is not in the cache
        sum = masked(sum, nonzero(h + m * N + n));
        store(out + m * N + n, sum);
        store(total + n, add(lanes(total + n), sum));
    });
}

// Tangent of the ReLU that returned h.
template <typename T>
void multiply_relu_tangent(const T* a, long row, const T* b, long M, long N, long K, const T* h,
                           T* out) {
    product(a, row, PAIR<T>, b, M, N, K, [=](long m, long n, Lanes sum) {
        store(out + m * N + n, masked(sum, nonzero(h + m * N + n)));
    });
}

// Add the product to `out`. Here a is paired, too, in rows of `row`.
template <typename T>
void multiply_add(const T* a, long row, const T* b, long M, long N, long K, float* out) {
    product(a, PAIR<T>, row * PAIR<T>, b, M, N, K, [=](long m, long n, Lanes sum) {
        store(out + m * N + n, add(lanes(out + m * N + n), sum));
    });
}

// total += the sum of P rows of C floats
inline void add_rows(const float* x, long P, long C, float* total) {
    for (long m = 0; m < P; m++)
#pragma omp simd
        for (long c = 0; c < C; c++) total[c] += x[m * C + c];
}

// to = the K x N matrix x[row(k) + column(n)], paired, both dimensions padded with zeros
template <typename T, typename Row, typename Column>
void pair_up(T* to, const float* x, long K, long N, Row row, Column column) {
    const long filled = round_up(N, LANES), pair = PAIR<T>;
    int* at = scratch<int, 0>(N);
    for (long n = 0; n < N; n++) at[n] = column(n);
    std::memset(to, 0, round_up(K, LANES) * filled * sizeof(T));
#pragma omp parallel for schedule(static) if (K * N > 100000)
    for (long k = 0; k < K; k++) {
        T* numbers = to + k / pair * pair * filled + k % pair;
        const float* from = x + row(k);
        for (long n = 0; n < N; n++) numbers[n * pair] = narrow<T>(from[at[n]]);
    }
}

// The K x N matrix x, paired: the sum of the product is over its rows
inline const float* pair_rows(const float* x, float*, long, long) { return x; }
inline const bf16* pair_rows(const bf16* x, bf16* to, long K, long N) {
    for (long k = 0; k < K; k += 2) {
        uint32_t* pairs = reinterpret_cast<uint32_t*>(to + k * N);
        const bf16 *first = x + k * N, *second = first + N;
        if (k + 1 < K)
            for (long n = 0; n < N; n++) pairs[n] = first[n] | uint32_t(second[n]) << 16;
        else
            for (long n = 0; n < N; n++) pairs[n] = first[n];
    }
    return to;
}

// Sizes of a coupling: B images of H x W pixels and C channels, `width` hidden channels. Rows are
// padded with zeros to multiples of 16.
struct Sizes {
    long B, H, W, C, width;
    // parts of a batch with separate sums of weight gradients. It does not depend on the number of
    // threads, so that the sums do not; many parts of few pixels would take time to add.
    long parts() const {
        return std::max(std::min({std::max(B * pixels() / 1024, 4L), 16L, B}), 1L);
    }
    long half() const { return C / 2; }
    long pixels() const { return H * W; }
    long size() const { return H * W * C; }
    long hidden() const { return round_up(width, LANES); }
    long inputs() const { return round_up(9 * half(), LANES); }  // of the first matrix
    long outputs() const { return round_up(9 * C, LANES); }       // of the last matrix
    // images in a tile, at least one: few enough for the cache and for all parts
    long images() const {
        const long fit = 255 / std::max(pixels(), 1L) + 1, share = (B + parts() - 1) / parts();
        return std::max(std::min(fit, share), 1L);
    }
    // floats in the gradient of a net and a linear map
    long gradient() const {
        return (9 * C + hidden() + 9 * half() + 2) * hidden() + C * round_up(C, LANES) + 2 * C;
    }
};

// The 3x3 neighbours of each pixel of one image in a row of N; of `stride` channels the first C
template <typename T, typename Channels>
void neighbours_of(const float* x, T* to, long H, long W, Channels channels, long stride, long N) {
    const long C = channels.value, wide = (W + 2) * C;
    T *padded = scratch<T, 8>((H + 2) * wide), *row = scratch<T, 9>(W * stride);
    std::memset(padded, 0, (H + 2) * wide * sizeof(T));
    for (long h = 0; h < H; h++) {
        const float* from = x + h * W * stride;
#pragma omp simd
        for (long n = 0; n < W * stride; n++) row[n] = narrow<T>(from[n]);
        for (long w = 0; w < W; w++)
            std::memcpy(&padded[(h + 1) * wide + (w + 1) * C], &row[w * stride], C * sizeof(T));
    }
    for (long h = 0; h < H; h++)
        for (long w = 0; w < W; w++, to += N) {
            for (long i = 0; i < 3; i++)
                std::memcpy(to + 3 * i * C, &padded[(h + i) * wide + w * C], 3 * C * sizeof(T));
            std::memset(to + 9 * C, 0, (N - 9 * C) * sizeof(T));
        }
}

// The same for several images
template <typename T>
void neighbours(const Sizes& s, const float* x, T* to, long images, long C, long stride, long N) {
    with_channels(C, [=](auto channels) {
        for (long b = 0; b < images; b++)
            neighbours_of(x + b * s.pixels() * stride, to + b * s.pixels() * N, s.H, s.W, channels,
                          stride, N);
    });
}

// Weights of convolutions, channels last: [width, 9, half], [width, width], [C, 9, width]. The linear
// map precedes the coupling, or follows its inverse; there is none if matrix is null.
template <typename F> struct Net {
    F *w1, *b1, *w2, *b2, *w3, *b3, *matrix, *shift;
};

// to = matrix from + shift for P pixels; the matrix is transposed and paired
inline void mix(const float* matrix, const float* shift, const float* from, float* to, long P,
                long C) {
    product(from, C, 1, matrix, P, round_up(C, LANES), C, [=](long m, long n, Lanes sum) {
        const Mask there = first(C - n);
        store(to + m * C + n, add(sum, lanes(shift + n, there)), there);
    });
}

// Add to the gradients of matrix and shift, given d, the gradient of the output
inline void mix_backward(const float* d, const float* from, float* dmatrix, float* dshift, long P,
                         long C) {
    const long N = round_up(C, LANES);
    float* filled = scratch<float, 25>(P * N);
    for (long m = 0; m < P; m++) {
        std::memcpy(filled + m * N, from + m * C, C * sizeof(float));
        std::memset(filled + m * N + C, 0, (N - C) * sizeof(float));
    }
    multiply_add(d, C, filled, C, N, P, dmatrix);
    add_rows(d, P, C, dshift);
}

// The first two layers of a net
template <typename T> struct Hidden {
    long N, inputs, K;
    T *w1, *w2;
    float *b1, *b2;

    Hidden() = default;
    Hidden(const Sizes& s, const Net<const float>& net)
        : N(s.hidden()), inputs(s.inputs()), K(9 * s.half()) {
        const long width = s.width, K = this->K;
        w1 = scratch<T, 10>(inputs * N), w2 = scratch<T, 11>(N * N);
        const auto identity = [](long k) { return k; };
        pair_up(w1, net.w1, K, width, identity, [=](long n) { return n * K; });
        pair_up(w2, net.w2, width, width, identity, [=](long n) { return n * width; });
        b1 = scratch<float, 23>(2 * N), b2 = b1 + N;
        std::memset(b1, 0, 2 * N * sizeof(float));
        // rounded, as under autocast, so that the inputs of the ReLUs have the same signs
        for (long n = 0; n < width; n++) {
            b1[n] = widen(narrow<T>(net.b1[n]));
            b2[n] = widen(narrow<T>(net.b2[n]));
        }
    }

    // h1 and h2 of P pixels with the neighbours u
    void operator()(const T* u, T* h1, T* h2, long P) const {
        multiply_relu(u, inputs, w1, P, N, round_up(K, PAIR<T>), b1, h1);
        multiply_relu(h1, N, w2, P, N, N, b2, h2);
    }

    // Their tangents along du
    void tangent(const T* du, const T* h1, const T* h2, T* d1, T* d2, long P) const {
        multiply_relu_tangent(du, inputs, w1, P, N, round_up(K, PAIR<T>), h1, d1);
        multiply_relu_tangent(d1, N, w2, P, N, N, h2, d2);
    }
};

// Calls f(part, first image, images) for every tile; the tiles of a part run one after the other
template <typename F> void over_tiles(const Sizes& s, long parts, F f) {
    const long size = s.images(), tiles = (s.B + size - 1) / size;
    bool full = false;  // exceptions must not leave a parallel region
#pragma omp parallel for schedule(dynamic) reduction(|| : full)
    for (long part = 0; part < parts; part++) try {
            for (long t = tiles * part / parts; t < tiles * (part + 1) / parts; t++)
                f(part, t * size, t * size + size < s.B ? size : s.B - t * size);
        } catch (const std::bad_alloc&) {
            full = true;
        }
    if (full) throw std::bad_alloc();
}

// The last matrix of a net, paired
template <typename T> T* last_matrix(const Sizes& s, const Net<const float>& net) {
    const long C = s.C, width = s.width;
    T* w3 = scratch<T, 12>(s.hidden() * s.outputs());
    const auto identity = [](long k) { return k; };
    pair_up(w3, net.w3, width, 9 * C, identity, [=](long n) { return (n % C * 9 + n / C) * width; });
    return w3;
}

// A linear map and a coupling, z = couple(mix(x)), or the inverse of a step of Glow, z = mix(couple(x))
// with the inverse linear map. If not null, t receives the values between the two, log_scale the
// log-scales, and h the hidden layers [2, P, N], for the gradient. If dx is not null, dz and dlog_det
// are the tangents along it.
template <typename T>
void step(const Sizes& s, const Net<const float>& net, const float* x, float* t, float* z,
          float* log_scale, float* log_det, T* h, const float* dx, float* dz, float* dlog_det,
          bool inverse) {
    const long N = s.hidden(), inputs = s.inputs(), outputs = s.outputs(), C = s.C, half = s.half();
    const Hidden<T> layers(s, net);
    T* w3 = last_matrix<T>(s, net);
    const auto identity = [](long k) { return k; };
    float* matrix = scratch<float, 24>(round_up(C, LANES) * round_up(C, LANES));
    if (net.matrix) pair_up(matrix, net.matrix, C, C, identity, [=](long n) { return n * C; });
    float* zeros = scratch<float, 28>(C);
    std::memset(zeros, 0, C * sizeof(float));
    over_tiles(s, s.B, [&](long, long first, long images) {
        const long P = images * s.pixels(), p = first * s.pixels();
        T* u = scratch<T, 0>(P * inputs);
        T* h1 = h ? h + p * N : scratch<T, 1>(P * N);
        T* h2 = h ? h + (s.B * s.pixels() + p) * N : scratch<T, 2>(P * N);
        float* v = scratch<float, 21>(P * outputs);
        float* scales = log_scale ? log_scale + p * C / 2 : scratch<float, 26>(P * C / 2);
        float* between = t ? t + p * C : scratch<float, 27>(P * C);
        const float* from = x + p * C;
        float* to = z + p * C;
        if (net.matrix && inverse) to = between;
        if (net.matrix && !inverse) {
            mix(matrix, net.shift, from, between, P, C);
            from = between;
        }
        neighbours(s, from, u, images, half, C, inputs);
        layers(u, h1, h2, P);
        multiply(h2, N, w3, P, outputs, N, v);
        with_channels(C, [=, &s, &net](auto channels) {
            for (long b = 0; b < images; b++)
                log_det[first + b] = couple_image(
                    v + b * s.pixels() * outputs, outputs, net.b3, from + b * s.size(),
                    to + b * s.size(),
                    scales + b * s.size() / 2, s.H, s.W, channels, inverse);
        });
        if (net.matrix && inverse) mix(matrix, net.shift, between, z + p * C, P, C);
        if (!dx) return;

        const float *d = dx + p * C, *kept = inverse ? to : from;
        float *dt = scratch<float, 22>(P * C), *dto = dz + p * C;
        if (net.matrix && inverse) dto = dt;
        if (net.matrix && !inverse) {
            mix(matrix, zeros, d, dt, P, C);
            d = dt;
        }
        neighbours(s, d, u, images, half, C, inputs);
        T *d1 = scratch<T, 4>(P * N), *d2 = scratch<T, 5>(P * N);
        layers.tangent(u, h1, h2, d1, d2, P);
        multiply(d2, N, w3, P, outputs, N, v);
        with_channels(C, [=, &s](auto channels) {
            for (long b = 0; b < images; b++) {
                const long at = b * s.size();
                dlog_det[first + b] = couple_image_tangent(
                    v + b * s.pixels() * outputs, outputs, d + at, kept + at, scales + at / 2, dto + at,
                    s.H, s.W, channels, inverse);
            }
        });
        if (net.matrix && inverse) mix(matrix, zeros, dt, dz + p * C, P, C);
    });
}

// Gradients of `step`: of x, and of all weights in g unless g is null
template <typename T>
void step_backward(const Sizes& s, const Net<const float>& net, const float* dz,
                   const float* dlog_det, const float* x, const float* t, const float* log_scale,
                   T* h, float* dx, const Net<float>* g, bool inverse) {
    const long N = s.hidden(), inputs = s.inputs(), outputs = s.outputs(), C = s.C, width = s.width;
    const long half = s.half();
    const long K = 9 * half, square = C * round_up(C, LANES);
    const Hidden<T> layers = h ? Hidden<T>() : Hidden<T>(s, net);
    T *w1 = scratch<T, 12>(N * inputs), *w2 = scratch<T, 13>(N * N), *w3 = scratch<T, 14>(outputs * N);
    const auto identity = [](long n) { return n; };
    // neighbours in reverse order: the ninth is the first
    const auto opposite = [=](long n) { return (8 - n / half) * half + n % half; };
    const auto opposite_row = [=](long k) { return (k % C * 9 + 8 - k / C) * width; };
    pair_up(w1, net.w1, width, K, [=](long k) { return k * K; }, opposite);
    pair_up(w2, net.w2, width, width, [=](long k) { return k * width; }, identity);
    pair_up(w3, net.w3, 9 * C, width, opposite_row, identity);
    float *matrix = scratch<float, 24>(round_up(C, LANES) * round_up(C, LANES));
    float *zeros = scratch<float, 28>(C);
    if (net.matrix) pair_up(matrix, net.matrix, C, C, [=](long k) { return k * C; }, identity);
    std::memset(zeros, 0, C * sizeof(float));
    const long parts = s.parts();
    float* sums = scratch<float, 29>(g ? parts * s.gradient() : 0);
    if (g) std::memset(sums, 0, parts * s.gradient() * sizeof(float));
    over_tiles(s, parts, [&](long part, long first, long images) {
        const long P = images * s.pixels(), p = first * s.pixels();
        // without g, biases are summed where nobody reads them
        float *g3 = g ? sums + part * s.gradient() : scratch<float, 30>(s.gradient()), *g2 = g3 + 9 * C * N, *g1 = g2 + N * N;
        float *gb1 = g1 + K * N, *gb2 = gb1 + N, *gb3 = gb2 + N, *gm = gb3 + C, *gs = gm + square;
        T *u = scratch<T, 0>(P * inputs), *h1, *h2;
        neighbours(s, t + p * C, u, images, half, C, inputs);
        if (h)
            h1 = h + p * N, h2 = h + (s.B * s.pixels() + p) * N;
        else
            layers(u, h1 = scratch<T, 1>(P * N), h2 = scratch<T, 2>(P * N), P);

        // dt is the gradient between the linear map and the coupling
        const float* d = dz + p * C;
        float *dt = scratch<float, 27>(P * C), *to = dx + p * C;
        if (net.matrix && inverse) {
            if (g) mix_backward(d, t + p * C, gm, gs, P, C);
            mix(matrix, zeros, d, dt, P, C);
            d = dt;
        }
        if (net.matrix && !inverse) to = dt;

        float* dnet = scratch<float, 21>(P * C);
        T* dv = scratch<T, 3>(P * outputs);
        with_channels(C, [=, &s](auto channels) {
            for (long b = 0; b < images; b++) {
                const long at = b * s.size();
                couple_image_backward(d + at, dlog_det[first + b], t + p * C + at,
                                      log_scale + (p * C + at) / 2, to + at, dnet + at, s.H, s.W,
                                      channels, inverse);
            }
        });
        neighbours(s, dnet, dv, images, C, C, outputs);
        add_rows(dnet, P, C, gb3);

        T *dh2 = scratch<T, 4>(P * N), *dh1 = scratch<T, 5>(P * N);
        multiply_relu_backward(dv, outputs, w3, P, N, round_up(9 * C, PAIR<T>), h2, dh2, gb2);
        multiply_relu_backward(dh2, N, w2, P, N, N, h1, dh1, gb1);
        float* du = scratch<float, 22>(P * inputs);
        multiply(dh1, N, w1, P, inputs, N, du);
        with_channels(half, [=](auto channels) {
            for (long b = 0; b < images; b++)
                fold_image_onto(du + b * s.pixels() * inputs, inputs, to + b * s.size(), s.H, s.W,
                                channels);
        });
        if (net.matrix && !inverse) {
            if (g) mix_backward(dt, x + p * C, gm, gs, P, C);
            mix(matrix, zeros, dt, dx + p * C, P, C);
        }

        if (!g) return;
        // gradients of the matrices: sums over pixels
        const auto add = [=](const T* a, long M, const T* b, long rows, float* sum) {
            a = pair_rows(a, scratch<T, 6>((P + 1) * M), P, M);
            b = pair_rows(b, scratch<T, 7>((P + 1) * N), P, N);
            multiply_add(a, M, b, rows, N, round_up(P, PAIR<T>), sum);
        };
        add(dv, outputs, h2, 9 * C, g3);
        add(dh2, N, h1, width, g2);
        add(u, inputs, dh1, K, g1);
    });
    if (!g) return;
    // sum over the parts; a thread has the same range of n in all of them
    const long size = s.gradient();
#pragma omp parallel if (size > 10000)
    for (long part = 1; part < parts; part++)
#pragma omp for simd schedule(static) nowait
        for (long n = 0; n < size; n++) sums[n] += sums[part * size + n];
    const float *g3 = sums, *g2 = g3 + 9 * C * N, *g1 = g2 + N * N, *gb1 = g1 + K * N;
    const float *gb2 = gb1 + N, *gb3 = gb2 + N, *gm = gb3 + C, *gs = gm + square;
    for (long k = 0; k < 9 * C; k++)
        std::memcpy(g->w3 + opposite_row(k), g3 + k * N, width * sizeof(float));
    for (long n = 0; n < width; n++) {
        std::memcpy(g->w2 + n * width, g2 + n * N, width * sizeof(float));
        for (long k = 0; k < K; k++) g->w1[n * K + k] = g1[k * N + n];
    }
    std::memcpy(g->b1, gb1, width * sizeof(float));
    std::memcpy(g->b2, gb2, width * sizeof(float));
    std::memcpy(g->b3, gb3, C * sizeof(float));
    if (!net.matrix) return;
    for (long c = 0; c < C; c++)
        std::memcpy(g->matrix + c * C, gm + c * round_up(C, LANES), C * sizeof(float));
    std::memcpy(g->shift, gs, C * sizeof(float));
}
#endif

// Whether f had enough memory: exceptions must not reach C
template <typename F> int completed(F f) {
    try {
        f();
        return 1;
    } catch (const std::bad_alloc&) {
        return 0;
    }
}

}  // namespace

#define EXPORT_STEPS(T, name)                                                                      \
    int step_##name(const Sizes* s, const Net<const float>* net, const float* x, float* t,         \
                    float* z, float* log_scale, float* log_det, T* h, const float* dx, float* dz,  \
                    float* dlog_det, long inverse) {                                               \
        return completed([=] {                                                                     \
            step<T>(*s, *net, x, t, z, log_scale, log_det, h, dx, dz, dlog_det, inverse);          \
        });                                                                                        \
    }                                                                                              \
    int step_backward_##name(const Sizes* s, const Net<const float>* net, const float* dz,         \
                             const float* dlog_det, const float* x, const float* t,                \
                             const float* log_scale, T* h, float* dx, const Net<float>* g,         \
                             long inverse) {                                                       \
        return completed([=] {                                                                     \
            step_backward<T>(*s, *net, dz, dlog_det, x, t, log_scale, h, dx, g, inverse);          \
        });                                                                                        \
    }

extern "C" {
#ifdef STEPS
EXPORT_STEPS(float, float32)
#endif
#ifdef __AVX512BF16__
EXPORT_STEPS(bf16, bfloat16)
#endif
}
