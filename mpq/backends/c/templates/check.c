/* Examples and what the network has to make of them, bit for bit: 0 is success.
 *
 * For the device itself: link it with network.c and kernels.c, run main, read what it returns (the
 * number of examples that differ).
 */
#include <stdint.h>

#include "network.h"

#define EXAMPLES ${count}

static const uint8_t inputs[EXAMPLES][NETWORK_INPUTS] = {${inputs}};
static const int32_t expected[EXAMPLES][NETWORK_OUTPUTS] = {${outputs}};

int main(void)
{
    static int32_t outputs[NETWORK_OUTPUTS];
    int different = 0;
    uint32_t n, i;
    for (n = 0; n < EXAMPLES; n++) {
        int is_different = 0;
        network_load(inputs[n]);
        network_run(outputs);
        for (i = 0; i < NETWORK_OUTPUTS; i++) {
            is_different |= outputs[i] != expected[n][i];
        }
        different += is_different;
    }
    return different;
}
