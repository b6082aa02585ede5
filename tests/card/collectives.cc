// Collectives of the stand-in card: ranks of one machine exchange through shared memory.
//
// Every rank writes a piece of its data into its slot, all wait for each other, every rank combines
// the slots in the order of ranks (so that all get the same bits), all wait again. A rank that dies
// leaves the others waiting for ever, as with NCCL: noticing that is the launcher's task.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "card.h"
#include "paddle/phi/backends/device_ext.h"

namespace card {
extern thread_local int current;
}

namespace {

constexpr size_t kSlot = 1 << 20;  // bytes of a piece
constexpr size_t kMail = 1 << 16;  // bytes of a piece between two ranks

struct Head {
  std::atomic<int> ready;
  pthread_barrier_t barrier;
};

struct Mail {
  std::atomic<size_t> bytes;  // 0: empty
  char data[kMail];
};

struct Comm {
  size_t rank, ranks;
  Head* head;
  char* slots;
  Mail* mail;
  char* slot(size_t r) { return slots + r * kSlot; }
  Mail& between(size_t from, size_t to) { return mail[from * ranks + to]; }
  void wait() { pthread_barrier_wait(&head->barrier); }
};

size_t width(C_DataType type) {
  switch (type) {
    case BOOL: case UINT8: case INT8: return 1;
    case UINT16: case INT16: case FLOAT16: case BFLOAT16: return 2;
    case UINT32: case INT32: case FLOAT32: return 4;
    default: return 8;
  }
}

float widen(uint16_t bits, bool brain) {
  if (brain) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  _Float16 half;
  memcpy(&half, &bits, 2);
  return half;
}

uint16_t narrow(float value, bool brain) {
  uint16_t bits;
  if (brain) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    if (value != value) return 0x7fc0;
    return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);  // nearest, ties to even
  }
  _Float16 half = static_cast<_Float16>(value);
  memcpy(&bits, &half, 2);
  return bits;
}

template <class T>
T combine(T a, T b, C_CCLReduceOp op) {
  switch (op) {
    case MAX: return std::max(a, b);
    case MIN: return std::min(a, b);
    case PRODUCT: return a * b;
    default: return a + b;
  }
}

// to[i] = first[i] (op) second[i] (op) ... over all ranks, for numbers of type T
template <class T>
void reduce(Comm* comm, void* to, size_t offset, size_t count, C_CCLReduceOp op) {
  T* out = static_cast<T*>(to);
  for (size_t i = 0; i < count; ++i) {
    T value = reinterpret_cast<T*>(comm->slot(0) + offset)[i];
    for (size_t r = 1; r < comm->ranks; ++r) {
      value = combine(value, reinterpret_cast<T*>(comm->slot(r) + offset)[i], op);
    }
    out[i] = op == AVG ? static_cast<T>(value / static_cast<T>(comm->ranks)) : value;
  }
}

void reduce_half(Comm* comm, void* to, size_t offset, size_t count, C_CCLReduceOp op, bool brain) {
  for (size_t i = 0; i < count; ++i) {
    auto at = [&](size_t r) {
      return widen(reinterpret_cast<uint16_t*>(comm->slot(r) + offset)[i], brain);
    };
    float value = at(0);
    for (size_t r = 1; r < comm->ranks; ++r) value = combine(value, at(r), op);
    if (op == AVG) value /= static_cast<float>(comm->ranks);
    static_cast<uint16_t*>(to)[i] = narrow(value, brain);
  }
}

C_Status reduce_any(Comm* comm, void* to, size_t offset, size_t count, C_DataType type,
                    C_CCLReduceOp op) {
  switch (type) {
    case FLOAT32: reduce<float>(comm, to, offset, count, op); break;
    case FLOAT64: reduce<double>(comm, to, offset, count, op); break;
    case INT32: reduce<int32_t>(comm, to, offset, count, op); break;
    case INT64: reduce<int64_t>(comm, to, offset, count, op); break;
    case INT16: reduce<int16_t>(comm, to, offset, count, op); break;
    case INT8: reduce<int8_t>(comm, to, offset, count, op); break;
    case UINT8: case BOOL: reduce<uint8_t>(comm, to, offset, count, op); break;
    case FLOAT16: case BFLOAT16: reduce_half(comm, to, offset, count, op, type == BFLOAT16); break;
    default: return C_ERROR;
  }
  return C_SUCCESS;
}

