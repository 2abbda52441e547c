/* tare_context_set_max_memory: the budget of a process as a limit on accounted memory. */
#include "base/machine.h"
#include "quantize/max_memory.h"

tare_status tare_context_set_max_memory(tare_context *ctx, const char *max_memory_text)
{
    tare_status status = TARE_OK;
    max_memory limits = {0};
    TRY(max_memory_add_text(ctx, &limits, max_memory_text));
    max_memory_warn(ctx, &limits);
    uint64_t budget = max_memory_of(&limits, DEVICE_CPU);
    size_t reserve = machine_reserve_bytes(ctx, true);
    if (budget != 0 && budget <= reserve)
        TRY(TARE_FAIL(ctx, TARE_E_BUDGET,
                      "max_memory cpu=%lluMiB is too small: the program itself takes %zu MiB",
                      (unsigned long long)(budget >> 20), (reserve >> 20) + 1));
    ctx->memory_reserve = budget == 0 ? 0 : reserve;
    ctx->options.memory_limit = budget == 0                   ? 0
                                : budget - reserve < SIZE_MAX ? (size_t)(budget - reserve)
                                                              : 0;
done:
    max_memory_clear(ctx, &limits);
    return status;
}
