/* A thread that does jobs one after the other while its owner computes: the next piece is read, the
 * last one written. Jobs run in the order in which they were submitted. After one has failed the
 * rest are dropped, and every call tells its status: the owner hears of it wherever it waits next,
 * and not before - until then its error is not the context's, and hides no other. Who reads ahead
 * and writes behind has two of them, and as many buffers as pieces may be on their way: a buffer is
 * taken again once the job that used it is done.
 *
 *     background *writer;
 *     TRY(background_create(ctx, 4, &writer));
 *     TRY(background_submit(writer, write_piece, &pieces[i], &pieces[i].written));
 *     …                                       // compute the next
 *     TRY(background_wait(writer, pieces[i].written));
 *     …
 *     background_free(writer);
 */
#ifndef TARE_BASE_BACKGROUND_H
#define TARE_BASE_BACKGROUND_H

#include "base/context.h"

typedef struct background background;
typedef tare_status (*background_job)(void *user);

/* At most `depth` jobs wait at a time. */
tare_status background_create(tare_context *ctx, size_t depth, background **out);
/* Queues job(user), waiting for room; *ticket (may be NULL) is what background_wait takes. One
 * thread at a time submits. */
tare_status background_submit(background *b, background_job job, void *user, uint64_t *ticket);
/* Until the job is done; TARE_OK unless it, or one before it, failed. A ticket of 0 stands for no
 * job. */
tare_status background_wait(background *b, uint64_t ticket);
/* Drops the jobs that wait, and returns once the one at work has ended; NULL is allowed. */
void background_free(background *b);

#endif
