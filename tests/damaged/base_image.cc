#include "tests/damaged/base_image.h"

#include <unistd.h>

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

class Maker {
 public:
  explicit Maker(const BaseRecipe& recipe)
      : recipe_(recipe), image_{tmpfs_path("base"), "qcow2"} {}
  ~Maker() { ::unlink(image_.path.c_str()); }

  absl::StatusOr<BaseImage> make();

 private:
  absl::Status create();
  absl::Status fill();
  absl::Status run(const std::vector<std::string>& command) {
    return run_tool_ok(command).status();
  }
  // A command of qemu-io for `count` clusters from `first` on.
  std::string at(absl::string_view verb, uint64_t first, uint64_t count) const {
    return absl::StrCat(verb, " ", first * recipe_.cluster_bytes, " ",
                        count * recipe_.cluster_bytes);
  }

  const BaseRecipe& recipe_;
  const ImageFile image_;
  BaseImage base_;
};

absl::Status Maker::create() {
  QemuCreate create;
  create.image = image_;
  create.size_bytes = recipe_.size_bytes;
  create.options =
      absl::StrCat("cluster_size=", recipe_.cluster_bytes,
                   recipe_.options.empty() ? "" : ",", recipe_.options);
  if (recipe_.data_file) {
    base_.companions.push_back({tmpfs_path("base-data"), {}});
    absl::StrAppend(&create.options,
                    ",data_file=", base_.companions.back().path);
  }
  if (recipe_.backing) {
    const ImageFile backing{tmpfs_path("base-backing"), "raw"};
    base_.companions.push_back({backing.path, {}});
    absl::Status status = qemu_create({.image = backing,
                                       .size_bytes = recipe_.size_bytes / 2,
                                       .options = "",
                                       .backing = std::nullopt});
    if (status.ok())
      status = qemu_io(backing,
                       {absl::StrCat("write -P 9 0 ", recipe_.size_bytes / 2)});
    if (!status.ok()) return status;
    create.backing = backing;
  }
  return qemu_create(create);
}

// Some of everything: data, compressed clusters that share one cluster, zero
// clusters with a place and without one, nothing; at the end of the disk, too.
absl::Status Maker::fill() {
  const uint64_t last = recipe_.size_bytes / recipe_.cluster_bytes - 1;
  absl::Status status =
      qemu_io(image_, {at("write -P 1", 0, 4), at("write -P 2", 8, 2),
                       at("write -z", 9, 1), at("write -z -u", 10, 2),
                       at("write -P 3", 12, 3), at("write -P 4", last - 1, 2)});
  if (status.ok() && !recipe_.data_file) {
    status =
        qemu_io(image_, {at("write -c -P 5", 4, 1), at("write -c -P 6", 5, 1),
                         at("write -c -P 7", 6, 1)});
  }
  if (status.ok() && recipe_.snapshots) {
    for (const char* name : {"first", "second"}) {
      if (status.ok())
        status = run({"qemu-img", "snapshot", "-c", name, image_.path});
      if (status.ok()) status = qemu_io(image_, {at("write -P 8", 1, 2)});
    }
  }
  if (!status.ok() || !recipe_.bitmaps) return status;
  for (const char* name : {"one", "another"}) {
    status = run({"qemu-img", "bitmap", "--add", image_.path, name});
    if (status.ok()) status = qemu_io(image_, {at("write -P 8", 2, 2)});
    if (!status.ok()) return status;
  }
  return status;
}

absl::StatusOr<BaseImage> Maker::make() {
  absl::Status status = create();
  if (status.ok()) status = fill();
  if (!status.ok()) return status;
  base_.recipe = recipe_;
  for (Companion& companion : base_.companions) {
    auto bytes = read_file(companion.path);
    if (!bytes.ok()) return bytes.status();
    companion.bytes = *std::move(bytes);
  }
  auto bytes = read_file(image_.path);
  if (!bytes.ok()) return bytes.status();
  base_.bytes = *std::move(bytes);
  return std::move(base_);
}

}  // namespace

const std::vector<BaseRecipe>& base_recipes() {
  static const auto* const recipes = new std::vector<BaseRecipe>{
      // Several L1 entries and, with clusters so small, refcount blocks.
      {.name = "v3-512",
       .cluster_bytes = 512,
       .size_bytes = (96 << 10) + 512,
       .options = "refcount_bits=64",
       .snapshots = true},
      {.name = "v2-4k",
       .cluster_bytes = 4096,
       .size_bytes = 5 << 20,
       .options = "compat=0.10",
       .snapshots = true},
      {.name = "v3-64k",
       .cluster_bytes = 65536,
       .size_bytes = 2 << 20,
       .options = "lazy_refcounts=on",
       .backing = true},
      {.name = "extended-16k",
       .cluster_bytes = 16384,
       .size_bytes = 18 << 20,
       .options = "extended_l2=on,compression_type=zstd"},
      {.name = "bitmaps-4k",
       .cluster_bytes = 4096,
       .size_bytes = 1 << 20,
       .options = "refcount_bits=1",
       .bitmaps = true},
      {.name = "data-file-4k",
       .cluster_bytes = 4096,
       .size_bytes = 3 << 20,
       .data_file = true},
      {.name = "data-file-raw-64k",
       .cluster_bytes = 65536,
       .size_bytes = 2 << 20,
       .options = "data_file_raw=on",
       .data_file = true},
      {.name = "v2-64k",
       .cluster_bytes = 65536,
       .size_bytes = 2 << 20,
       .options = "compat=0.10",
       .backing = true,
       .only_in_long_runs = true},
      {.name = "extended-64k-bitmaps",
       .cluster_bytes = 65536,
       .size_bytes = 4 << 20,
       .options = "extended_l2=on,refcount_bits=8",
       .bitmaps = true,
       .backing = true,
       .only_in_long_runs = true},
      {.name = "v3-2M",
       .cluster_bytes = 2 << 20,
       .size_bytes = 40 << 20,
       .options = "refcount_bits=2",
       .snapshots = true,
       .only_in_long_runs = true},
      {.name = "v3-1k-zstd",
       .cluster_bytes = 1024,
       .size_bytes = 192 << 10,
       .options = "refcount_bits=32,compression_type=zstd",
       .snapshots = true,
       .only_in_long_runs = true},
  };
  return *recipes;
}

absl::StatusOr<BaseImage> make_base(const BaseRecipe& recipe) {
  return Maker(recipe).make();
}

}  // namespace spindle::testing
