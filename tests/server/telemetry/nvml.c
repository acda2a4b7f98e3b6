/* The driver's library as a machine with two GPUs would have it, one of which does not tell its utilisation. */
#include <stdio.h>

typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long total, free, used; } memory_t;

static const int not_supported = 3;
static long handles[] = {0, 1};
static int is_open = 0;

int nvmlInitWithFlags(unsigned int flags) { is_open = 1; return 0; }
int nvmlInit_v2(void) { is_open = 1; return 0; }
int nvmlShutdown(void) { is_open = 0; return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) { *handle = &handles[index]; return 0; }
const char *nvmlErrorString(int code) { return code == not_supported ? "Not Supported" : "Unknown Error"; }

int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *rates) {
    if (!is_open || *(long *)handle == 1) return not_supported;
    rates->gpu = 37;
    rates->memory = 5;
    return 0;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = 80ULL << 30;
    memory->used = (3ULL + *(long *)handle) << 30;
    memory->free = memory->total - memory->used;
    return 0;
}
