// A stand-in for HCCL (libhccl.so) between processes of one host, over POSIX shared memory. Written from the public HCCL
// API reference. A communicator is a segment with a place for each rank; a collective goes through it piece by
// piece: every rank lays its piece down, all meet, every rank reads what it needs, all meet again.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef enum { OK = 0, BAD_PARAMETER = 1, NOT_SUPPORTED = 5, SYSTEM = 8, TIMEOUT = 9 } HcclResult;
typedef enum { SUM = 0, PROD = 1, MAX = 2, MIN = 3 } HcclReduceOp;
typedef enum { INT8, INT16, INT32, FP16, FP32, INT64, UINT64, UINT8, UINT16, UINT32, FP64, BF16, NUM_TYPES } HcclDataType;
typedef void *stream_t;
typedef struct { char name[4108]; } HcclRootInfo;

enum { MAX_RANKS = 8, PIECE = 1 << 18 };
struct mailbox { volatile uint32_t full; char data[PIECE]; };
struct segment {
    volatile uint32_t arrived, round;
    char place[MAX_RANKS][PIECE];
    struct mailbox mail[MAX_RANKS][MAX_RANKS];
};
typedef struct { struct segment *shared; uint32_t rank, size; } *HcclComm;

static const size_t WIDTH[NUM_TYPES] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};

static int wait_until_changed(volatile uint32_t *value, uint32_t from) {
    const char *limit = getenv("HCCL_EXEC_TIMEOUT");
    time_t end = time(NULL) + (limit ? atol(limit) : 120);
    for (long spins = 0; __atomic_load_n(value, __ATOMIC_ACQUIRE) == from; spins++) {
        if (spins > 200) usleep(50);
        if (time(NULL) > end) return TIMEOUT;
    }
    return OK;
}

static int meet(HcclComm comm) {
    struct segment *s = comm->shared;
    uint32_t round = __atomic_load_n(&s->round, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&s->arrived, 1, __ATOMIC_ACQ_REL) < comm->size) return wait_until_changed(&s->round, round);
    s->arrived = 0;
    __atomic_store_n(&s->round, round + 1, __ATOMIC_RELEASE);
    return OK;
}

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
static uint16_t to_bf16(float value) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    return (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16;
}

#define COMBINE(a, b, op) ((op) == SUM ? (a) + (b) : (op) == PROD ? (a) * (b) : (op) == MAX ? ((a) > (b) ? (a) : (b)) : ((a) < (b) ? (a) : (b)))
#define FOLD(type, wide, load, store) \
    for (uint64_t i = 0; i < count; i++) { \
        wide total = load(((type *)comm->shared->place[0])[i]); \
        for (uint32_t r = 1; r < comm->size; r++) total = COMBINE(total, load(((type *)comm->shared->place[r])[i]), op); \
        ((type *)to)[i] = store(total); \
    } \
    return OK;

// Sums in float32, float64 or int64, in the order of the ranks: the same on all of them.
static int fold(HcclComm comm, void *to, uint64_t count, HcclDataType type, HcclReduceOp op) {
    switch (type) {
        case FP32: FOLD(float, float, , )
        case FP64: FOLD(double, double, , )
        case FP16: FOLD(_Float16, float, , )
        case BF16: FOLD(uint16_t, float, from_bf16, to_bf16)
        case INT8: FOLD(int8_t, int64_t, , )
        case UINT8: FOLD(uint8_t, int64_t, , )
        case INT16: FOLD(int16_t, int64_t, , )
        case INT32: FOLD(int32_t, int64_t, , )
        case INT64: FOLD(int64_t, int64_t, , )
        default: return NOT_SUPPORTED;
    }
}

static HcclResult join(uint32_t size, const HcclRootInfo *root, uint32_t rank, HcclComm *result) {
    if (size > MAX_RANKS || rank >= size) return BAD_PARAMETER;
    int file = shm_open(root->name, O_CREAT | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct segment))) return SYSTEM;
    HcclComm comm = malloc(sizeof *comm);
    comm->shared = mmap(NULL, sizeof(struct segment), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    comm->rank = rank;
    comm->size = size;
    close(file);
    *result = comm;
    int status = meet(comm);
    if (rank == 0) shm_unlink(root->name);
    return status;
}

