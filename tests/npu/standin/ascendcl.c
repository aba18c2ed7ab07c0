// A stand-in for AscendCL (libascendcl.so): device memory is host memory, streams and events are complete as soon as
// they are asked. Written from the public AscendCL API reference; each symbol says what the reference promises of it.
// It computes nothing: the operators are replaced in Python (operators.py).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int aclError;
typedef void *handle_t;
enum { SUCCESS = 0, INVALID_PARAM = 107000, CONTEXT_NULL = 107002, OUT_OF_MEMORY = 207001, UNSUPPORTED = 207000 };

static _Thread_local int32_t current_device = -1;
static size_t used_bytes;

static long setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}
static size_t total_bytes(void) { return (size_t)setting("STANDIN_HBM_MIB", 65536) << 20; }

// Initialises AscendCL with a configuration file; once in a process.
aclError aclInit(const char *config_path) { return SUCCESS; }
// Ends AscendCL.
aclError aclFinalize(void) { return SUCCESS; }
// The message of the last failure in this thread, or null.
const char *aclGetRecentErrMsg(void) { return NULL; }
// Writes a line of the application into the device log.
void aclAppLog(int level, const char *function, const char *file, uint32_t line, const char *format, ...) {}
// An ability of a device, such as its number of cores.
aclError aclGetDeviceCapability(uint32_t device, int info, int64_t *value) { *value = 24; return SUCCESS; }
// Whether CANN has an ability on this chip: 0 infinities and NaN, 1 bfloat16, 2 compilation as operators come.
aclError aclGetCannAttribute(int attribute, int32_t *value) { *value = attribute < 2; return SUCCESS; }
// The version of an installed package.
struct cann_version { char version[128], major[64], minor[64], release[64], patch[64], reserved[128]; };
aclError aclsysGetCANNVersion(int package, struct cann_version *version) {
    memset(version, 0, sizeof *version);
    strcpy(version->version, "9.1.0");
    return SUCCESS;
}

// Devices visible to the process: those that ASCEND_RT_VISIBLE_DEVICES lists, none where it is out of order.
aclError aclrtGetDeviceCount(uint32_t *count) {
    *count = setting("STANDIN_DEVICES", 2);
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (!visible) return SUCCESS;
    *count = 0;
    for (long last = -1; *visible; visible += strcspn(visible, ","), visible += *visible == ',') {
        long device = atol(visible);
        if (device <= last) return *count = 0, SUCCESS;
        last = device;
        ++*count;
    }
    return SUCCESS;
}
// Makes a device the calling thread's.
aclError aclrtSetDevice(int32_t device) {
    uint32_t count;
    aclrtGetDeviceCount(&count);
    if (device < 0 || (uint32_t)device >= count) return INVALID_PARAM;
    current_device = device;
    return SUCCESS;
}
// The calling thread's device; an error where it has none.
aclError aclrtGetDevice(int32_t *device) {
    if (current_device < 0) return CONTEXT_NULL;
    *device = current_device;
    return SUCCESS;
}
// Frees what a device holds for the process.
aclError aclrtResetDevice(int32_t device) { return SUCCESS; }
// Waits for all work on the thread's device.
aclError aclrtSynchronizeDevice(void) { return SUCCESS; }
// The same with a limit in milliseconds.
aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) { return SUCCESS; }
// The thread's context, which stands for its device.
aclError aclrtGetCurrentContext(handle_t *context) {
    if (current_device < 0) return CONTEXT_NULL;
    *context = (handle_t)(intptr_t)(current_device + 1);
    return SUCCESS;
}
// Takes a context over in this thread.
aclError aclrtSetCurrentContext(handle_t context) {
    current_device = (int32_t)(intptr_t)context - 1;
    return SUCCESS;
}
// The name of the chip.
const char *aclrtGetSocName(void) {
    const char *name = getenv("STANDIN_SOC");
    return name ? name : "Ascend910B2";
}
// Share of time the device was busy: not known here.
aclError aclrtGetDeviceUtilizationRate(int32_t device, void *info) { return UNSUPPORTED; }
// Whether a device can read another's memory.
aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) { *can = 1; return SUCCESS; }
// Opens a peer's memory.
aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) { return SUCCESS; }
// The process id outside a container.
aclError aclrtDeviceGetBareTgid(int32_t *pid) { *pid = 0; return SUCCESS; }
// How overflow behaves; the seconds an operator may take.
aclError aclrtSetDeviceSatMode(int mode) { return SUCCESS; }
aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) { return SUCCESS; }
aclError aclrtSetOpWaitTimeout(uint32_t seconds) { return SUCCESS; }