// Counts a collective, and makes the fault that is asked for at this one.
C_Status begin(const char* what, size_t bytes) {
  static std::atomic<long> count{0};
  card::finish();
  card::trace(card::current, what, bytes);
  const card::Fault& fault = card::fault();
  long number = ++count;
  if (fault.kind == "hang" && number == fault.at) for (;;) sleep(1000);
  if (fault.kind == "error" && number == fault.at) return C_INTERNAL_ERROR;
  if (fault.kind == "death" && number == fault.at) _exit(9);
  return C_SUCCESS;
}

// Calls `combine(piece, offset, bytes)` for each piece after every rank has put its own in its slot.
template <class Put, class Take>
C_Status in_pieces(Comm* comm, size_t bytes, Put put, Take take) {
  C_Status status = C_SUCCESS;
  for (size_t offset = 0; offset < bytes || (offset == 0 && bytes == 0); offset += kSlot) {
    size_t size = std::min(kSlot, bytes - offset);
    put(offset, size);
    comm->wait();
    C_Status taken = take(offset, size);
    if (taken != C_SUCCESS) status = taken;
    comm->wait();
  }
  return status;
}

Comm* world = nullptr;  // the first one, which has all ranks

Comm* of(C_CCLComm comm) { return reinterpret_cast<Comm*>(comm); }

// Puts a piece of this rank's data where the other ranks read it.
void offer(Comm* comm, const void* data, size_t at, size_t bytes) {
  memcpy(comm->slot(comm->rank), static_cast<const char*>(data) + at, bytes);
}

constexpr size_t kEveryRank = SIZE_MAX;

// Sum, maximum and so on of what all ranks send; received by `root` or by every rank.
C_Status reduce_to(const char* what, void* send, void* recv, size_t count, C_DataType type,
                   C_CCLReduceOp op, size_t root, C_CCLComm handle) {
  Comm* comm = of(handle);
  size_t bytes = count * width(type);
  if (C_Status failed = begin(what, bytes)) return failed;
  card::Open a(send), b(recv);
  return in_pieces(
      comm, bytes, [&](size_t at, size_t n) { offer(comm, send, at, n); },
      [&](size_t at, size_t n) {
        if (root != kEveryRank && root != comm->rank) return C_SUCCESS;
        return reduce_any(comm, static_cast<char*>(recv) + at, 0, n / width(type), type, op);
      });
}

C_Status all_reduce(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op,
                    C_CCLComm comm, C_Stream) {
  return reduce_to("all_reduce", send, recv, count, type, op, kEveryRank, comm);
}

C_Status broadcast(void* buffer, size_t count, C_DataType type, size_t root, C_CCLComm handle,
                   C_Stream) {
  Comm* comm = of(handle);
  size_t bytes = count * width(type);
  if (C_Status failed = begin("broadcast", bytes)) return failed;
  card::Open open(buffer);
  return in_pieces(
      comm, bytes,
      [&](size_t at, size_t n) {
        if (comm->rank == root) memcpy(comm->slot(root), static_cast<char*>(buffer) + at, n);
      },
      [&](size_t at, size_t n) {
        if (comm->rank != root) memcpy(static_cast<char*>(buffer) + at, comm->slot(root), n);
        return C_SUCCESS;
      });
}

C_Status all_gather(void* send, void* recv, size_t count, C_DataType type, C_CCLComm handle,
                    C_Stream) {
  Comm* comm = of(handle);
  size_t bytes = count * width(type);
  if (C_Status failed = begin("all_gather", bytes)) return failed;
  card::Open a(send), b(recv);
  return in_pieces(
      comm, bytes, [&](size_t at, size_t n) { offer(comm, send, at, n); },
      [&](size_t at, size_t n) {
        for (size_t r = 0; r < comm->ranks; ++r) {
          memcpy(static_cast<char*>(recv) + r * bytes + at, comm->slot(r), n);
        }
        return C_SUCCESS;
      });
}

C_Status reduce_scatter(void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op,
                        C_CCLComm handle, C_Stream) {
  Comm* comm = of(handle);
  size_t bytes = count * width(type);  // of one rank's share
  if (C_Status failed = begin("reduce_scatter", bytes)) return failed;
  card::Open a(send), b(recv);
  for (size_t share = 0; share < comm->ranks; ++share) {
    C_Status status = in_pieces(
        comm, bytes, [&](size_t at, size_t n) { offer(comm, send, share * bytes + at, n); },
        [&](size_t at, size_t n) {
          if (comm->rank != share) return C_SUCCESS;
          return reduce_any(comm, static_cast<char*>(recv) + at, 0, n / width(type), type, op);
        });
    if (status != C_SUCCESS) return status;
  }
  return C_SUCCESS;
}

// ---- between two ranks: what a group holds proceeds together, so that no order of calls blocks --

struct Transfer {
  Comm* comm;
  bool sends;
  size_t other, bytes, done;
  char* data;
};
thread_local int depth = 0;
thread_local std::vector<Transfer> group;