// A name for a new communicator, which the root hands to the other ranks.
HcclResult HcclGetRootInfo(HcclRootInfo *root) {
    static uint32_t count;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(root->name, sizeof root->name, "/hccl_standin_%d_%u_%ld", getpid(), count++, now.tv_nsec);
    return OK;
}
// Joins a communicator of `size` ranks; returns when all have.
HcclResult HcclCommInitRootInfo(uint32_t size, const HcclRootInfo *root, uint32_t rank, HcclComm *comm) {
    return join(size, root, rank, comm);
}
// The same with a configuration.
HcclResult HcclCommInitRootInfoConfig(uint32_t size, const HcclRootInfo *root, uint32_t rank, const void *config, HcclComm *comm) {
    return join(size, root, rank, comm);
}
// Number of abilities a configuration may name: none.
uint32_t HcclGetCommConfigCapability(void) { return 0; }
// Leaves it.
HcclResult HcclCommDestroy(HcclComm comm) {
    munmap(comm->shared, sizeof(struct segment));
    free(comm);
    return OK;
}
// A failure that came after the call: none.
HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult *error) { *error = OK; return OK; }
// A communicator's name.
HcclResult HcclGetCommName(HcclComm comm, char *name) { strcpy(name, "stand-in"); return OK; }
// What an error means.
const char *HcclGetErrorString(HcclResult error) { return error == TIMEOUT ? "a rank did not come" : "HCCL error"; }
// Switches such as determinism, which holds here anyway.
HcclResult HcclSetConfig(int name, int32_t value) { return OK; }
HcclResult HcclGroupStart(void) { return OK; }
HcclResult HcclGroupEnd(void) { return OK; }

#define TRY(call) do { int status_ = (call); if (status_) return status_; } while (0)
#define MINIMUM(a, b) ((a) < (b) ? (a) : (b))

