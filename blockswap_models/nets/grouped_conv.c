/* 3x3 convolutions in groups of 2, 4 or 8 channels and their gradients, of images in channels_last: float, or
   bfloat16 where `half` is set. A vector holds neighbouring channels, those of one or more whole groups. Each image is
   copied, one vector of channels at a time, into a frame of zeros that fits into the nearest cache. One thread; no
   state. To be compiled after norm_act.c. */

/* How many neighbouring pixels of a row are computed at once, in registers. */
enum { TILE = 8, SMALL_TILE = 4 };

/* Every lane takes the value of channel i of its group of `width` lanes. */
INLINE Floats of_group(Floats values, int width, int i) {
#ifdef __clang__
    Floats chosen;
    for (int lane = 0; lane < LANES; lane++) chosen[lane] = values[lane / width * width + i];
    return chosen;
#else
    Bits lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = lane / width * width + i;
    return __builtin_shuffle(values, lanes);
#endif
}

/* The address of number `at` of an array of either type. */
INLINE const void *at_number(const void *from, long at, int half) {
    return half ? (const void *)((const unsigned short *)from + at) : (const void *)((const float *)from + at);
}

/* Zeros at an address that suits every vector; NULL where there is no memory. */
static void *zeros(long bytes) {
    bytes = (bytes + 63) / 64 * 64;
    void *place = aligned_alloc(64, bytes);
    if (place) memset(place, 0, bytes);
    return place;
}

/* Copies one vector of each pixel of an image, the pixel (r, c) to frame[r * down * pitch + c * right]. */
static void to_frame(const void *image, long rows, long cols, long channels, Floats *frame, long pitch, long down,
                     long right, int half) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < cols; c++)
            frame[r * down * pitch + c * right] = load(image, (r * cols + c) * channels, half);
}

/* Packs weights (channels, width, 3, 3) as (vectors, row, channel of the group, column) vectors; those of the gradient
   of the input where `transposed` is set. */
static void pack_weights(const float *weights, long channels, int width, int transposed, float *packed) {
    for (long c = 0; c < channels; c++)
        for (int i = 0; i < width; i++)
            for (int k = 0; k < 9; k++) {
                long place = ((c / LANES * 3 + k / 3) * width + i) * 3 + k % 3, group = c / width * width;
                packed[place * LANES + c % LANES] = transposed ? weights[((group + i) * width + c - group) * 9 + 8 - k]
                                                               : weights[(c * width + i) * 9 + k];
            }
}

/* Computes `cols` neighbouring pixels from the frame, which begins above and left of them. */
INLINE void conv_tile(const Floats *frame, long pitch, int width, const float *weights, int cols, Floats *y) {
    Floats sums[TILE];
    for (int c = 0; c < cols; c++) sums[c] = (Floats){0};
    for (int row = 0; row < 3; row++) {
#pragma GCC unroll 8
        for (int i = 0; i < width; i++) {
            const float *w = weights + (row * width + i) * 3 * LANES;
            Floats left = load(w, 0, 0), middle = load(w, LANES, 0), right = load(w, 2 * LANES, 0);
#pragma GCC unroll 10
            for (int c = 0; c < cols + 2; c++) {
                Floats value = of_group(frame[row * pitch + c], width, i);
                if (c < cols) sums[c] += value * left;
                if (c > 0 && c <= cols) sums[c - 1] += value * middle;
                if (c > 1) sums[c - 2] += value * right;
            }
        }
    }
    for (int c = 0; c < cols; c++) y[c] = sums[c];
}

/* Computes a row of at least `cols` pixels. */
INLINE void conv_row(const Floats *frame, long pitch, int width, const float *weights, long cols, Floats *y) {
    for (long c = 0; c < cols;) {
        if (cols - c > SMALL_TILE) {
            conv_tile(frame + c, pitch, width, weights, TILE, y + c);
            c += TILE;
        } else {
            conv_tile(frame + c, pitch, width, weights, SMALL_TILE, y + c);
            c += SMALL_TILE;
        }
    }
}

/* Adds to sums (row, channel of the group, column) what one vector of one image gives to the weights. The gradient has
   two zeros before each row and after it; its row r belongs to the row r * stride of the image. */
INLINE void weight_sums(const Floats *frame, long pitch, const Floats *gradient, int width, long rows, long cols,
                        int stride, double *sums) {
    enum { PART = 4 };
    for (int row = 0; row < 3; row++)
        for (int start = 0; start < width; start += PART) {
            int part = width < PART ? width : PART;
            Floats total[PART][3];
            for (int i = 0; i < part; i++) total[i][0] = total[i][1] = total[i][2] = (Floats){0};
            for (long r = 0; r < rows; r++) {
                const Floats *from = frame + (r * stride + row) * pitch, *g = gradient + r * (cols + 4);
                for (long c = 0; c < cols + 2; c++) {
                    Floats value = from[c], right = g[c], middle = g[c + 1], left = g[c + 2];
#pragma GCC unroll 4
                    for (int i = 0; i < part; i++) {
                        Floats one = of_group(value, width, start + i);
                        total[i][0] += one * left;
                        total[i][1] += one * middle;
                        total[i][2] += one * right;
                    }
                }
            }
            for (int i = 0; i < part; i++)
                for (int col = 0; col < 3; col++)
                    add(sums + ((row * width + start + i) * 3 + col) * LANES, total[i][col]);
        }
}

