/* A stand-in for libnvidia-ml.so.1 with two GPUs, so that the real binding runs on a box without one.
 *
 * The file named by NVML_STUB_FAULTS is read at every call; these words in it cause faults, N being 0 or 1:
 *   lostN    every call on GPU N says that it is lost        resetN   likewise: a reset is required
 *   poorN    GPU N reports nothing but its memory            oddN     GPU N answers with "not available" patterns
 *   hangN    a call on GPU N never returns                   xidN     GPU N has a critical error (79) to report
 *   pidN=P   process P holds 3 GiB of GPU N's memory; so does process 1, which is nobody's child
 *   over     the library says that it is not initialised     nodriver nvmlInit fails
 * NVML_STUB_LOG, if set, gets one line for each nvmlInit.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9, TIMED_OUT = 10, LOST = 15, RESET = 16 };

struct device { int index; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned gpu, memory; };
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
struct event { struct device *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };

static struct device devices[2] = {{0}, {1}};
static int xid_told[2], xid_wanted[2];

/* What follows the word, read as a number; -1 where the word is not there. */
static int number(const char *name, int index)
{
    char words[256] = {0}, wanted[32];
    const char *path = getenv("NVML_STUB_FAULTS");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file)
        return -1;
    size_t got = fread(words, 1, sizeof words - 1, file);
    (void)got;
    fclose(file);
    if (index >= 0)
        snprintf(wanted, sizeof wanted, "%s%d", name, index);
    else
        snprintf(wanted, sizeof wanted, "%s", name);
    const char *found = strstr(words, wanted);
    return found ? atoi(found + strlen(wanted) + 1) : -1;
}

static int fault(const char *name, int index) { return number(name, index) >= 0; }

static int state(struct device *device)
{
    while (fault("hang", device->index))
        pause();
    if (fault("over", -1))
        return UNINITIALIZED;
    if (fault("lost", device->index))
        return LOST;
    return fault("reset", device->index) ? RESET : SUCCESS;
}

static int detail(struct device *device)
{
    int found = state(device);
    return found == SUCCESS && fault("poor", device->index) ? NOT_SUPPORTED : found;
}

#define ANSWER(device, target, value) \
    do { \
        int found = detail(device); \
        if (found == SUCCESS) \
            *(target) = fault("odd", (device)->index) ? -1 : (value); \
        return found; \
    } while (0)

int nvmlInitWithFlags(unsigned flags)
{
    const char *path = getenv("NVML_STUB_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    (void)flags;
    if (file) {
        fputs("init\n", file);
        fclose(file);
    }
    return fault("nodriver", -1) ? NO_DRIVER : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device)
{
    *device = &devices[index];
    return state(*device);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **device)
{
    if (strcmp(uuid, "GPU-stub-0") && strcmp(uuid, "GPU-stub-1"))
        return NOT_FOUND;
    *device = &devices[uuid[9] - '0'];
    return state(*device);
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length)
{
    snprintf(uuid, length, "GPU-stub-%d", device->index);
    return SUCCESS;
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned length)
{
    snprintf(name, length, "Stub GPU %d", device->index);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory)
{
    int found = state(device);
    if (found == SUCCESS) {
        memory->total = 24ULL << 30;
        memory->used = (device->index + 1) * (1ULL << 30);
        memory->free = memory->total - memory->used;
        if (fault("odd", device->index))
            memory->used = -1ULL;
    }
    return found;
}

int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *rates)
{
    ANSWER(device, &rates->gpu, 40u + device->index);
}

int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius)
{
    (void)sensor;
    ANSWER(device, celsius, 60u + device->index);
}

int nvmlDeviceGetPowerUsage(struct device *device, unsigned *milliwatts) { ANSWER(device, milliwatts, 250000u); }

int nvmlDeviceGetTotalEnergyConsumption(struct device *device, unsigned long long *millijoules)
{
    ANSWER(device, millijoules, 123456789012ULL);
}

/* Only the name that drivers before 535 have: the binding's newer one is not found. */
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *reasons)
{
    ANSWER(device, reasons, 4ULL);
}

int nvmlDeviceGetTotalEccErrors(struct device *device, int type, int counter, unsigned long long *errors)
{
    (void)type, (void)counter;
    ANSWER(device, errors, 3ULL);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned *count, struct process *processes)
{
    int found = detail(device), pid = number("pid", device->index);
    unsigned room = *count;
    if (found != SUCCESS || pid < 0)
        return *count = 0, found;
    *count = 2;
    if (room < 2)
        return TOO_SMALL;
    processes[0] = (struct process){1, 3ULL << 30, 0, 0};
    processes[1] = (struct process){(unsigned)pid, 3ULL << 30, 0, 0};
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) { *set = xid_wanted; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; return SUCCESS; }

int nvmlDeviceRegisterEvents(struct device *device, unsigned long long types, void *set)
{
    (void)types, (void)set;
    if (fault("poor", device->index))
        return NOT_SUPPORTED;
    xid_wanted[device->index] = 1;
    return SUCCESS;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout_ms)
{
    (void)set, (void)timeout_ms;
    for (int i = 0; i < 2; i++)
        if (xid_wanted[i] && !xid_told[i] && fault("xid", i)) {
            xid_told[i] = 1;
            memset(event, 0, sizeof *event);
            event->device = &devices[i];
            event->type = 8;
            event->data = 79;
            return SUCCESS;
        }
    return TIMED_OUT;
}
