/* Answers like NVIDIA's management library, with what a file says: see nvml.py.
 *
 * The file is named by NVML_RECORD. Its lines: "driver 535.129.03", "cuda 12020", "gpu UUID MB FREE NAME" (MB "-": it has
 * no memory of its own), "part UUID MB FREE NAME" (an instance of the GPU before), "fails N" (the library does not start,
 * with this error), "hangs", "crashes". Function names and structures are those of nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define MAX 80

struct device {
    char uuid[96], name[96], total[16], free[16];
    struct device *whole;
};

struct memory {
    unsigned long long total, free, used;
};

static struct device devices[MAX];
static int known;
static char driver[80];
static int cuda;

static void add(const char *text, struct device *whole) {
    struct device *one = &devices[known++];
    sscanf(text, "%95s %15s %15s %95[^\n]", one->uuid, one->total, one->free, one->name);
    one->whole = whole;
}

int nvmlInitWithFlags(unsigned flags) {
    char line[512];
    struct device *whole = NULL;
    const char *path = getenv("NVML_RECORD");
    FILE *file = path ? fopen(path, "r") : NULL;
    (void)flags;
    if (!file)
        return 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
    while (fgets(line, sizeof line, file)) {
        if (!strncmp(line, "driver ", 7))
            sscanf(line + 7, "%79s", driver);
        else if (!strncmp(line, "cuda ", 5))
            cuda = atoi(line + 5);
        else if (!strncmp(line, "gpu ", 4)) {
            whole = &devices[known];
            add(line + 4, NULL);
        } else if (!strncmp(line, "part ", 5))
            add(line + 5, whole);
        else if (!strncmp(line, "fails ", 6)) {
            fclose(file);
            return atoi(line + 6);
        } else if (!strncmp(line, "hangs", 5))
            for (;;)
                pause();
        else if (!strncmp(line, "crashes", 7))
            abort();
    }
    fclose(file);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "%s", driver);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = cuda;
    return SUCCESS;
}

static struct device *nth(struct device *whole, unsigned index) {
    for (int place = 0; place < known; place++)
        if (devices[place].whole == whole && index-- == 0)
            return &devices[place];
    return NULL;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    for (*count = 0; nth(NULL, *count); ++*count)
        ;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **found) {
    *found = nth(NULL, index);
    return *found ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(struct device *device, char *text, unsigned size) {
    snprintf(text, size, "%s", device->name);
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct device *device, char *text, unsigned size) {
    snprintf(text, size, "%s", device->uuid);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
    if (device->total[0] == '-')
        return NOT_SUPPORTED;
    memory->total = strtoull(device->total, NULL, 10) << 20;
    memory->free = strtoull(device->free, NULL, 10) << 20;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    if (!strstr(device->name, "A100"))
        return NOT_SUPPORTED;
    *current = *pending = nth(device, 0) != NULL;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) {
    (void)device;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **found) {
    *found = nth(device, index);
    return *found ? SUCCESS : NOT_FOUND;
}