void run_group() {
  for (size_t left = group.size(); left;) {
    left = 0;
    for (Transfer& t : group) {
      if (t.done == t.bytes) continue;
      ++left;
      Mail& mail = t.sends ? t.comm->between(t.comm->rank, t.other)
                           : t.comm->between(t.other, t.comm->rank);
      size_t waiting = mail.bytes.load(std::memory_order_acquire);
      if (t.sends == (waiting != 0)) continue;
      card::Open open(t.data);
      size_t size = t.sends ? std::min(kMail, t.bytes - t.done) : waiting;
      memcpy(t.sends ? mail.data : t.data + t.done, t.sends ? t.data + t.done : mail.data, size);
      t.done += size;
      mail.bytes.store(t.sends ? size : 0, std::memory_order_release);
    }
    if (left) usleep(20);
  }
  group.clear();
}

C_Status transfer(bool sends, void* data, size_t count, C_DataType type, size_t other,
                  C_CCLComm handle) {
  size_t bytes = count * width(type);
  if (C_Status failed = begin(sends ? "send" : "recv", bytes)) return failed;
  group.push_back({of(handle), sends, other, bytes, 0, static_cast<char*>(data)});
  if (!depth) run_group();
  return C_SUCCESS;
}

C_Status init_rank(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* handle) {
  const char* name = static_cast<const char*>(id->data);
  size_t size = sizeof(Head) + ranks * kSlot + ranks * ranks * sizeof(Mail);
  int file;
  if (rank == 0) {
    file = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, size)) return C_INTERNAL_ERROR;
  } else {
    struct stat facts {};
    while ((file = shm_open(name, O_RDWR, 0600)) < 0) usleep(1000);
    while (!fstat(file, &facts) && facts.st_size < static_cast<off_t>(size)) usleep(1000);
  }
  char* memory =
      static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  close(file);
  if (memory == MAP_FAILED) return C_INTERNAL_ERROR;
  Head* head = reinterpret_cast<Head*>(memory);
  if (rank == 0) {
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&head->barrier, &shared, ranks);
    head->ready = 1;
  }
  while (!head->ready) usleep(1000);
  char* slots = memory + sizeof(Head);
  Comm* comm = new Comm{rank, ranks, head, slots, reinterpret_cast<Mail*>(slots + ranks * kSlot)};
  if (!world) world = comm;
  comm->wait();
  if (rank == 0) shm_unlink(name);  // whatever happens later, nothing is left behind
  card::trace(card::current, "join", ranks);
  *handle = reinterpret_cast<C_CCLComm>(comm);
  return C_SUCCESS;
}

}  // namespace

void card::sum_over_ranks(double* numbers, size_t count) {
  if (!world) return;
  all_reduce(numbers, numbers, count, FLOAT64, SUM, reinterpret_cast<C_CCLComm>(world), nullptr);
}

void fill_collectives(C_DeviceInterface* i) {
  i->xccl_get_unique_id_size = [](size_t* size) { *size = 64; return C_SUCCESS; };
  i->xccl_get_unique_id = [](C_CCLRootId* id) {
    unsigned long random = 0;
    FILE* source = fopen("/dev/urandom", "rb");
    if (!source || fread(&random, sizeof random, 1, source) != 1) return C_INTERNAL_ERROR;
    fclose(source);
    snprintf(static_cast<char*>(id->data), 64, "/stand-in-card-%lx", random);
    return C_SUCCESS;
  };
  i->xccl_comm_init_rank = init_rank;
  i->xccl_destroy_comm = [](C_CCLComm) { return C_SUCCESS; };
  i->xccl_all_reduce = all_reduce;
  i->xccl_broadcast = broadcast;
  i->xccl_reduce = [](void* send, void* recv, size_t count, C_DataType type, C_CCLReduceOp op,
                      size_t root, C_CCLComm comm, C_Stream) {
    return reduce_to("reduce", send, recv, count, type, op, root, comm);
  };
  i->xccl_all_gather = all_gather;
  i->xccl_reduce_scatter = reduce_scatter;
  i->xccl_group_start = [] { ++depth; return C_SUCCESS; };
  i->xccl_group_end = [] {
    if (--depth == 0) run_group();
    return C_SUCCESS;
  };
  i->xccl_send = [](void* data, size_t count, C_DataType type, size_t to, C_CCLComm comm,
                    C_Stream) { return transfer(true, data, count, type, to, comm); };
  i->xccl_recv = [](void* data, size_t count, C_DataType type, size_t from, C_CCLComm comm,
                    C_Stream) { return transfer(false, data, count, type, from, comm); };
}
