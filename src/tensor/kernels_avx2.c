#include "tensor/kernels_tables.h"