/* With the width as a constant. */
#define OF_WIDTH(WIDTH)                                                                                               \
    static void row_##WIDTH(const Floats *frame, long pitch, const float *weights, long cols, Floats *y) {            \
        conv_row(frame, pitch, WIDTH, weights, cols, y);                                                              \
    }                                                                                                                 \
    static void sums_##WIDTH(const Floats *frame, long pitch, const Floats *gradient, long rows, long cols,           \
                             int stride, double *sums) {                                                              \
        weight_sums(frame, pitch, gradient, WIDTH, rows, cols, stride, sums);                                         \
    }
OF_WIDTH(2)
OF_WIDTH(4)
OF_WIDTH(8)
#define WITH_WIDTH(NAME) (width == 2 ? NAME##_2 : width == 4 ? NAME##_4 : NAME##_8)

/* y from x, whose pixels are put into the frame one in `step`, and of whose convolution y is one pixel in `stride`. */
static int conv(const void *x, long images, long in_rows, long in_cols, long step, long channels, int width,
                long stride, const float *weights, int transposed, long rows, long cols, void *y, int half) {
    void (*compute)(const Floats *, long, const float *, long, Floats *) = WITH_WIDTH(row);
    long line_cols = stride * (cols - 1) + 1, x_cols = step * (in_cols - 1) + 1, x_rows = step * (in_rows - 1) + 1;
    long line_rows = stride * (rows - 1) + 1;
    /* The last tile may reach over the end of a row. */
    long pitch = (line_cols > x_cols ? line_cols : x_cols) + TILE + 2;
    long height = (line_rows > x_rows ? line_rows : x_rows) + 2;
    float *packed = zeros(9 * channels * width * sizeof *packed);
    Floats *frame = zeros(height * pitch * sizeof *frame), *line = zeros((line_cols + TILE) * sizeof *line);
    int failed = !packed || !frame || !line;
    if (!failed) pack_weights(weights, channels, width, transposed, packed);
    for (long n = 0; n < images && !failed; n++)
        for (long first = 0; first < channels; first += LANES) {
            to_frame(at_number(x, n * in_rows * in_cols * channels + first, half), in_rows, in_cols, channels,
                     frame + pitch + 1, pitch, step, step, half);
            for (long r = 0; r < rows; r++) {
                compute(frame + r * stride * pitch, pitch, packed + first * width * 9, line_cols, line);
                for (long c = 0; c < cols; c++)
                    store(y, ((n * rows + r) * cols + c) * channels + first, line[c * stride], half);
            }
        }
    free(packed);
    free(frame);
    free(line);
    return failed;
}

/* y from x of rows x cols pixels; y has one pixel in `stride` of them. `channels` is a multiple of lanes(). Returns 0,
   or 1 where there is no memory, as the two below. */
int grouped_conv_forward(const void *x, long images, long rows, long cols, long channels, int width, int stride,
                         const float *weights, void *y, int half) {
    return conv(x, images, rows, cols, 1, channels, width, stride, weights, 0, (rows - 1) / stride + 1,
                (cols - 1) / stride + 1, y, half);
}

/* dx, of rows x cols pixels, from the gradient g of y. */
int grouped_conv_input(const void *g, long images, long rows, long cols, long channels, int width, int stride,
                       const float *weights, void *dx, int half) {
    return conv(g, images, (rows - 1) / stride + 1, (cols - 1) / stride + 1, stride, channels, width, 1, weights, 1,
                rows, cols, dx, half);
}

/* The gradient of the weights (channels, width, 3, 3), from x, of rows x cols pixels, and the gradient g of y. */
int grouped_conv_weight(const void *x, const void *g, long images, long rows, long cols, long channels, int width,
                        int stride, float *dweights, int half) {
    void (*add_sums)(const Floats *, long, const Floats *, long, long, int, double *) = WITH_WIDTH(sums);
    long g_rows = (rows - 1) / stride + 1, g_cols = (cols - 1) / stride + 1, pitch = cols + 2;
    double *sums = zeros(9 * channels * width * sizeof *sums);
    Floats *frame = zeros((rows + 2) * pitch * sizeof *frame);
    Floats *gradient = zeros(g_rows * (cols + 4) * sizeof *gradient);
    int failed = !sums || !frame || !gradient;
    for (long n = 0; n < images && !failed; n++)
        for (long first = 0; first < channels; first += LANES) {
            to_frame(at_number(x, n * rows * cols * channels + first, half), rows, cols, channels, frame + pitch + 1,
                     pitch, 1, 1, half);
            to_frame(at_number(g, n * g_rows * g_cols * channels + first, half), g_rows, g_cols, channels, gradient + 2,
                     cols + 4, 1, stride, half);
            add_sums(frame, pitch, gradient, g_rows, cols, stride, sums + first * width * 9);
        }
    for (long c = 0; c < channels && !failed; c++)
        for (int i = 0; i < width; i++)
            for (int k = 0; k < 9; k++) {
                long place = ((c / LANES * 3 + k / 3) * width + i) * 3 + k % 3;
                dweights[(c * width + i) * 9 + k] = (float)sums[place * LANES + c % LANES];
            }
    free(sums);
    free(frame);
    free(gradient);
    return failed;
}

/* How many channels a vector has. */
long lanes(void) { return LANES; }
