// What stands between the matrix products of a coupling net, on images stored channels last.
//
// Every tensor is contiguous, [batch, height, width, channels], and given by its address. `T` is the
// matrices' type: float, or bfloat16 as its upper sixteen bits. Plain C: built in seconds, called by
// ctypes. Threads are those of the OpenMP that torch has loaded.

#include <cstdint>
#include <cstring>
#include <vector>

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
    // to the nearest, ties to even; what is not a number stays so
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<bf16>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// e^x to about 1e-7 of its value, between e^-87 and e^88, in a form that compilers vectorise
inline float exponential(float x) {
    x = x > 88.f ? 88.f : x < -87.f ? -87.f : x;
    const float n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // the nearest whole number
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

// Channels are a constant where they can be: a pixel's few numbers then move as one vector.
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

// out[p, k, c] = x[p + off_k, c], and 0 outside of the image; off_k goes over the 3x3 neighbours,
// row by row, backwards when mirrored. x has `stride` floats for a pixel, of which the first C count.
template <typename T, typename Channels>
void unfold(const float* x, T* out, long B, long H, long W, Channels channels, long stride,
            bool mirror) {
    const long C = channels.value;
#pragma omp parallel
    {
        std::vector<T> padded((W + 2) * C, narrow<T>(0.f)), whole(W * stride);
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < B; b++)
            for (long h = 0; h < H; h++)
                for (long i = 0; i < 3; i++) {
                    const long from = mirror ? h + 1 - i : h + i - 1;
                    T* to = out + ((b * H + h) * W * 9 + 3 * i) * C;
                    if (from < 0 || from >= H) {
                        for (long w = 0; w < W; w++)
                            std::memset(to + w * 9 * C, 0, 3 * C * sizeof(T));
                        continue;
                    }
                    const float* source = x + (b * H + from) * W * stride;
#pragma omp simd
                    for (long n = 0; n < W * stride; n++) whole[n] = narrow<T>(source[n]);
                    for (long w = 0; w < W; w++)
                        std::memcpy(&padded[(w + 1) * C], &whole[w * stride], C * sizeof(T));
                    for (long w = 0; w < W; w++)
                        for (long j = 0; j < 3; j++)
                            std::memcpy(to + (w * 9 + j) * C, &padded[(w + (mirror ? 2 - j : j)) * C],
                                        C * sizeof(T));
                }
    }
}

// sum[w, c] = start[c] + sum_k v[p + off_k, k, c] for the pixels of row h; off_k as above
template <typename T, typename Channels>
inline void fold_row(const T* v, const float* start, float* sum, long h, long H, long W,
                     Channels channels, bool mirror) {
    const long C = channels.value;
    for (long w = 0; w < W; w++) std::memcpy(sum + w * C, start, C * sizeof(float));
    for (long i = 0; i < 3; i++) {
        const long row = mirror ? h + 1 - i : h + i - 1;
        if (row < 0 || row >= H) continue;
        for (long j = 0; j < 3; j++) {
            const long right = mirror ? 1 - j : j - 1;
            const T* pixel = v + ((row * W + right) * 9 + 3 * i + j) * C;
            for (long w = right < 0; w < W - (right > 0); w++) {
                float* __restrict to = sum + w * C;
                const T* __restrict from = pixel + w * 9 * C;
#pragma omp simd
                for (long c = 0; c < C; c++) to[c] += widen(from[c]);
            }
        }
    }
}

// The second half of each pixel's channels, to and from a row without gaps: loops over that vectorise
// where those over a few channels do not.
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

// scale = 2 tanh(raw / 2), x = x exp(scale) + shift or (x - shift) exp(-scale); the sum of scale
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

// Gradients of `affine`: of x in place, of shift and of raw; ld is that of the log-determinant, and
// kept is x before the coupling, or after it when inverse.
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

// The coupling, given v, the last matrix product of its net: raw log-scales and shifts are
// bias + fold(v). C = 2 half. The second half of y's channels is moved by `affine`, the first half
// stays; log_det is of that direction.
template <typename T, typename Channels>
void couple(const T* v, const float* bias, const float* y, float* z, float* log_scale,
            float* log_det, long B, long H, long W, Channels channels, bool inverse) {
    const long C = channels.value, half = C / 2, N = W * half;
#pragma omp parallel
    {
        std::vector<float> sums(W * C), raw(N), shift(N), x(N);
#pragma omp for schedule(static)
        for (long b = 0; b < B; b++) {
            float total = 0;
            for (long h = 0; h < H; h++) {
                const long p = (b * H + h) * W;
                fold_row(v + b * H * W * 9 * C, bias, sums.data(), h, H, W, channels, false);
                take_half(sums.data(), raw.data(), W, channels, 0);
                take_half(sums.data(), shift.data(), W, channels, 1);
                take_half(y + p * C, x.data(), W, channels, 1);
                total += affine(raw.data(), shift.data(), log_scale + p * half, x.data(), N, inverse);
                std::memcpy(z + p * C, y + p * C, W * C * sizeof(float));
                put_half(x.data(), z + p * C, W, channels, 1);
            }
            log_det[b] = inverse ? -total : total;
        }
    }
}