// Free and total device memory in bytes.
aclError aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total) {
    *total = total_bytes();
    *free_bytes = *total - used_bytes;
    return SUCCESS;
}
// Device memory; an error where the device is full. The size in front is for aclrtFree's count.
aclError aclrtMalloc(void **pointer, size_t size, int policy) {
    if (__atomic_add_fetch(&used_bytes, size, __ATOMIC_RELAXED) > total_bytes()) {
        __atomic_sub_fetch(&used_bytes, size, __ATOMIC_RELAXED);
        return OUT_OF_MEMORY;
    }
    char *block = aligned_alloc(512, (size + 1023) / 512 * 512);
    if (!block) return OUT_OF_MEMORY;
    *(size_t *)block = size;
    *pointer = block + 512;
    return SUCCESS;
}
// The same, aligned to 32 bytes.
aclError aclrtMallocAlign32(void **pointer, size_t size, int policy) { return aclrtMalloc(pointer, size, policy); }
// Gives device memory back.
aclError aclrtFree(void *pointer) {
    char *block = (char *)pointer - 512;
    __atomic_sub_fetch(&used_bytes, *(size_t *)block, __ATOMIC_RELAXED);
    free(block);
    return SUCCESS;
}
// Page-locked host memory.
aclError aclrtMallocHost(void **pointer, size_t size) { *pointer = malloc(size); return SUCCESS; }
// Gives it back.
aclError aclrtFreeHost(void *pointer) { free(pointer); return SUCCESS; }
// Copies between host and device; `room` is the size of the target.
aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
    if (size > room) return INVALID_PARAM;
    memmove(to, from, size);
    return SUCCESS;
}
// The same in a stream.
aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, handle_t stream) {
    return aclrtMemcpy(to, room, from, size, kind);
}
// Fills device memory with a byte.
aclError aclrtMemset(void *pointer, size_t room, int32_t value, size_t size) {
    memset(pointer, value, size);
    return SUCCESS;
}
// The same in a stream.
aclError aclrtMemsetAsync(void *pointer, size_t room, int32_t value, size_t size, handle_t stream) {
    return aclrtMemset(pointer, room, value, size);
}

// A stream of a priority.
aclError aclrtCreateStreamWithConfig(handle_t *stream, uint32_t priority, uint32_t flags) {
    *stream = malloc(1);
    return SUCCESS;
}
// A stream.
aclError aclrtCreateStream(handle_t *stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }
// Its end.
aclError aclrtDestroyStream(handle_t stream) { free(stream); return SUCCESS; }
// The same without waiting.
aclError aclrtDestroyStreamForce(handle_t stream) { return aclrtDestroyStream(stream); }
// Waits for a stream.
aclError aclrtSynchronizeStream(handle_t stream) { return SUCCESS; }
// The same with a limit in milliseconds.
aclError aclrtSynchronizeStreamWithTimeout(handle_t stream, int32_t timeout) { return SUCCESS; }
// Whether a stream is idle: 0 says complete.
aclError aclrtStreamQuery(handle_t stream, int *status) { *status = 0; return SUCCESS; }
// What a failing task does to its stream.
aclError aclrtSetStreamFailureMode(handle_t stream, uint64_t mode) { return SUCCESS; }
// Detection of overflow.
aclError aclrtSetStreamOverflowSwitch(handle_t stream, uint32_t on) { return SUCCESS; }

// An event; its time is that of its recording.
aclError aclrtCreateEventExWithFlag(handle_t *event, uint32_t flags) {
    *event = calloc(1, sizeof(struct timespec));
    return SUCCESS;
}
// The same, with a lifetime bound to its streams.
aclError aclrtCreateEventWithFlag(handle_t *event, uint32_t flags) { return aclrtCreateEventExWithFlag(event, flags); }
// Its end.
aclError aclrtDestroyEvent(handle_t event) { free(event); return SUCCESS; }
// Records an event in a stream.
aclError aclrtRecordEvent(handle_t event, handle_t stream) {
    clock_gettime(CLOCK_MONOTONIC, event);
    return SUCCESS;
}
// Makes it unrecorded.
aclError aclrtResetEvent(handle_t event, handle_t stream) { return SUCCESS; }
// A stream waits for an event.
aclError aclrtStreamWaitEvent(handle_t stream, handle_t event) { return SUCCESS; }
// The host waits for an event.
aclError aclrtSynchronizeEvent(handle_t event) { return SUCCESS; }
// Whether all that was recorded is done: 1 says complete.
aclError aclrtQueryEventStatus(handle_t event, int *status) { *status = 1; return SUCCESS; }
// Whether all waits are done: 0 says complete.
aclError aclrtQueryEventWaitStatus(handle_t event, int *status) { *status = 0; return SUCCESS; }
// Milliseconds between two events.
aclError aclrtEventElapsedTime(float *milliseconds, handle_t start, handle_t end) {
    struct timespec *a = start, *b = end;
    *milliseconds = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f;
    return SUCCESS;
}

// Callbacks of a stream are never subscribed here; the thread that would serve them has nothing to do.
aclError aclrtProcessReport(int32_t timeout) { return SUCCESS; }
aclError aclrtSubscribeReport(uint64_t thread, handle_t stream) { return SUCCESS; }
aclError aclrtUnSubscribeReport(uint64_t thread, handle_t stream) { return SUCCESS; }
