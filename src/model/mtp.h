/* MTP (multi-token prediction) layers: num_nextn_predict_layers of them stand behind the others,
 * numbered on from num_hidden_layers. Each is a decoder block like the last ones, which reads
 *
 *     eh_proj([enorm(embed_tokens(next token)) | hnorm(x)])
 *
 * where x is what the layer before it put out (of the last layer: before the final norm), and whose
 * logits are shared_head.head(shared_head.norm(its output)): of the token behind the next one
 * (spec/models.md 1.9). Nothing but drafting reads what they say. */
#ifndef TARE_MODEL_MTP_H
#define TARE_MODEL_MTP_H

/* What becomes of them in an output. */
typedef enum mtp_mode {
    MTP_NONE,  /* they are left out */
    MTP_FLOAT, /* copied as they are */
    MTP_MIX    /* they are blocks as the others are; what surrounds the blocks is copied */
} mtp_mode;

/* The modules of such a layer that are not its decoder block's; they stay float. */
typedef enum mtp_module {
    MTP_ENORM,
    MTP_HNORM,
    MTP_PROJECTION,
    MTP_EMBEDDING,
    MTP_HEAD_NORM,
    MTP_HEAD,
    MTP_MODULES
} mtp_module;

/* Behind the layer's: "eh_proj". */
const char *mtp_module_name(mtp_module module);

#endif
