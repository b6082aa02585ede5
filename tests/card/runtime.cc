// A stand-in for an accelerator card: a Paddle custom device of type iluvatar_gpu over host memory.
//
// Paddle loads it as it loads the vendor's plugin (CUSTOM_DEVICE_ROOT names the folder of the
// library) and calls the same functions. The device has no kernels of its own apart from those of
// kernels.cc: Paddle copies tensors to the host, runs its CPU kernels and copies the results back.
// collectives.cc connects several of these cards. README.md lists the environment variables.
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "card.h"
#include "paddle/phi/backends/device_ext.h"

void fill_collectives(C_DeviceInterface* interface);
void add_kernels();

namespace card {

long number(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

static const long kCards = number("FAKE_CARDS", 1);
static const bool kProtect = number("FAKE_CARD_PROTECT", 0) != 0;
static const bool kLate = number("FAKE_CARD_LATE", 0) != 0;
static const size_t kMemory = number("FAKE_CARD_MEMORY", 32L << 30);
static const size_t kPage = sysconf(_SC_PAGESIZE);

// Physical numbers of the visible cards, as CUDA's runtime, on which the real plugin rests, has them.
static std::vector<int> visible() {
  std::vector<int> cards;
  const char* text = getenv("CUDA_VISIBLE_DEVICES");
  for (int i = 0; !text && i < kCards; ++i) cards.push_back(i);
  for (; text && *text; ++text) {
    char* end;
    long card = strtol(text, &end, 10);
    if (end == text || card < 0 || card >= kCards) break;  // CUDA ignores what follows
    cards.push_back(static_cast<int>(card));
    if (*(text = end) != ',') break;
  }
  return cards;
}
static const std::vector<int> kVisible = visible();

int physical(int device) {
  return device < static_cast<int>(kVisible.size()) ? kVisible[device] : -1;
}

// Whether Paddle is moving a tensor between card and host because it has no kernel for the card. A real
// card would do none of this, so such copies and synchronisations are told apart in the trace.
static bool for_fallback() {
  static std::mutex lock;
  static std::unordered_map<void*, bool> known;  // looking up a symbol takes milliseconds
  void* frames[24];
  int count = backtrace(frames, 24);
  std::lock_guard<std::mutex> guard(lock);
  bool found = false;
  for (int i = 0; i < count && !found; ++i) {
    auto place = known.find(frames[i]);
    if (place == known.end()) {
      Dl_info symbol;
      bool moves = dladdr(frames[i], &symbol) && symbol.dli_sname &&
                   strstr(symbol.dli_sname, "TransData");
      place = known.emplace(frames[i], moves).first;
    }
    found = place->second;
  }
  return found;
}

void trace(int device, const char* what, size_t bytes) {
  static const char* path = getenv("FAKE_CARD_TRACE");
  if (!path || !*path) return;
  static const int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  char line[96];
  int length = snprintf(line, sizeof line, "%d %d %s%s %zu\n", getpid(), physical(device),
                        for_fallback() ? "fallback-" : "", what, bytes);
  if (write(file, line, length) != length) abort();
}

const Fault& fault() {
  static const Fault found = [] {
    const char* text = getenv("FAKE_CARD_FAULT");
    std::string all = text ? text : "", rank = getenv("PADDLE_TRAINER_ID") ? : "0";
    std::string kind = all.substr(0, all.find(':'));
    Fault fault{kind, 0};
    for (size_t i = all.find(':'); i != std::string::npos; i = all.find(':', i + 1)) {
      std::string part = all.substr(i + 1, all.find(':', i + 1) - i - 1);
      std::string value = part.substr(part.find('=') + 1);
      if (part.rfind("rank=", 0) == 0) {
        if (value != rank) return Fault{"", 0};
      } else {
        fault.at = atol(value.c_str());
      }
    }
    // a restarted run is to find a healthy card
    const char* once = getenv("FAKE_CARD_FAULT_ONCE");
    if (!kind.empty() && once && *once) {
      int file = open(once, O_WRONLY | O_CREAT | O_EXCL, 0644);
      if (file < 0) return Fault{"", 0};
      close(file);
    }
    return fault;
  }();
  return found;
}

// ---- memory ---------------------------------------------------------------------------------

struct Block {
  size_t size;
  int device;
  int open;  // how many `Open` there are
};
static std::recursive_mutex mutex;
static std::map<char*, Block> blocks;
static std::map<char*, size_t> pinned;
static std::map<int, size_t> used;
thread_local int current = 0;

template <class Map>
static typename Map::iterator holder(Map& map, const void* address) {
  auto found = map.upper_bound(static_cast<char*>(const_cast<void*>(address)));
  if (found == map.begin()) return map.end();
  return --found;
}

Open::Open(const void* address) {
  if (!kProtect) return;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto block = holder(blocks, address);
  if (block == blocks.end() || address >= block->first + block->second.size) return;
  begin_ = block->first;
  if (block->second.open++ == 0) mprotect(begin_, block->second.size, PROT_READ | PROT_WRITE);
}

Open::~Open() {
  if (!begin_) return;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto block = blocks.find(static_cast<char*>(begin_));
  if (block != blocks.end() && --block->second.open == 0) {
    mprotect(begin_, block->second.size, PROT_NONE);
  }
}

static void copy(void* to, const void* from, size_t size) {
  Open a(to), b(from);
  memcpy(to, from, size);
}

static C_Status allocate(const C_Device device, void** address, size_t size) {
  static std::atomic<long> count{0};
  size = (size + kPage - 1) / kPage * kPage;
  std::lock_guard<std::recursive_mutex> lock(mutex);
  const Fault& fault = card::fault();
  bool full = used[device->id] + size > kMemory;
  full |= fault.kind == "memory" && used[device->id] + size > static_cast<size_t>(fault.at);
  full |= fault.kind == "allocation" && ++count >= fault.at;
  if (full) {
    trace(device->id, "full", size);
    return C_FAILED;
  }
  void* found = mmap(nullptr, size, kProtect ? PROT_NONE : PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return C_FAILED;
  blocks[static_cast<char*>(found)] = {size, device->id, 0};
  used[device->id] += size;
  trace(device->id, "allocate", size);
  *address = found;
  return C_SUCCESS;
}

// ---- streams: work that waits for a synchronisation under FAKE_CARD_LATE=1 --------------------

static std::deque<std::function<void()>> waiting;

void finish() {
  std::lock_guard<std::recursive_mutex> lock(mutex);
  while (!waiting.empty()) {
    waiting.front()();
    waiting.pop_front();
  }
}

static void slow() {
  if (fault().kind == "slow") usleep(fault().at);
}

static C_Status synchronize(int device, const char* what) {
  slow();
  finish();
  trace(device, what, 0);
  return C_SUCCESS;
}

static C_Status deallocate(const C_Device device, void* address, size_t) {
  finish();
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto block = blocks.find(static_cast<char*>(address));
  if (block == blocks.end()) return C_ERROR;
  trace(block->second.device, "free", block->second.size);
  used[block->second.device] -= block->second.size;
  munmap(address, block->second.size);
  blocks.erase(block);
  return C_SUCCESS;
}

static C_Status now(int device, const char* what, void* to, const void* from, size_t size) {
  slow();
  finish();
  copy(to, from, size);
  trace(device, what, size);
  return C_SUCCESS;
}

// An asynchronous copy. As with CUDA, the bytes of ordinary host memory are taken at once and those
// of pinned host memory when the copy is performed.
static C_Status later(int device, const char* what, void* to, const void* from, size_t size) {
  if (!kLate) return now(device, what, to, from, size);
  trace(device, what, size);
  std::lock_guard<std::recursive_mutex> lock(mutex);
  auto range = holder(pinned, from);
  auto block = holder(blocks, from);
  bool stays = (range != pinned.end() && from < range->first + range->second) ||
               (block != blocks.end() && from < block->first + block->second.size);
  if (stays) {
    waiting.push_back([=] { copy(to, from, size); });
  } else {
    std::vector<char> taken(static_cast<const char*>(from), static_cast<const char*>(from) + size);
    waiting.push_back([to, taken = std::move(taken)] { copy(to, taken.data(), taken.size()); });
  }
  return C_SUCCESS;
}

// ---- the interface ----------------------------------------------------------------------------

static void fill(C_DeviceInterface* i) {
  i->initialize = [] { return C_SUCCESS; };
  i->finalize = [] { return C_SUCCESS; };
  i->init_device = [](const C_Device) { return C_SUCCESS; };
  i->deinit_device = [](const C_Device) { return C_SUCCESS; };
  i->set_device = [](const C_Device device) { current = device->id; return C_SUCCESS; };
  i->get_device = [](const C_Device device) { device->id = current; return C_SUCCESS; };
  i->get_device_count = [](size_t* count) { *count = kVisible.size(); return C_SUCCESS; };
  i->get_device_list = [](size_t* devices) {
    for (size_t k = 0; k < kVisible.size(); ++k) devices[k] = k;
    return C_SUCCESS;
  };

  i->create_stream = [](const C_Device, C_Stream* stream) {
    *stream = reinterpret_cast<C_Stream>(new int(current));
    return C_SUCCESS;
  };
  i->destroy_stream = [](const C_Device, C_Stream stream) {
    delete reinterpret_cast<int*>(stream);
    return C_SUCCESS;
  };
  i->query_stream = [](const C_Device, C_Stream) { return waiting.empty() ? C_SUCCESS : C_FAILED; };
  i->stream_add_callback = [](const C_Device device, C_Stream stream, C_Callback call, void* data) {
    finish();
    C_Status status = C_SUCCESS;
    call(device, stream, data, &status);
    return status;
  };
  i->create_event = [](const C_Device, C_Event* event) {
    *event = reinterpret_cast<C_Event>(new int(0));
    return C_SUCCESS;
  };
  i->destroy_event = [](const C_Device, C_Event event) {
    delete reinterpret_cast<int*>(event);
    return C_SUCCESS;
  };
  i->record_event = [](const C_Device, C_Stream, C_Event) { return C_SUCCESS; };
  i->query_event = [](const C_Device, C_Event) { return waiting.empty() ? C_SUCCESS : C_FAILED; };
  i->stream_wait_event = [](const C_Device, C_Stream, C_Event) { return C_SUCCESS; };
  i->synchronize_device = [](const C_Device d) { return synchronize(d->id, "sync-device"); };
  i->synchronize_stream = [](const C_Device d, C_Stream) {
    return synchronize(d->id, "sync-stream");
  };
  i->synchronize_event = [](const C_Device d, C_Event) { return synchronize(d->id, "sync-event"); };

  i->device_memory_allocate = allocate;
  i->device_memory_deallocate = deallocate;
  i->device_memory_set = [](const C_Device, void* to, unsigned char value, size_t size) {
    finish();
    Open open(to);
    memset(to, value, size);
    return C_SUCCESS;
  };
  i->host_memory_allocate = [](const C_Device, void** address, size_t size) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (!(*address = malloc(size))) return C_FAILED;
    pinned[static_cast<char*>(*address)] = size;
    return C_SUCCESS;
  };
  i->host_memory_deallocate = [](const C_Device, void* address, size_t) {
    finish();
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned.erase(static_cast<char*>(address));
    free(address);
    return C_SUCCESS;
  };
  i->memory_copy_h2d = [](const C_Device d, void* to, const void* from, size_t size) {
    return now(d->id, "h2d", to, from, size);
  };
  i->memory_copy_d2h = [](const C_Device d, void* to, const void* from, size_t size) {
    return now(d->id, "d2h", to, from, size);
  };
  i->memory_copy_d2d = [](const C_Device d, void* to, const void* from, size_t size) {
    return now(d->id, "d2d", to, from, size);
  };
  i->memory_copy_p2p = [](const C_Device d, const C_Device, void* to, const void* from,
                          size_t size) { return now(d->id, "p2p", to, from, size); };
  i->async_memory_copy_h2d = [](const C_Device d, C_Stream, void* to, const void* from,
                                size_t size) { return later(d->id, "h2d", to, from, size); };
  i->async_memory_copy_d2h = [](const C_Device d, C_Stream, void* to, const void* from,
                                size_t size) { return later(d->id, "d2h", to, from, size); };
  i->async_memory_copy_d2d = [](const C_Device d, C_Stream, void* to, const void* from,
                                size_t size) { return later(d->id, "d2d", to, from, size); };
  i->device_memory_stats = [](const C_Device d, size_t* total, size_t* free) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    *total = kMemory;
    *free = kMemory - used[d->id];
    return C_SUCCESS;
  };
  i->device_min_chunk_size = [](const C_Device, size_t* size) { *size = 256; return C_SUCCESS; };
  i->device_max_chunk_size = [](const C_Device, size_t* size) { *size = kMemory; return C_SUCCESS; };
  i->device_max_alloc_size = [](const C_Device, size_t* size) { *size = kMemory; return C_SUCCESS; };
  i->device_extra_padding_size = [](const C_Device, size_t* size) { *size = 0; return C_SUCCESS; };
  i->device_init_alloc_size = [](const C_Device, size_t* size) {
    *size = 1 << 20;
    return C_SUCCESS;
  };
  i->device_realloc_size = [](const C_Device, size_t* size) { *size = 1 << 20; return C_SUCCESS; };
#ifdef MAX_HOOKS  // Paddle 3.3 asks
  i->is_float16_supported = [](const C_Device, bool* yes) { *yes = true; return C_SUCCESS; };
  i->is_bfloat16_supported = [](const C_Device, bool* yes) { *yes = true; return C_SUCCESS; };
#endif
}

}  // namespace card

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static char type[] = "iluvatar_gpu";
  static char sub[] = "stand-in";
  params->device_type = type;
  params->sub_device_type = sub;
  memset(params->interface, 0, sizeof(C_DeviceInterface));
  params->interface->size = sizeof(C_DeviceInterface);
  card::fill(params->interface);
  fill_collectives(params->interface);
  add_kernels();
}
