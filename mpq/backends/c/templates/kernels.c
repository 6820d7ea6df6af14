/* Kernels of mpq's networks; see kernels.h. */
#include "kernels.h"

#include <stddef.h>

/* Rounded down, also where the value is negative, which C leaves to the compiler. */
static int64_t shifted(int64_t value, int32_t shift)
{
    return value >= 0 ? value >> shift : ~(~value >> shift);
}

int64_t mpq_scaled(int64_t value, mpq_ratio ratio)
{
    int64_t half = ratio.shift > 0 ? (int64_t)1 << (ratio.shift - 1) : 0;
    return shifted(value * ratio.multiplier + half, ratio.shift);
}

/* The code at a bit of the stream. */
static inline uint32_t code_in(const uint8_t *stream, uint32_t at, int32_t bits)
{
    uint32_t place = at & 7u, found = (uint32_t)stream[at >> 3] >> place;
    if (place + (uint32_t)bits > 8u) { /* a code may lie in two bytes */
        found |= (uint32_t)stream[(at >> 3) + 1u] << (8u - place);
    }
    return found & ((1u << bits) - 1u);
}

static inline uint32_t code_at(const uint8_t *stream, uint32_t index, int32_t bits)
{
    return bits == 8 ? stream[index] : code_in(stream, index * (uint32_t)bits, bits);
}

uint32_t mpq_code(const uint8_t *stream, uint32_t index, int32_t bits)
{
    return code_at(stream, index, bits);
}

void mpq_put(const mpq_tensor *tensor, uint32_t index, uint32_t code)
{
    uint8_t *stream = (uint8_t *)tensor->data;
    uint32_t bits = (uint32_t)tensor->bits, at = index * bits, place = at & 7u;
    uint32_t mask = (1u << bits) - 1u;
    if (bits == 8u) {
        stream[index] = (uint8_t)code;
        return;
    }
    stream += at >> 3;
    stream[0] = (uint8_t)((stream[0] & ~(mask << place)) | (code << place));
    if (place + bits > 8u) {
        stream[1] = (uint8_t)((stream[1] & ~(mask >> (8u - place))) | (code >> (8u - place)));
    }
}

int32_t mpq_number(const mpq_tensor *tensor, uint32_t index)
{
    return (int32_t)mpq_code((const uint8_t *)tensor->data, index, tensor->bits) - tensor->zero;
}

int32_t mpq_width(const mpq_weights *weights, uint32_t row)
{
    return weights->widths == NULL ? weights->bits : weights->widths[row];
}

/* `first` is the bit at which the codes of the row begin. */
int32_t mpq_weight(const mpq_weights *weights, uint32_t first, uint32_t row, uint32_t column)
{
    int32_t bits = mpq_width(weights, row);
    return (int32_t)code_in(weights->codes, first + column * (uint32_t)bits, bits)
           - (1 << (bits - 1));
}

/* A sum becomes a code: without its binary point, within what the tensor may hold. */
static void store(const mpq_tensor *out, uint32_t index, int64_t sum)
{
    int64_t code = sum;
    if (out->bits != 32) {
        code = shifted(sum + ((int64_t)1 << (MPQ_FRACTION - 1)), MPQ_FRACTION) + out->zero;
    }
    if (code < out->low) {
        code = out->low;
    }
    if (code > out->high) {
        code = out->high;
    }
    if (out->bits == 32) {
        ((int32_t *)out->data)[index] = (int32_t)code;
    } else {
        mpq_put(out, index, (uint32_t)code);
    }
}

/* Those of `count` places of a kernel, `step` apart from `start` on, that lie within `size`. */
static void inside(int32_t start, int32_t step, int32_t count, int32_t size, int32_t *first,
                   int32_t *end)
{
    *first = 0;
    *end = count;
    while (*first < count && start + *first * step < 0) {
        ++*first;
    }
    while (*end > *first && start + (*end - 1) * step >= size) {
        --*end;
    }
}

/* One sum of products: an output channel `o`, whose codes begin at the bit `begin`, at the window
 * that begins at row `top`, column `left`. */
static int32_t products(const mpq_tensor *in, const mpq_shape *s, const mpq_weights *weights,
                        int32_t o, uint32_t begin, int32_t top, int32_t left)
{
    const uint8_t *numbers = (const uint8_t *)in->data, *codes = weights->codes;
    int32_t depth = s->in_channels / s->groups, c, y, x, y0, y1, x0, x1, sum = 0;
    int32_t first = o / (s->out_channels / s->groups) * depth;
    int32_t bits = mpq_width(weights, (uint32_t)o), middle = 1 << (bits - 1);
    int32_t zero = in->zero, in_bits = in->bits;
    inside(top, s->dilation_y, s->kernel_height, s->in_height, &y0, &y1);
    inside(left, s->dilation_x, s->kernel_width, s->in_width, &x0, &x1);
    for (c = 0; c < depth; c++) {
        for (y = y0; y < y1; y++) {
            int32_t row = (first + c) * s->in_height + top + y * s->dilation_y;
            uint32_t at = (uint32_t)(row * s->in_width + left + x0 * s->dilation_x);
            uint32_t w = (uint32_t)((c * s->kernel_height + y) * s->kernel_width + x0);
            uint32_t place = begin + w * (uint32_t)bits;
            for (x = x0; x < x1; x++, place += (uint32_t)bits, at += (uint32_t)s->dilation_x) {
                int32_t number = (int32_t)code_at(numbers, at, in_bits) - zero;
                sum += number * ((int32_t)code_in(codes, place, bits) - middle);
            }
        }
    }
    return sum;
}

