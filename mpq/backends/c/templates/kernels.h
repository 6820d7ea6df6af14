/* Kernels of mpq's networks: C99, integers only, no allocation, nothing but <stdint.h>. */
#ifndef MPQ_KERNELS_H
#define MPQ_KERNELS_H

#include <stdint.h>

/* Bits behind the binary point of a sum that becomes a code. */
#define MPQ_FRACTION ${fraction}

/* A tensor of one example: channels, rows, columns. The number is scale * (code - zero). */
typedef struct {
    void *data;     /* codes in one dense stream of bits, or int32_t */
    int32_t bits;   /* of a code, 2 to 8; 32: int32_t */
    int32_t zero;   /* the code of 0 */
    int32_t low;    /* the smallest code that is written */
    int32_t high;   /* the largest one */
} mpq_tensor;

/* A number as multiplier / 2^shift. */
typedef struct {
    int32_t multiplier;
    int32_t shift;
} mpq_ratio;

/* A layer's constants. */
typedef struct {
    const uint8_t *codes;        /* [outputs, weights] in one dense stream of bits */
    const uint8_t *widths;       /* bits of a code for each output channel; NULL: all have `bits` */
    const int32_t *multipliers;  /* one for each output channel, or one for all */
    const uint8_t *shifts;
    const int32_t *bias;         /* with a binary point; may be missing */
    int32_t bits;                /* of a code, the most; 2^(bits - 1) stands for 0 */
    int32_t is_shared;           /* whether there is one multiplier for all */
} mpq_weights;

/* How a kernel walks; of a vector, heights and widths are 1. */
typedef struct {
    int32_t in_channels, in_height, in_width;
    int32_t out_channels, out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t pad_channels, pad_y, pad_x; /* zeros before the input; negative: what is left out */
    int32_t dilation_y, dilation_x;
    int32_t groups;
} mpq_shape;

uint32_t mpq_code(const uint8_t *stream, uint32_t index, int32_t bits);
int32_t mpq_number(const mpq_tensor *tensor, uint32_t index);
void mpq_put(const mpq_tensor *tensor, uint32_t index, uint32_t code);
int32_t mpq_width(const mpq_weights *weights, uint32_t row);
int32_t mpq_weight(const mpq_weights *weights, uint32_t first, uint32_t row, uint32_t column);
int64_t mpq_scaled(int64_t value, mpq_ratio ratio);

/* Sums of products; numbers of `added` (may be missing) are added to them. */
void mpq_layer(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape,
               const mpq_weights *weights, const mpq_tensor *added, mpq_ratio added_ratio);
void mpq_mean(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape, mpq_ratio ratio);
void mpq_max(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape, mpq_ratio ratio);
void mpq_move(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape, mpq_ratio ratio);

/* Number by number, in place where `out` lies where `first` or `second` does; from the last one on
 * if `backwards`: then wider codes overwrite narrower ones. `second` may be missing. */
void mpq_add(const mpq_tensor *first, mpq_ratio first_ratio, const mpq_tensor *second,
             mpq_ratio second_ratio, const mpq_tensor *out, uint32_t count, int32_t backwards);

#endif
