/* The network on a host with files, for mpq: not for a device.
 *
 * host run: float numbers of examples on standard input, outputs as float on standard output.
 * host weights: a line "layer bits rows columns" for each layer, its decoded weights as float.
 * host trace: the same examples, and what every step makes of each: codes less their zero, int32_t.
 * host check: of the examples that travel with the folder, what every step makes.
 */
#include <stdio.h>
#include <string.h>

#include "network.c"

/* Its examples; its main counts those that differ, which is not asked here. */
#define main count_different
#include "check.c"
#undef main

${scales}
static void weights(uint32_t layer, const mpq_weights *constants, const float *scales,
                    uint32_t rows, uint32_t columns)
{
    uint32_t row, column, first = 0;
    printf("%lu %ld %lu %lu\n", (unsigned long)layer, (long)constants->bits, (unsigned long)rows,
           (unsigned long)columns);
    for (row = 0; row < rows; row++) {
        float scale = scales[constants->is_shared ? 0 : row];
        for (column = 0; column < columns; column++) {
            float number = (float)mpq_weight(constants, first, row, column) * scale;
            fwrite(&number, sizeof number, 1, stdout);
        }
        first += columns * (uint32_t)mpq_width(constants, row);
    }
}

static void run(void)
{
    static float numbers[NETWORK_INPUTS], found[NETWORK_OUTPUTS];
    static uint8_t codes[NETWORK_INPUTS];
    static int32_t outputs[NETWORK_OUTPUTS];
    while (fread(numbers, sizeof numbers, 1, stdin) == 1) {
        network_quantize(numbers, codes);
        network_load(codes);
        network_run(outputs);
        network_dequantize(outputs, found);
        fwrite(found, sizeof found, 1, stdout);
    }
}

static void tell(void *data, int32_t bits, int32_t zero, uint32_t size)
{
    mpq_tensor made;
    uint32_t i;
    made.data = data;
    made.bits = bits;
    made.zero = zero;
    for (i = 0; i < size; i++) {
        int32_t number = bits == 32 ? ((int32_t *)data)[i] : mpq_number(&made, i);
        fwrite(&number, sizeof number, 1, stdout);
    }
}

/* What network_run does, and tells each tensor before the next step overwrites it. */
static void trace_steps(void)
{
    static int32_t outputs[NETWORK_OUTPUTS];
${traces}
}

static void trace(void)
{
    static float numbers[NETWORK_INPUTS];
    static uint8_t codes[NETWORK_INPUTS];
    while (fread(numbers, sizeof numbers, 1, stdin) == 1) {
        network_quantize(numbers, codes);
        network_load(codes);
        trace_steps();
    }
}

static void trace_check(void)
{
    uint32_t n;
    for (n = 0; n < EXAMPLES; n++) {
        network_load(inputs[n]);
        trace_steps();
    }
}

int main(int count, char **given)
{
    if (count == 2 && strcmp(given[1], "run") == 0) {
        run();
    } else if (count == 2 && strcmp(given[1], "weights") == 0) {
${decodes}
    } else if (count == 2 && strcmp(given[1], "trace") == 0) {
        trace();
    } else if (count == 2 && strcmp(given[1], "check") == 0) {
        trace_check();
    } else {
        return 2;
    }
    return 0;
}
