/* The bytes inside a pickled torch tensor: what torch.storage._load_from_bytes takes, which is
 * torch.save's older form of one storage. Five small pickles (protocol 2, each with its own memo),
 * then the data:
 *
 *     magic, version, {protocol_version, little_endian, type_sizes},
 *     persistent id ("storage", torch.<T>Storage, key, location, elements, None), [key],
 *     elements as u64, data
 *
 * torch has written them in the same way since 1.0, so they are compared, not interpreted. */
#ifndef TARE_FILE_NPY_TORCH_H
#define TARE_FILE_NPY_TORCH_H

#include "file/npy_machine.h"

/* Up to the name of the storage's class. */
#define TORCH_HEAD                                                                                 \
    "\x80\x02\x8a\nl\xfc\x9c"                                                                      \
    "F\xf9 j\xa8P\x19."                                                                            \
    "\x80\x02M\xe9\x03."                                                                           \
    "\x80\x02}q\0(X\x10\0\0\0protocol_versionq\x01M\xe9\x03X\x0d\0\0\0little_endianq\x02\x88"      \
    "X\n\0\0\0type_sizesq\x03}q\x04(X\x05\0\0\0shortq\x05K\x02X\x03\0\0\0intq\x06K\x04"            \
    "X\x04\0\0\0longq\x07K\x04uu."                                                                 \
    "\x80\x02(X\x07\0\0\0storageq\0"                                                               \
    "ctorch\n"
#define TORCH_KEY      "\nq\x01X"               /* before the key's length and the key */
#define TORCH_LOCATION "q\x02X"                 /* before those of the location */
#define TORCH_ELEMENTS "q\x03"                  /* before the number of elements, an opcode */
#define TORCH_KEYS     "Ntq\x04Q.\x80\x02]q\0X" /* before the key again */
#define TORCH_END                                                                                  \
    "q\x01"                                                                                        \
    "a." /* before the number of elements, 8 bytes, and the data */

/* "BFloat16Storage"; NULL: torch has none. */
const char *torch_storage_name(tare_dtype dtype);
/* _load_from_bytes(bytes): `bytes` (V_BYTES) as a V_STORAGE. */
tare_status torch_load_storage(machine *m, const pvalue *bytes, pvalue *out);

#endif
