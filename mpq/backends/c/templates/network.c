/* A network that mpq exported: its constants, and its steps one after the other. */
#include "network.h"

#include <stddef.h>

#include "kernels.h"

static uint8_t arena[NETWORK_ARENA];

${constants}
${steps}
void network_load(const uint8_t *codes)
{
    mpq_tensor in;
    uint32_t i;
    in.data = arena + ${input_offset};
    in.bits = ${input_bits};
    for (i = 0; i < NETWORK_INPUTS; i++) {
        mpq_put(&in, i, codes[i]);
    }
}

void network_run(int32_t *outputs)
{
${calls}
}
