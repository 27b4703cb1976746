// Padding: bytes that surround the data of a first write, in what is allocated
// for them.
//
// Thread safety: a value.
#ifndef SPINDLE_FORMATS_CLUSTER_PADDING_H_
#define SPINDLE_FORMATS_CLUSTER_PADDING_H_

#include <cstdint>
#include <memory>

#include "engine/io_vector.h"

namespace spindle {

struct Padding {
  std::unique_ptr<uint8_t[]> head;
  uint64_t head_bytes = 0;
  std::unique_ptr<uint8_t[]> tail;
  uint64_t tail_bytes = 0;

  // Head, data and tail as one; must not outlive this, or the data's memory.
  IoVector around(const IoVector& data) const {
    if (head_bytes == 0 && tail_bytes == 0) return data;
    IoVector all(head.get(), head_bytes);
    all.append(data);
    all.append(IoVector(tail.get(), tail_bytes));
    return all;
  }
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_PADDING_H_
