/* Codes of numbers and numbers of outputs, for processors with floating point. */
#include <math.h>

#include "network.h"

void network_quantize(const float *numbers, uint8_t *codes)
{
    uint32_t i;
    for (i = 0; i < NETWORK_INPUTS; i++) {
        /* To the nearest one, of two the even one, before the zero point is added. */
        float code = rintf(numbers[i] * ${reciprocal}) + (float)NETWORK_INPUT_ZERO;
        code = code > 0.0f ? code : 0.0f;
        codes[i] = (uint8_t)(code < ${largest}.0f ? code : ${largest}.0f);
    }
}

void network_dequantize(const int32_t *outputs, float *numbers)
{
    uint32_t i;
    for (i = 0; i < NETWORK_OUTPUTS; i++) {
        numbers[i] = (float)outputs[i] * NETWORK_OUTPUT_SCALE;
    }
}
