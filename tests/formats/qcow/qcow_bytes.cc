#include "tests/formats/qcow/qcow_bytes.h"

#include <algorithm>
#include <vector>

#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/cluster/compressor.h"
#include "formats/qcow/header.h"
#include "formats/qcow/layout.h"
#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

qcow::Header header_of(const QcowShape& shape) {
  qcow::Header header;
  header.size_bytes = shape.size_bytes;
  header.cluster_bits = shape.cluster_bits;
  header.l2_bits = shape.l2_bits;
  header.crypt_method = shape.crypt_method;
  header.backing_filename = shape.backing_filename;
  if (!shape.backing_filename.empty()) {
    header.backing_file_offset = qcow::kHeaderBytes;
    header.backing_file_size =
        static_cast<uint32_t>(shape.backing_filename.size());
  }
  header.l1_table_offset =
      align_up(qcow::kHeaderBytes + shape.backing_filename.size(), 8);
  return header;
}

}  // namespace

std::string new_qcow(const QcowShape& shape) {
  const qcow::Header header = header_of(shape);
  const std::vector<uint8_t> head = qcow::serialize_header(header);
  std::string image(head.begin(), head.end());
  image.resize(header.l1_table_offset +
               align_up(header.l1_table_bytes(), kSectorSizeBytes));
  return image;
}

uint64_t first_table_offset(const QcowShape& shape) {
  return align_up(new_qcow(shape).size(), uint64_t{1} << shape.cluster_bits);
}

std::string qcow_with_entries(const QcowShape& shape,
                              std::initializer_list<uint64_t> entries) {
  std::string image = new_qcow(shape);
  const uint64_t table = first_table_offset(shape);
  put64(&image, header_of(shape).l1_table_offset, table);
  image.resize(align_up(table + (qcow::kL2EntryBytes << shape.l2_bits),
                        uint64_t{1} << shape.cluster_bits));
  uint64_t at = table;
  for (const uint64_t entry : entries) {
    put64(&image, at, entry);
    at += qcow::kL2EntryBytes;
  }
  return image;
}

void put64(std::string* image, uint64_t offset, uint64_t value) {
  if (image->size() < offset + 8) image->resize(offset + 8);
  store_big64(image->data() + offset, value);
}

void put_bytes(std::string* image, uint64_t offset, absl::string_view bytes) {
  if (image->size() < offset + bytes.size())
    image->resize(offset + bytes.size());
  std::copy(bytes.begin(), bytes.end(),
            image->begin() + static_cast<ptrdiff_t>(offset));
}

uint64_t get64(absl::string_view image, uint64_t offset) {
  EXPECT_LE(offset + 8, image.size());
  return load_big64(image.data() + offset);
}

std::string deflated(absl::string_view cluster) {
  std::vector<uint8_t> out(cluster.size() + 1024);
  const auto bytes = compress_cluster(
      CompressionType::kZlib,
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(cluster.data()),
                          cluster.size()),
      absl::MakeSpan(out));
  EXPECT_TRUE(bytes.ok());
  return std::string(out.begin(),
                     out.begin() + static_cast<ptrdiff_t>(bytes.value_or(0)));
}

}  // namespace spindle::testing
