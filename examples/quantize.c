/* cc quantize.c $(pkg-config --cflags --libs tare) -o quantize; ./quantize MODEL OUT PROMPTS */
#include <stdio.h>
#include <tare/tare.h>

int main(int argc, char **argv)
{
    tare_context *ctx;
    tare_quantize_options o;
    if (argc != 4 || tare_context_create(&ctx, NULL) != TARE_OK)
        return 2;
    tare_quantize_options_init(&o);
    o.model = argv[1], o.out = argv[2], o.calib = argv[3];
    tare_status status = tare_quantize(ctx, &o, NULL);
    puts(status == TARE_OK ? tare_version() : tare_last_error(ctx));
    tare_context_free(ctx);
    return status != TARE_OK;
}
