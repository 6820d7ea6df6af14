/* The network on a host with files, for mpq: not for a device.
 *
 * host run: float numbers of examples on standard input, outputs as float on standard output.
 * host weights: a line "layer bits rows columns" for each layer, its decoded weights as float.
 */
#include <stdio.h>
#include <string.h>

#include "network.c"

${scales}
static void weights(uint32_t layer, const mpq_weights *constants, const float *scales,
                    uint32_t rows, uint32_t columns)
{
    uint32_t i;
    printf("%lu %ld %lu %lu\n", (unsigned long)layer, (long)constants->bits, (unsigned long)rows,
           (unsigned long)columns);
    for (i = 0; i < rows * columns; i++) {
        float scale = scales[constants->is_shared ? 0 : i / columns];
        float number = (float)mpq_weight(constants, i) * scale;
        fwrite(&number, sizeof number, 1, stdout);
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

int main(int count, char **given)
{
    if (count == 2 && strcmp(given[1], "run") == 0) {
        run();
    } else if (count == 2 && strcmp(given[1], "weights") == 0) {
${decodes}
    } else {
        return 2;
    }
    return 0;
}
