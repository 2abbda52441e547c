/* Items that are read ahead and written behind by threads while their owner computes. Items 0 to
 * count-1 take turns in a few slots: what a slot holds is the user's, whose it is at the moment is
 * told here. A reader fills it, take() hands it to the owner, give() to the writer, and once it is
 * written it is free again; without `write` it is when the next item is taken.
 *
 *     for (size_t i = 0; i < count; i++) {
 *         TRY(read_ahead_take(pieces, i, &slot));
 *         …                                       // compute on what lies there
 *         TRY(read_ahead_give(pieces, i));
 *     }
 *     TRY(read_ahead_wait(pieces));
 *
 * After an item has failed no later one begins, and the owner hears of it where it waits next, not
 * before: until then its error is not the context's, and hides no other. */
#ifndef TARE_BASE_READ_AHEAD_H
#define TARE_BASE_READ_AHEAD_H

#include "base/context.h"

/* At most: threads that read, and slots. */
enum { READ_AHEAD_READERS = 2, READ_AHEAD_SLOTS = 16 };

typedef tare_status (*read_ahead_item)(void *user, size_t index, size_t slot);

typedef struct read_ahead_work {
    void *user;
    read_ahead_item read, write; /* write NULL: items go nowhere */
    size_t count;
    /* Threads that read, each an item, beside one that writes; 0: take() reads and give() writes.
     */
    size_t readers;
    /* Items that are read while one is in work, and that wait to be written or are; without threads
     * (of writing: without `write`) 0. */
    size_t ahead, behind;
} read_ahead_work;

/* Item i lies in slot i % slots. */
static inline size_t read_ahead_slots(const read_ahead_work *w)
{
    return w->ahead + 1 + w->behind;
}

typedef struct read_ahead read_ahead;

/* Reads nothing yet. */
tare_status read_ahead_start(tare_context *ctx, const read_ahead_work *work, read_ahead **out);
/* Waits for item `index`, and has the next ones read. Items are taken in order, from any first one
 * on; behind the last one it may begin again. Looks for cancellation. */
tare_status read_ahead_take(read_ahead *r, size_t index, size_t *slot);
/* Has the item that was taken last written. */
tare_status read_ahead_give(read_ahead *r, size_t index);
/* Until everything that was given is written. */
tare_status read_ahead_wait(read_ahead *r);
/* Drops what waits, and returns once what is at work has ended; NULL is allowed. What lies in the
 * slots is the user's to free then. */
void read_ahead_stop(read_ahead *r);
/* Accounted bytes of one. */
size_t read_ahead_bytes(void);

#endif
