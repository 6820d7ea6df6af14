/* A network that mpq exported: what an application calls. Integers only.
 *
 *     static uint8_t codes[NETWORK_INPUTS];
 *     static int32_t outputs[NETWORK_OUTPUTS];
 *     network_load(codes);
 *     network_run(outputs);
 *
 * A code c stands for NETWORK_INPUT_SCALE * (c - NETWORK_INPUT_ZERO), an output o for
 * NETWORK_OUTPUT_SCALE * o: the largest output is the largest logit. Numbers lie as in torch:
 * channels, rows, columns. One call at a time: the arena is one.
 */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdint.h>

#define NETWORK_INPUTS ${num_inputs}
#define NETWORK_INPUT_BITS ${input_bits}
#define NETWORK_INPUT_ZERO ${input_zero}
#define NETWORK_INPUT_SCALE ${input_scale}
#define NETWORK_OUTPUTS ${num_outputs}
#define NETWORK_OUTPUT_SCALE ${output_scale}
/* Bytes: of all tensors between the layers, and of weights, multipliers, shifts and biases. */
#define NETWORK_ARENA ${arena}
#define NETWORK_CONSTANTS ${constants}

/* Takes the input: NETWORK_INPUTS codes of 0 to 2^NETWORK_INPUT_BITS - 1, a byte each. */
void network_load(const uint8_t *codes);

/* Computes NETWORK_OUTPUTS outputs; the input is overwritten. */
void network_run(int32_t *outputs);

/* For processors with floating point (network_float.c): numbers to codes, outputs to numbers. */
void network_quantize(const float *numbers, uint8_t *codes);
void network_dequantize(const int32_t *outputs, float *numbers);

#endif
