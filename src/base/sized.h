/* The structs of the public interface that begin with `size_t size`, the caller's idea of their
 * size, which a caller of another version gives another value (tare.h, "Versions"). The library
 * works with whole structs of its own: sized_take copies one in, sized_give copies one out. */
#ifndef TARE_BASE_SIZED_H
#define TARE_BASE_SIZED_H

#include "tare/tare.h"

/* What tare_..._options_init_sized does: the first `given_size` bytes of `given` become those of
 * `defaults` [size], zeros beyond, and its size is set. */
void sized_init(void *given, size_t given_size, const void *defaults, size_t size);
/* Is the size of `given` (or NULL) one that a caller can have set? TARE_E_USAGE names the struct
 * `name` and what sets it. `ctx` may be NULL: no message. */
tare_status sized_check(tare_context *ctx, const char *name, const void *given);
/* The members that the caller has replace those of `known` [size], which holds the defaults. NULL:
 * none. TARE_E_USAGE as above, and for a setting behind those known here. */
tare_status sized_take(tare_context *ctx, const char *name, const void *given, void *known,
                       size_t size);
/* The caller's members of `given` (which was checked; NULL: does nothing) <- those of `known`
 * [size], zeros behind. Its size stays. */
void sized_give(void *given, const void *known, size_t size);

#define SIZED_CHECK(ctx, type, given)       sized_check((ctx), #type, (given))
#define SIZED_TAKE(ctx, type, given, known) sized_take((ctx), #type, (given), (known), sizeof(type))

#endif