void mpq_layer(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape,
               const mpq_weights *weights, const mpq_tensor *added, mpq_ratio added_ratio)
{
    int32_t o, y, x, depth = shape->in_channels / shape->groups;
    uint32_t index = 0, begin = 0;
    uint32_t count = (uint32_t)(depth * shape->kernel_height * shape->kernel_width);
    for (o = 0; o < shape->out_channels; o++) {
        int32_t scale = weights->is_shared ? 0 : o;
        mpq_ratio ratio;
        ratio.multiplier = weights->multipliers[scale];
        ratio.shift = weights->shifts[scale];
        for (y = 0; y < shape->out_height; y++) {
            for (x = 0; x < shape->out_width; x++, index++) {
                int64_t sum = mpq_scaled(products(in, shape, weights, o, begin,
                                                  y * shape->stride_y - shape->pad_y,
                                                  x * shape->stride_x - shape->pad_x),
                                         ratio);
                if (weights->bias != NULL) {
                    sum += weights->bias[o];
                }
                if (added != NULL) {
                    sum += mpq_scaled(mpq_number(added, index), added_ratio);
                }
                store(out, index, sum);
            }
        }
        begin += count * (uint32_t)mpq_width(weights, (uint32_t)o);
    }
}

/* A sum or a maximum of one channel's window. */
static int64_t pooled(const mpq_tensor *in, const mpq_shape *s, int32_t c, int32_t top,
                      int32_t left, int32_t is_max)
{
    int64_t found = 0;
    int32_t y, x, is_first = 1;
    for (y = 0; y < s->kernel_height; y++) {
        for (x = 0; x < s->kernel_width; x++) {
            int32_t row = top + y * s->dilation_y, column = left + x * s->dilation_x;
            if (row >= 0 && row < s->in_height && column >= 0 && column < s->in_width) {
                uint32_t at = (uint32_t)((c * s->in_height + row) * s->in_width + column);
                int32_t number = mpq_number(in, at);
                if (!is_max) {
                    found += number;
                } else if (is_first || number > found) {
                    found = number;
                }
                is_first = 0;
            }
        }
    }
    return found;
}

static void pool(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *s, mpq_ratio ratio,
                 int32_t is_max)
{
    int32_t c, y, x;
    uint32_t index = 0;
    for (c = 0; c < s->out_channels; c++) {
        for (y = 0; y < s->out_height; y++) {
            for (x = 0; x < s->out_width; x++) {
                int64_t sum = pooled(in, s, c, y * s->stride_y - s->pad_y,
                                     x * s->stride_x - s->pad_x, is_max);
                store(out, index++, mpq_scaled(sum, ratio));
            }
        }
    }
}

void mpq_mean(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape, mpq_ratio ratio)
{
    pool(in, out, shape, ratio, 0);
}

void mpq_max(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *shape, mpq_ratio ratio)
{
    pool(in, out, shape, ratio, 1);
}

void mpq_move(const mpq_tensor *in, const mpq_tensor *out, const mpq_shape *s, mpq_ratio ratio)
{
    int32_t c, y, x;
    uint32_t index = 0;
    for (c = 0; c < s->out_channels; c++) {
        int32_t channel = c - s->pad_channels;
        for (y = 0; y < s->out_height; y++) {
            int32_t row = y * s->stride_y - s->pad_y;
            for (x = 0; x < s->out_width; x++) {
                int32_t column = x * s->stride_x - s->pad_x;
                int64_t number = 0;
                if (channel >= 0 && channel < s->in_channels && row >= 0 && row < s->in_height
                    && column >= 0 && column < s->in_width) {
                    uint32_t at = (uint32_t)((channel * s->in_height + row) * s->in_width + column);
                    number = mpq_number(in, at);
                }
                store(out, index++, mpq_scaled(number, ratio));
            }
        }
    }
}

void mpq_add(const mpq_tensor *first, mpq_ratio first_ratio, const mpq_tensor *second,
             mpq_ratio second_ratio, const mpq_tensor *out, uint32_t count, int32_t backwards)
{
    uint32_t i;
    for (i = 0; i < count; i++) {
        uint32_t at = backwards ? count - 1u - i : i;
        int64_t sum = mpq_scaled(mpq_number(first, at), first_ratio);
        if (second != NULL) {
            sum += mpq_scaled(mpq_number(second, at), second_ratio);
        }
        store(out, at, sum);
    }
}
