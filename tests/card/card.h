// What the two halves of the stand-in card share: settings, trace, and access to device memory.
#pragma once
#include <cstddef>
#include <mutex>
#include <string>

namespace card {

// The value of an environment variable as a number, or `otherwise` if it is not set.
long number(const char* name, long otherwise);

// Appends one line, "pid card what bytes", to the file that FAKE_CARD_TRACE names.
void trace(int device, const char* what, size_t bytes);

// The fault that FAKE_CARD_FAULT asks of this rank, e.g. "hang:rank=1:collective=5".
struct Fault {
  std::string kind;  // "", hang, error, memory, slow
  long at;           // number of the collective or allocation; bytes; microseconds
};
const Fault& fault();

// Performs the asynchronous copies that still wait, in their order.
void finish();

// Adds numbers up over the ranks of the process's first communicator; alone, changes nothing.
void sum_over_ranks(double* numbers, size_t count);

// Physical number of the card that Paddle calls `device`: CUDA_VISIBLE_DEVICES renumbers cards.
int physical(int device);

// While one exists, the host may touch the allocation that holds `address`. Needed with
// FAKE_CARD_PROTECT=1, when device memory is mapped without any access.
class Open {
 public:
  explicit Open(const void* address);
  ~Open();
  Open(const Open&) = delete;

 private:
  void* begin_ = nullptr;
};

}  // namespace card
