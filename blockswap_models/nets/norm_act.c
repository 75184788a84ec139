/* Batch normalisation in training mode, with or without a ReLU after it, and its gradient, of images in channels_last:
   float, or bfloat16 where `half` is set. An image tensor is seen as rows of `width` numbers, which hold one or more
   whole pixels of `channels` each, so that a row is a whole number of vectors. One thread; no state. */

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* As wide as the widest registers: compilers keep a vector that is wider than these in memory, and take 2 to 5 times as
   long. The rows are a multiple of 16 numbers anywhere. */
#if defined __AVX512F__
enum { LANES = 16 };
#elif defined __AVX__
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef unsigned Bits __attribute__((vector_size(4 * LANES)));
typedef unsigned short Halves __attribute__((vector_size(2 * LANES)));

/* So many rows are summed in float, and these sums in double: fast, and as accurate as all in double. So many vectors
   of a row are summed at once: each sum waits for the one before it, and memory is read in its order. */
enum { BLOCK = 64, TOGETHER = 4 };

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const void *from, long at, int half) {
    Floats values;
    if (!half) {
        memcpy(&values, (const float *)from + at, sizeof values);
        return values;
    }
    Halves halves;
    memcpy(&halves, (const unsigned short *)from + at, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Bits) << 16);
}

INLINE void store(void *to, long at, Floats values, int half) {
    if (!half) {
        memcpy((float *)to + at, &values, sizeof values);
        return;
    }
    /* To the nearest, ties to even. */
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)values);
    memcpy((unsigned short *)to + at, &rounded, sizeof rounded);
    return;
#endif
    Bits bits = (Bits)values, nan = (Bits)(values != values);
    /* What is not a number is not rounded up: it could become a zero. */
    Bits rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) & ~nan) | (0x7fc00000 & nan);
    Halves halves = __builtin_convertvector(rounded >> 16, Halves);
    memcpy((unsigned short *)to + at, &halves, sizeof halves);
}