// Every rank gets all ranks' values, combined.
HcclResult HcclAllReduce(void *from, void *to, uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm, stream_t stream) {
    uint64_t step = PIECE / WIDTH[type];
    for (uint64_t at = 0; at < count; at += step) {
        uint64_t n = MINIMUM(step, count - at);
        memcpy(comm->shared->place[comm->rank], (char *)from + at * WIDTH[type], n * WIDTH[type]);
        TRY(meet(comm));
        TRY(fold(comm, (char *)to + at * WIDTH[type], n, type, op));
        TRY(meet(comm));
    }
    return OK;
}
// Rank `root` gets them.
HcclResult HcclReduce(void *from, void *to, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root, HcclComm comm, stream_t stream) {
    if (comm->rank == root) return HcclAllReduce(from, to, count, type, op, comm, stream);
    void *scratch = malloc(count * WIDTH[type]);
    HcclResult status = HcclAllReduce(from, scratch, count, type, op, comm, stream);
    free(scratch);
    return status;
}
// Rank i gets the i-th part of the combined values; `count` is a part's.
HcclResult HcclReduceScatter(void *from, void *to, uint64_t count, HcclDataType type, HcclReduceOp op, HcclComm comm, stream_t stream) {
    uint64_t step = PIECE / WIDTH[type];
    for (uint32_t part = 0; part < comm->size; part++)
        for (uint64_t at = 0; at < count; at += step) {
            uint64_t n = MINIMUM(step, count - at);
            memcpy(comm->shared->place[comm->rank], (char *)from + (part * count + at) * WIDTH[type], n * WIDTH[type]);
            TRY(meet(comm));
            if (part == comm->rank) TRY(fold(comm, (char *)to + at * WIDTH[type], n, type, op));
            TRY(meet(comm));
        }
    return OK;
}
// Every rank gets all ranks' values, concatenated; `count` is one rank's.
HcclResult HcclAllGather(void *from, void *to, uint64_t count, HcclDataType type, HcclComm comm, stream_t stream) {
    uint64_t bytes = count * WIDTH[type];
    for (uint64_t at = 0; at < bytes; at += PIECE) {
        uint64_t n = MINIMUM(PIECE, bytes - at);
        memcpy(comm->shared->place[comm->rank], (char *)from + at, n);
        TRY(meet(comm));
        for (uint32_t r = 0; r < comm->size; r++) memcpy((char *)to + r * bytes + at, comm->shared->place[r], n);
        TRY(meet(comm));
    }
    return OK;
}
// Every rank gets the root's values.
HcclResult HcclBroadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm, stream_t stream) {
    uint64_t bytes = count * WIDTH[type];
    for (uint64_t at = 0; at < bytes; at += PIECE) {
        uint64_t n = MINIMUM(PIECE, bytes - at);
        if (comm->rank == root) memcpy(comm->shared->place[root], (char *)buffer + at, n);
        TRY(meet(comm));
        if (comm->rank != root) memcpy((char *)buffer + at, comm->shared->place[root], n);
        TRY(meet(comm));
    }
    return OK;
}
// Rank i gets the root's i-th part; `count` is a part's.
HcclResult HcclScatter(void *from, void *to, uint64_t count, HcclDataType type, uint32_t root, HcclComm comm, stream_t stream) {
    uint64_t bytes = count * WIDTH[type];
    for (uint32_t part = 0; part < comm->size; part++)
        for (uint64_t at = 0; at < bytes; at += PIECE) {
            uint64_t n = MINIMUM(PIECE, bytes - at);
            if (comm->rank == root) memcpy(comm->shared->place[root], (char *)from + part * bytes + at, n);
            TRY(meet(comm));
            if (comm->rank == part) memcpy((char *)to + at, comm->shared->place[root], n);
            TRY(meet(comm));
        }
    return OK;
}
// Sends values to a rank, which must receive them.
HcclResult HcclSend(void *from, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, stream_t stream) {
    struct mailbox *box = &comm->shared->mail[comm->rank][peer];
    for (uint64_t bytes = count * WIDTH[type], at = 0; at < bytes; at += PIECE) {
        TRY(wait_until_changed(&box->full, 1));
        memcpy(box->data, (char *)from + at, MINIMUM(PIECE, bytes - at));
        __atomic_store_n(&box->full, 1, __ATOMIC_RELEASE);
    }
    return OK;
}
// Receives them.
HcclResult HcclRecv(void *to, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, stream_t stream) {
    struct mailbox *box = &comm->shared->mail[peer][comm->rank];
    for (uint64_t bytes = count * WIDTH[type], at = 0; at < bytes; at += PIECE) {
        TRY(wait_until_changed(&box->full, 0));
        memcpy((char *)to + at, box->data, MINIMUM(PIECE, bytes - at));
        __atomic_store_n(&box->full, 0, __ATOMIC_RELEASE);
    }
    return OK;
}
// Rank i's j-th part goes to rank j as its i-th. Counts and displacements are in values, one for each rank.
HcclResult HcclAlltoAllV(const void *from, const void *send_counts, const void *send_at, HcclDataType type, const void *to, const void *recv_counts, const void *recv_at, HcclDataType recv_type, HcclComm comm, stream_t stream) {
    const uint64_t *n_from = send_counts, *at_from = send_at, *n_to = recv_counts, *at_to = recv_at;
    size_t width = WIDTH[type];
    memmove((char *)to + at_to[comm->rank] * width, (char *)from + at_from[comm->rank] * width, n_from[comm->rank] * width);
    for (uint32_t a = 0; a < comm->size; a++)
        for (uint32_t b = a + 1; b < comm->size; b++)  // the pairs one after the other, the lower rank sends first
            for (uint32_t turn = 0; turn < 2; turn++) {
                uint32_t sender = turn ? b : a, receiver = turn ? a : b;
                if (comm->rank == sender)
                    TRY(HcclSend((char *)from + at_from[receiver] * width, n_from[receiver], type, receiver, comm, stream));
                if (comm->rank == receiver)
                    TRY(HcclRecv((char *)to + at_to[sender] * width, n_to[sender], type, sender, comm, stream));
            }
    return OK;
}
// The same with equal parts.
HcclResult HcclAlltoAll(const void *from, uint64_t count, HcclDataType type, const void *to, uint64_t recv_count, HcclDataType recv_type, HcclComm comm, stream_t stream) {
    uint64_t counts[MAX_RANKS], at[MAX_RANKS];
    for (uint32_t r = 0; r < comm->size; r++) counts[r] = count, at[r] = r * count;
    return HcclAlltoAllV(from, counts, at, type, to, counts, at, type, comm, stream);
}