// Gradients of `couple` by y, as if the net did not depend on it, and by the net's output. `kept` is
// y, or z when inverse.
template <typename Channels>
void couple_backward(const float* dz, const float* dlog_det, const float* kept,
                     const float* log_scale, float* dy, float* dnet, long B, long H, long W,
                     Channels channels, bool inverse) {
    const long C = channels.value, half = C / 2, N = W * half;
#pragma omp parallel
    {
        std::vector<float> dx(N), x(N), dshift(N), draw(N);
#pragma omp for schedule(static)
        for (long row = 0; row < B * H; row++) {
            const long p = row * W;
            take_half(dz + p * C, dx.data(), W, channels, 1);
            take_half(kept + p * C, x.data(), W, channels, 1);
            affine_backward(log_scale + p * half, x.data(), dlog_det[row / H], dx.data(),
                            dshift.data(), draw.data(), N, inverse);
            std::memcpy(dy + p * C, dz + p * C, W * C * sizeof(float));
            put_half(dx.data(), dy + p * C, W, channels, 1);
            put_half(draw.data(), dnet + p * C, W, channels, 0);
            put_half(dshift.data(), dnet + p * C, W, channels, 1);
        }
    }
}

// dy[p, c] += sum_k du[p - off_k, k, c] for the first half of its channels
template <typename T, typename Channels>
void fold_onto(const T* du, float* dy, long B, long H, long W, Channels channels) {
    const long half = channels.value;
#pragma omp parallel
    {
        std::vector<float> sums(W * half), zeros(half, 0.f);
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < B; b++)
            for (long h = 0; h < H; h++) {
                fold_row(du + b * H * W * 9 * half, zeros.data(), sums.data(), h, H, W, channels,
                         true);
                float* to = dy + (b * H + h) * W * 2 * half;
                for (long w = 0; w < W; w++)
#pragma omp simd
                    for (long c = 0; c < half; c++) to[w * 2 * half + c] += sums[w * half + c];
            }
    }
}

// dh = 0 where h is, and its sum over the pixels: `sums` has a row of N for each of `rows` parts
template <typename T>
void relu_backward(T* dh, const T* h, float* sums, long P, long N, long rows) {
#pragma omp parallel for schedule(static)
    for (long row = 0; row < rows; row++) {
        float* sum = sums + row * N;
        std::memset(sum, 0, N * sizeof(float));
        for (long p = P * row / rows; p < P * (row + 1) / rows; p++) {
            T* d = dh + p * N;
            const T* value = h + p * N;
#pragma omp simd
            for (long n = 0; n < N; n++) {
                const T kept = value[n] == 0 ? T(0) : d[n];
                d[n] = kept;
                sum[n] += widen(kept);
            }
        }
    }
}

}  // namespace

#define EXPORT(T, name)                                                                            \
    void unfold_##name(const float* x, T* out, long B, long H, long W, long C, long stride,        \
                       long mirror) {                                                              \
        with_channels(C, [=](auto c) { unfold<T>(x, out, B, H, W, c, stride, mirror); });          \
    }                                                                                              \
    void couple_##name(const T* v, const float* bias, const float* y, float* z, float* log_scale,  \
                       float* log_det, long B, long H, long W, long C, long inverse) {             \
        with_channels(C, [=](auto c) {                                                             \
            couple<T>(v, bias, y, z, log_scale, log_det, B, H, W, c, inverse);                     \
        });                                                                                        \
    }                                                                                              \
    void fold_onto_##name(const T* du, float* dy, long B, long H, long W, long half) {             \
        with_channels(half, [=](auto c) { fold_onto<T>(du, dy, B, H, W, c); });                    \
    }                                                                                              \
    void relu_backward_##name(T* dh, const T* h, float* sums, long P, long N, long rows) {         \
        relu_backward<T>(dh, h, sums, P, N, rows);                                                 \
    }

extern "C" {
EXPORT(float, float32)
EXPORT(bf16, bfloat16)
void couple_backward_float32(const float* dz, const float* dlog_det, const float* kept,
                             const float* log_scale, float* dy, float* dnet, long B, long H, long W,
                             long C, long inverse) {
    with_channels(C, [=](auto c) {
        couple_backward(dz, dlog_det, kept, log_scale, dy, dnet, B, H, W, c, inverse);
    });
}
}