INLINE float first(const void *from, long at, int half) {
    if (!half) return ((const float *)from)[at];
    unsigned bits = (unsigned)((const unsigned short *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The values where `by` is positive or not a number, zero elsewhere: what is not a number is passed on, as by PyTorch's
   ReLU, so that training that diverges is seen. */
INLINE Floats where_positive(Floats values, Floats by) { return (Floats)((Bits)values & ~(Bits)(by <= 0)); }

INLINE void add(double *sums, Floats values) {
    for (int lane = 0; lane < LANES; lane++) sums[lane] += values[lane];
}

/* Adds up what belongs to the same channel, in the first `channels` places. */
static void fold(double *sums, long width, long channels) {
    for (long t = channels; t < width; t++) sums[t % channels] += sums[t];
}

INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE void apply(const void *x, long rows, long width, const float *scale, const float *shift, int relu, void *y,
                  int half) {
    for (long r = 0; r < rows; r++)
        for (long t = 0; t < width; t += LANES) {
            Floats z = load(scale, t, 0) * load(x, r * width + t, half) + load(shift, t, 0);
            store(y, r * width + t, relu ? where_positive(z, z) : z, half);
        }
}

/* Adds up rows `start` to `end` of `together` vectors: differences from `origin`, and their squares. */
INLINE void sum_squares(const void *x, long start, long end, long width, long t, const float *origin, double *sums,
                        double *squares, int together, int half) {
    Floats from[TOGETHER], sum[TOGETHER], square[TOGETHER];
    for (int k = 0; k < together; k++) {
        from[k] = load(origin, t + k * LANES, 0);
        sum[k] = square[k] = (Floats){0};
    }
    for (long r = start; r < end; r++)
        for (int k = 0; k < together; k++) {
            Floats one = load(x, r * width + t + k * LANES, half) - from[k];
            sum[k] += one;
            square[k] += one * one;
        }
    for (int k = 0; k < together; k++) {
        add(sums + t + k * LANES, sum[k]);
        add(squares + t + k * LANES, square[k]);
    }
}

INLINE int forward(const void *x, long rows, long width, long channels, const float *gamma, const float *beta,
                   double eps, int relu, void *y, float *scale, float *shift, float *mean, float *variance,
                   int half) {
    double *sums = calloc(2 * width, sizeof *sums), *squares = sums + width;
    if (!sums) return 1;
    double count = (double)rows * (width / channels);
    /* Sums of differences from the first pixel, so that a large mean costs no digits of the variance. */
    float *origin = scale;
    for (long t = 0; t < width; t++) origin[t] = first(x, t % channels, half);
    for (long start = 0; start < rows; start += BLOCK) {
        long end = least(start + BLOCK, rows), t = 0;
        for (; t + (TOGETHER - 1) * LANES < width; t += TOGETHER * LANES)
            sum_squares(x, start, end, width, t, origin, sums, squares, TOGETHER, half);
        for (; t < width; t += LANES) sum_squares(x, start, end, width, t, origin, sums, squares, 1, half);
    }
    fold(sums, width, channels);
    fold(squares, width, channels);
    for (long c = 0; c < channels; c++) {
        double off = sums[c] / count, spread = squares[c] / count - off * off, from = origin[c];
        /* Not 0 for what is not a number. */
        if (spread < 0) spread = 0;
        double factor = gamma[c] / sqrt(spread + eps);
        mean[c] = (float)(from + off);
        variance[c] = (float)spread;
        for (long t = c; t < width; t += channels) {
            scale[t] = (float)factor;
            shift[t] = (float)(beta[c] - factor * (from + off));
        }
    }
    free(sums);
    apply(x, rows, width, scale, shift, relu, y, half);
    return 0;
}

/* Adds up rows `start` to `end` of `together` vectors: gradients, and their products with differences from `centre`. */
INLINE void sum_products(const void *g, const void *x, long start, long end, long width, long t, const float *scale,
                         const float *shift, const float *centre, int relu, double *sums, double *products, int together,
                         int half) {
    Floats a[TOGETHER], b[TOGETHER], from[TOGETHER], sum[TOGETHER], product[TOGETHER];
    for (int k = 0; k < together; k++) {
        long at = t + k * LANES;
        a[k] = load(scale, at, 0);
        b[k] = load(shift, at, 0);
        from[k] = load(centre, at, 0);
        sum[k] = product[k] = (Floats){0};
    }
    for (long r = start; r < end; r++)
        for (int k = 0; k < together; k++) {
            long at = r * width + t + k * LANES;
            Floats value = load(x, at, half), gradient = load(g, at, half);
            if (relu) gradient = where_positive(gradient, a[k] * value + b[k]);
            sum[k] += gradient;
            product[k] += gradient * (value - from[k]);
        }
    for (int k = 0; k < together; k++) {
        add(sums + t + k * LANES, sum[k]);
        add(products + t + k * LANES, product[k]);
    }
}

INLINE int backward(const void *g, const void *x, long rows, long width, long channels, double eps,
                    const float *scale, const float *shift, const float *mean, const float *variance, int relu,
                    void *dx, float *dgamma, float *dbeta, int half) {
    double *sums = calloc(2 * width, sizeof *sums), *products = sums + width;
    float *slope = malloc(2 * width * sizeof *slope), *offset = slope + width;
    if (!sums || !slope) {
        free(sums);
        free(slope);
        return 1;
    }
    double count = (double)rows * (width / channels);
    float *centre = offset;
    for (long t = 0; t < width; t++) centre[t] = mean[t % channels];
    for (long start = 0; start < rows; start += BLOCK) {
        long end = least(start + BLOCK, rows), t = 0;
        for (; t + (TOGETHER - 1) * LANES < width; t += TOGETHER * LANES)
            sum_products(g, x, start, end, width, t, scale, shift, centre, relu, sums, products, TOGETHER, half);
        for (; t < width; t += LANES)
            sum_products(g, x, start, end, width, t, scale, shift, centre, relu, sums, products, 1, half);
    }
    fold(sums, width, channels);
    fold(products, width, channels);
    /* dx = scale (g - mean(g) - z mean(g z)), z = (x - mean) inverse: a factor for g, a factor for x, and a rest. */
    for (long t = 0; t < width; t++) {
        long c = t % channels;
        double inverse = 1 / sqrt(variance[c] + eps);
        if (t < channels) {
            dgamma[c] = (float)(products[c] * inverse);
            dbeta[c] = (float)sums[c];
        }
        double factor = -scale[t] * inverse * inverse * products[c] / count;
        slope[t] = (float)factor;
        offset[t] = (float)(-scale[t] * sums[c] / count - factor * mean[c]);
    }
    for (long r = 0; r < rows; r++)
        for (long t = 0; t < width; t += LANES) {
            long at = r * width + t;
            Floats a = load(scale, t, 0), value = load(x, at, half), gradient = load(g, at, half);
            if (relu) gradient = where_positive(gradient, a * value + load(shift, t, 0));
            store(dx, at, a * gradient + load(slope, t, 0) * value + load(offset, t, 0), half);
        }
    free(sums);
    free(slope);
    return 0;
}

/* y = relu(scale x + shift); `scale` and `shift` (width), `mean` and `variance` (channels) are kept for the gradient.
   Returns 0, or 1 where there is no memory. */
int norm_act_forward(const void *x, long rows, long width, long channels, const float *gamma, const float *beta,
                     double eps, int relu, void *y, float *scale, float *shift, float *mean, float *variance,
                     int half) {
    return half ? forward(x, rows, width, channels, gamma, beta, eps, relu, y, scale, shift, mean, variance, 1)
                : forward(x, rows, width, channels, gamma, beta, eps, relu, y, scale, shift, mean, variance, 0);
}

/* The gradients of x, gamma and beta, from the gradient g of y, from x and from what the forward pass kept. */
int norm_act_backward(const void *g, const void *x, long rows, long width, long channels, double eps,
                      const float *scale, const float *shift, const float *mean, const float *variance, int relu,
                      void *dx, float *dgamma, float *dbeta, int half) {
    return half ? backward(g, x, rows, width, channels, eps, scale, shift, mean, variance, relu, dx, dgamma, dbeta, 1)
                : backward(g, x, rows, width, channels, eps, scale, shift, mean, variance, relu, dx, dgamma, dbeta, 0);
}

/* y = relu(scale x + shift), of a given scale and shift (width). Returns 0. */
int norm_act_apply(const void *x, long rows, long width, const float *scale, const float *shift, int relu, void *y,
                   int half) {
    if (half)
        apply(x, rows, width, scale, shift, relu, y, 1);
    else
        apply(x, rows, width, scale, shift, relu, y, 0);
    return 0;
}
