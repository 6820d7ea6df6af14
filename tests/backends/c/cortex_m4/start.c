/* Starts a program on qemu's mps2-an386 (Cortex-M4), and ends qemu with what main returns. */
#include <stdint.h>

int main(void);

extern uint32_t stack_top, data_start, data_end, data_from, bss_start, bss_end;

static void leave(int code)
{
    uint32_t block[2];
    register uint32_t operation __asm__("r0") = 0x20u; /* SYS_EXIT_EXTENDED */
    register uint32_t *argument __asm__("r1") = block;
    block[0] = 0x20026u; /* ADP_Stopped_ApplicationExit */
    block[1] = (uint32_t)code;
    __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(argument) : "memory");
    for (;;) {
    }
}

static void reset(void)
{
    uint32_t *to, *from = &data_from;
    for (to = &data_start; to < &data_end; to++) {
        *to = *from++;
    }
    for (to = &bss_start; to < &bss_end; to++) {
        *to = 0u;
    }
    leave(main());
}

/* Where a fault would hang without a word. */
static void fault(void)
{
    leave(255);
}

typedef union {
    void (*run)(void);
    uint32_t *address;
} entry;

__attribute__((section(".vectors"), used)) static const entry vectors[7] = {
    {.address = &stack_top}, {reset}, {fault}, {fault}, {fault}, {fault}, {fault},
};
