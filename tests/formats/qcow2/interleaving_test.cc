// Requests that meet at the worst moment.  A thread is stopped just before a
// chosen access to the image's file; others do what would hurt; it goes on.
//
// The first part has a test for each fault that shipped engines had.
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "engine/errors.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

constexpr ByteRange cluster(uint64_t index, uint64_t cluster_bytes = kCluster) {
  return {index * cluster_bytes, cluster_bytes};
}
constexpr ByteRange sector(uint64_t offset) { return {offset, 512}; }

MemoryImageOptions image_options(const std::string& reuse = "lazy",
                                 uint64_t cluster_bytes = kCluster) {
  MemoryImageOptions options;
  options.create = {{"cluster_size", std::to_string(cluster_bytes)}};
  options.open = {{"reuse", reuse}};
  return options;
}

std::future<absl::Status> in_background(std::function<absl::Status()> call) {
  return std::async(std::launch::async, std::move(call));
}

// Runs `body(thread index)` on `count` threads, to their end.
void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

// The accesses of a format, in order.
class Recorder {
 public:
  explicit Recorder(ObservingDriver* file) {
    file->set_hook([this](const Access& access) {
      absl::MutexLock lock(&mutex_);
      accesses_.push_back(access);
      return absl::OkStatus();
    });
  }
  std::vector<Access> accesses() const {
    absl::MutexLock lock(&mutex_);
    return accesses_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::vector<Access> accesses_ ABSL_GUARDED_BY(mutex_);
};

// ---- Faults that shipped engines had ----------------------------------------

// For both policies of using freed clusters again.
class LostData : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Reuse, LostData, ::testing::Values("lowest", "lazy"),
                         [](const auto& info) {
                           return std::string(info.param);
                         });

// A freed cluster was allocated and written, and then its hole was punched.
TEST_P(LostData, LatePunchDoesNotHitTheNextOwner) {
  MemoryImage image(image_options(GetParam()));
  ASSERT_TRUE(image.write(cluster(0), 1).ok());
  ASSERT_TRUE(image.flush().ok());
  const auto freed = image.host_of(0);
  ASSERT_TRUE(freed.has_value());
  ASSERT_TRUE(image.discard(cluster(0)).ok());

  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterFree});
  auto flush = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  auto write = in_background([&] { return image.write(cluster(1), 2); });
  const bool waits = std::string(GetParam()) == "lowest";
  if (!waits) {
    EXPECT_TRUE(write.get().ok());
    EXPECT_NE(image.host_of(kCluster), freed);
  }
  stop->resume();
  EXPECT_TRUE(flush.get().ok());
  if (waits) {
    EXPECT_TRUE(write.get().ok());
  }

  EXPECT_TRUE(image.reads_as(cluster(0), 0));
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  // Punched, so it was free for one of the two.
  EXPECT_TRUE(image.write(cluster(2), 3).ok());
  EXPECT_TRUE(image.host_of(kCluster) == freed ||
              image.host_of(2 * kCluster) == freed);
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_TRUE(image.reads_as(cluster(2), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A write had found its host cluster; before its transfer a discard freed the
// cluster and others took it, for data or for a table.
TEST_P(LostData, WriteDoesNotLandInAClusterThatWasFreedMeanwhile) {
  constexpr uint64_t kSmall = 512;
  constexpr uint64_t kTableCovers = 64 * kSmall;
  MemoryImage image(image_options(GetParam(), kSmall));
  ASSERT_TRUE(image.write(cluster(0, kSmall), 1).ok());
  ASSERT_TRUE(image.flush().ok());
  const auto host = image.host_of(0);
  ASSERT_TRUE(host.has_value());

  const auto stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto write =
      in_background([&] { return image.write(cluster(0, kSmall), 2); });
  stop->wait_until_reached();
  EXPECT_TRUE(image.discard(cluster(0, kSmall)).ok());
  EXPECT_TRUE(image.flush().ok());
  // Each takes a cluster for its table and one for its data.
  for (uint64_t i = 1; i <= 4; ++i) {
    EXPECT_TRUE(image.write(sector(i * kTableCovers), 10 + i).ok());
    EXPECT_NE(image.host_of(i * kTableCovers), host);
  }
  EXPECT_TRUE(image.flush().ok());
  EXPECT_EQ(image.memory().content({*host, kSmall}), std::string(kSmall, 1))
      << "punched or reused while a write to it was under way";
  stop->resume();
  EXPECT_TRUE(write.get().ok());

  EXPECT_TRUE(image.reads_as(cluster(0, kSmall), 0));
  for (uint64_t i = 1; i <= 4; ++i) {
    EXPECT_TRUE(image.reads_as(sector(i * kTableCovers), 10 + i));
  }
  // The pin is gone: what was pending is free after the next flush.
  EXPECT_TRUE(image.flush().ok());
  EXPECT_TRUE(image.write(sector(kSmall), 9).ok());
  EXPECT_EQ(image.host_of(kSmall), host);
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// The L1 entry was published before the refcount of the table that it names.
TEST(LostDataOrder, CountsAndDataAreDurableBeforeMappings) {
  MemoryImage image(image_options());
  const Recorder recorder(&image.file());
  ASSERT_TRUE(image.write(cluster(0), 1).ok());
  ASSERT_TRUE(image.flush().ok());

  // Between the last access that mappings rely on, and the first mapping, lies
  // a sync; and one behind the last mapping.
  int unsynced_counts = 0;
  int unsynced_mappings = 0;
  int mappings = 0;
  for (const Access& access : recorder.accesses()) {
    switch (access.purpose) {
      case Purpose::kRefblockUpdate:
      case Purpose::kClusterAlloc:
      case Purpose::kL2AllocWrite:
      case Purpose::kSetLength:
        ++unsynced_counts;
        break;
      case Purpose::kL1Update:
      case Purpose::kL2Update:
        EXPECT_EQ(unsynced_counts, 0) << purpose_name(access.purpose);
        ++mappings;
        ++unsynced_mappings;
        break;
      case Purpose::kFlushToDisk:
        unsynced_counts = unsynced_mappings = 0;
        break;
      default:
        break;
    }
  }
  EXPECT_EQ(mappings, 2);  // one of L1, one of L2
  EXPECT_EQ(unsynced_mappings, 0);
}

// An allocation that failed half-way left clusters both free and used.
TEST_P(LostData, FailedAllocationBesideOthersLeavesNothingHalfDone) {
  MemoryImage image(image_options(GetParam(), 512));
  ASSERT_TRUE(image.write(sector(0), 1).ok());
  for (const Purpose purpose : {Purpose::kClusterAlloc, Purpose::kL2Load}) {
    // One write is stopped in its transfer, another fails, a third goes
    // through.
    const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
    auto stopped = in_background([&] { return image.write(sector(512), 2); });
    stop->wait_until_reached();
    image.file().fail_at({.purpose = purpose}, ENOSPC);
    // A table that is not in memory, and a new cluster.
    const absl::Status failed = image.write(sector(64 * 512), 3);
    EXPECT_EQ(errno_of(failed), ENOSPC) << failed;
    EXPECT_TRUE(image.write(sector(1024), 4).ok());
    stop->resume();
    EXPECT_TRUE(stopped.get().ok());
    image.file().clear_failures();
    EXPECT_TRUE(image.reads_as(sector(512), 2));
    EXPECT_TRUE(image.reads_as(sector(64 * 512), 0));
    EXPECT_TRUE(image.reads_as(sector(1024), 4));
    EXPECT_TRUE(image.discard(sector(512)).ok());
    EXPECT_TRUE(image.discard(sector(1024)).ok());
    // The next round starts with no table in memory.
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
    ASSERT_TRUE(image.open().ok());
    ASSERT_TRUE(image.reads_as(sector(0), 1));
  }
}

// Each queue had a copy of the metadata of its own.
TEST(LostDataQueues, AllThreadsSeeOneImage) {
  constexpr int kThreads = 8;
  constexpr uint64_t kPerThread = 16;
  MemoryImage image(image_options());
  on_threads(kThreads, [&](int thread) {
    for (uint64_t i = 0; i < kPerThread; ++i) {
      const uint64_t index = i * kThreads + static_cast<uint64_t>(thread);
      EXPECT_TRUE(image.write(cluster(index), 1 + thread).ok());
    }
  });
  on_threads(kThreads, [&](int thread) {
    for (uint64_t i = 0; i < kThreads * kPerThread; ++i) {
      const uint64_t index =
          (i + static_cast<uint64_t>(thread) * 7) % (kThreads * kPerThread);
      EXPECT_TRUE(image.reads_as(cluster(index), 1 + index % kThreads));
    }
  });
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// The host's file system ran full.
TEST_P(LostData, FullFileSystemLosesNothingThatWasWritten) {
  constexpr int kThreads = 4;
  MemoryImageOptions options = image_options(GetParam());
  options.max_file_bytes = 64 * kCluster;
  MemoryImage image(options);
  std::array<std::vector<uint64_t>, kThreads> written;
  on_threads(kThreads, [&](int thread) {
    for (uint64_t i = 0; i < 32; ++i) {
      const uint64_t index = i * kThreads + static_cast<uint64_t>(thread);
      const absl::Status status = image.write(cluster(index), 1 + index % 200);
      if (status.ok()) {
        written[static_cast<size_t>(thread)].push_back(index);
      } else {
        EXPECT_EQ(errno_of(status), ENOSPC) << status;
      }
    }
  });
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_TRUE(image.open().ok());
  size_t count = 0;
  uint64_t some_written = 0;
  for (const auto& indices : written) {
    count += indices.size();
    if (!indices.empty()) some_written = indices.front();
    for (uint64_t index : indices) {
      EXPECT_TRUE(image.reads_as(cluster(index), 1 + index % 200));
    }
  }
  EXPECT_GE(count, 50u);
  // What is discarded makes room.
  EXPECT_TRUE(image.discard(cluster(some_written)).ok());
  EXPECT_TRUE(image.write(cluster(200), 7).ok());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A compressed image whose first cluster holds data that does not compress
// away.
std::string compressed_image_bytes(const std::string& first_cluster) {
  const ImageFile raw{temporary_path("raw"), "raw"};
  const ImageFile compressed{temporary_path("compressed"), "qcow2"};
  std::string content = first_cluster;
  content.resize(size_t{1} << 20);
  absl::Status status = write_file(
      raw.path,
      {reinterpret_cast<const uint8_t*>(content.data()), content.size()});
  if (status.ok())
    status = qemu_convert(raw, compressed, "cluster_size=4096", {"-c"});
  EXPECT_EQ(status, absl::OkStatus());
  const auto bytes = read_file(compressed.path);
  EXPECT_TRUE(bytes.ok());
  std::remove(raw.path.c_str());
  std::remove(compressed.path.c_str());
  return std::string(bytes->begin(), bytes->end());
}

// A reader of a compressed cluster met the discard, or the write, that freed
// it.
TEST_P(LostData, ReaderOfACompressedClusterKeepsIt) {
  std::string old_content(kCluster, '\0');
  uint32_t state = 1;
  for (size_t i = 0; i < old_content.size(); i += 2) {
    state = state * 1664525 + 1013904223;
    old_content[i] = static_cast<char>(state >> 24);
  }
  const std::string bytes = compressed_image_bytes(old_content);
  for (const bool discards : {true, false}) {
    MemoryImageOptions options = image_options(GetParam());
    options.bytes = bytes;
    MemoryImage image(options);

    const auto stop =
        image.file().stop_at({.purpose = Purpose::kReadCompressed});
    auto read = std::async(std::launch::async, [&] {
      return read_bytes(image.driver(), cluster(0));
    });
    stop->wait_until_reached();
    if (discards) {
      EXPECT_TRUE(image.discard(cluster(0)).ok());
    } else {
      // Whole, so that nothing of the old cluster is needed.
      EXPECT_TRUE(image.write(cluster(0), 5).ok());
    }
    EXPECT_TRUE(image.flush().ok());
    for (uint64_t i = 1; i <= 4; ++i) {
      EXPECT_TRUE(image.write(cluster(i), 10 + i).ok());
    }
    EXPECT_TRUE(image.flush().ok());
    stop->resume();
    const auto content = read.get();
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_TRUE(*content == old_content);

    EXPECT_TRUE(image.reads_as(cluster(0), discards ? 0 : 5));
    for (uint64_t i = 1; i <= 4; ++i) {
      EXPECT_TRUE(image.reads_as(cluster(i), 10 + i));
    }
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// ---- The order for a freed cluster ------------------------------------------

// True if an entry of `driver`'s tables names a cluster in `host`.
bool is_mapped(BlockDriver& driver, ByteRange host) {
  for (uint64_t guest = 0; guest < driver.length_bytes(); guest += kCluster) {
    const auto status =
        driver.block_status({guest, kCluster}, BlockStatusScope::kThisLayer);
    EXPECT_TRUE(status.ok()) << status.status();
    if (status.ok() && status->host_offset.has_value() &&
        host.overlaps({*status->host_offset, kCluster})) {
      return true;
    }
  }
  return false;
}

// The next of a repeatable sequence of numbers.
uint32_t next_random(uint32_t* state) {
  *state = *state * 1664525 + 1013904223;
  return *state >> 12;
}

TEST_P(LostData, HolesArePunchedOnlyWhenTheDropIsDurable) {
  MemoryImageOptions options = image_options(GetParam());
  options.size_bytes = 32 * kCluster;
  MemoryImage image(options);
  std::string durable = image.memory().content();
  int punched = 0;
  image.file().set_hook([&](const Access& access) {
    // One thread: what is there before a sync is durable after it.
    if (access.kind == AccessKind::kFlush) durable = image.memory().content();
    if (access.purpose == Purpose::kClusterFree) {
      ++punched;
      const auto copy = image.open_copy(durable);
      EXPECT_TRUE(copy.ok()) << copy.status();
      EXPECT_FALSE(copy.ok() && is_mapped(**copy, access.range));
    }
    return absl::OkStatus();
  });
  uint32_t state = 7;
  for (int i = 0; i < 300; ++i) {
    const ByteRange range = cluster(next_random(&state) % 32);
    switch (next_random(&state) % 5) {
      case 0:
        EXPECT_TRUE(image.discard(range).ok());
        break;
      case 1:
        EXPECT_TRUE(
            image.driver().write_zeroes(range, {.may_unmap = true}).ok());
        break;
      case 2:
        if (i % 3 == 0) {
          EXPECT_TRUE(image.flush().ok());
        }
        break;
      default:
        EXPECT_TRUE(image.write(range, 1 + i % 200).ok());
    }
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_GT(punched, 10);
}

TEST_P(LostData, HolesAreNeverPunchedIntoClustersInUse) {
  MemoryImageOptions options = image_options(GetParam());
  options.size_bytes = 32 * kCluster;
  MemoryImage image(options);
  std::atomic<int> punched{0};
  image.file().set_hook([&](const Access& access) {
    if (access.purpose == Purpose::kClusterFree) {
      ++punched;
      EXPECT_FALSE(is_mapped(image.driver(), access.range));
    }
    return absl::OkStatus();
  });
  on_threads(4, [&](int thread) {
    auto state = static_cast<uint32_t>(thread + 1);
    // Each has clusters of its own, and knows what they hold.
    std::array<uint8_t, 8> content{};
    for (int i = 0; i < 200; ++i) {
      const uint64_t mine = next_random(&state) % 8;
      const ByteRange range = cluster(mine * 4 + static_cast<uint64_t>(thread));
      EXPECT_TRUE(image.reads_as(range, content[mine]));
      const uint32_t dice = next_random(&state) % 8;
      if (dice < 3) {
        EXPECT_TRUE(image.discard(range).ok());
        content[mine] = 0;
      } else if (dice == 7) {
        EXPECT_TRUE(image.flush().ok());
      } else {
        content[mine] = static_cast<uint8_t>(1 + i % 200);
        EXPECT_TRUE(image.write(range, content[mine]).ok());
      }
    }
  });
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_GT(punched.load(), 10);
}

// Under both policies the file stays as small as what it holds.
struct Geometry {
  const char* name;
  uint64_t cluster_bytes;
  bool extended_l2;
  // Header, refcount table and block, L1 table; and L2 tables.
  uint64_t metadata_clusters;
};
class FillAndDiscard
    : public ::testing::TestWithParam<std::tuple<const char*, Geometry>> {};
INSTANTIATE_TEST_SUITE_P(
    Geometries, FillAndDiscard,
    ::testing::Combine(::testing::Values("lowest", "lazy"),
                       ::testing::Values(Geometry{"Of4k", 4096, false, 5},
                                         Geometry{"Of512", 512, false, 6},
                                         Geometry{"Extended", 16384, true, 5})),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) +
             std::get<1>(info.param).name;
    });

TEST_P(FillAndDiscard, WithoutFlushDoesNotGrowTheFile) {
  const auto& [reuse, geometry] = GetParam();
  constexpr uint64_t kThreads = 16;
  const uint64_t each = 8 * geometry.cluster_bytes;
  MemoryImageOptions options = image_options(reuse, geometry.cluster_bytes);
  if (geometry.extended_l2) options.create["extended_l2"] = "on";
  options.size_bytes = kThreads * each;
  MemoryImage image(options);
  for (int round = 0; round < 100; ++round) {
    on_threads(kThreads, [&](int thread) {
      const ByteRange mine{static_cast<uint64_t>(thread) * each, each};
      EXPECT_TRUE(image.write(mine, 1 + thread).ok());
    });
    on_threads(kThreads, [&](int thread) {
      const ByteRange mine{static_cast<uint64_t>(thread) * each, each};
      EXPECT_TRUE(image.reads_as(mine, 1 + thread));
      EXPECT_TRUE(image.discard(mine).ok());
    });
    ASSERT_LE(image.memory().length_bytes(),
              options.size_bytes +
                  geometry.metadata_clusters * geometry.cluster_bytes)
        << "in round " << round;
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- First writes -----------------------------------------------------------

MemoryImageOptions with_backing() {
  MemoryImageOptions options = image_options();
  options.backing = std::string(options.size_bytes, 'b');
  return options;
}

TEST(FirstWrites, OverlappingOnesWaitForEachOther) {
  MemoryImage image(with_backing());
  const Recorder recorder(&image.file());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(sector(0), 1); });
  stop->wait_until_reached();
  auto second = in_background([&] { return image.write(sector(1024), 2); });
  // Others do not wait.
  EXPECT_TRUE(image.write(sector(kCluster), 3).ok());
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(second.get().ok());

  int first_writes = 0;
  for (const Access& access : recorder.accesses()) {
    if (access.purpose == Purpose::kClusterAlloc) ++first_writes;
  }
  EXPECT_EQ(first_writes, 2) << "one for each of two clusters";
  EXPECT_TRUE(image.reads_as(sector(0), 1));
  EXPECT_TRUE(image.reads_as(sector(512), 'b'));
  EXPECT_TRUE(image.reads_as(sector(1024), 2));
  EXPECT_TRUE(image.reads_as({1536, kCluster - 1536}, 'b'));
  EXPECT_TRUE(image.reads_as(sector(kCluster), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(FirstWrites, OthersProceedWhileOneIsInItsTransfer) {
  MemoryImage image(image_options());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(cluster(0), 1); });
  stop->wait_until_reached();
  for (uint64_t i = 1; i < 20; ++i) {
    EXPECT_TRUE(image.write(cluster(i), 1 + i).ok());
    EXPECT_TRUE(image.reads_as(cluster(i), 1 + i));
  }
  EXPECT_TRUE(image.reads_as(cluster(0), 0));
  EXPECT_TRUE(image.flush().ok());
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(image.reads_as(cluster(0), 1));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(FirstWrites, OthersProceedWhileOneReadsItsPadding) {
  MemoryImage image(with_backing());
  const auto stop = image.backing().stop_at({.purpose = Purpose::kCowRead});
  auto first = in_background([&] { return image.write(sector(512), 1); });
  stop->wait_until_reached();
  EXPECT_TRUE(image.write(sector(kCluster + 512), 2).ok());
  EXPECT_TRUE(image.reads_as(sector(kCluster), 'b'));
  EXPECT_TRUE(image.reads_as(sector(kCluster + 512), 2));
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(image.reads_as(sector(0), 'b'));
  EXPECT_TRUE(image.reads_as(sector(512), 1));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(FirstWrites, LaterWritesJoinOneThatNeedsNoPadding) {
  MemoryImage image(image_options());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(sector(0), 1); });
  stop->wait_until_reached();
  // On this thread: it would hang if they waited.
  for (uint64_t i = 1; i < 8; ++i) {
    EXPECT_TRUE(image.write(sector(i * 512), 1 + i).ok());
    EXPECT_TRUE(image.reads_as(sector(i * 512), 1 + i));
  }
  EXPECT_TRUE(image.flush().ok());
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  for (uint64_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(image.reads_as(sector(i * 512), 1 + i));
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// Whether the owner and the one that joined it fail; the joiner ends last.
struct JoinedErrors {
  const char* name;
  bool owner_fails;
  bool joiner_fails;
};

class JoinedWrites : public ::testing::TestWithParam<JoinedErrors> {};
INSTANTIATE_TEST_SUITE_P(
    Errors, JoinedWrites,
    ::testing::Values(JoinedErrors{"Neither", false, false},
                      JoinedErrors{"Owner", true, false},
                      JoinedErrors{"Joiner", false, true},
                      JoinedErrors{"Both", true, true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_P(JoinedWrites, EachReportsItsOwnError) {
  MemoryImage image(image_options());
  ASSERT_TRUE(image.write(cluster(1), 9).ok());
  // The next free cluster follows.
  const auto neighbour = image.host_of(kCluster);
  ASSERT_TRUE(neighbour.has_value());
  const uint64_t host = *neighbour + kCluster;
  const AccessMatch owners{.purpose = Purpose::kClusterAlloc,
                           .range = sector(host)};
  const AccessMatch joiners{.purpose = Purpose::kClusterAlloc,
                            .range = sector(host + 512)};
  const auto owner_stop = image.file().stop_at(owners);
  const auto joiner_stop = image.file().stop_at(joiners);
  if (GetParam().owner_fails) image.file().fail_at(owners, EIO);
  if (GetParam().joiner_fails) image.file().fail_at(joiners, ENOSPC);

  auto owner = in_background([&] { return image.write(sector(0), 1); });
  owner_stop->wait_until_reached();
  auto joiner = in_background([&] { return image.write(sector(512), 2); });
  joiner_stop->wait_until_reached();
  owner_stop->resume();
  EXPECT_EQ(errno_of(owner.get()).value_or(0),
            GetParam().owner_fails ? EIO : 0);
  joiner_stop->resume();
  EXPECT_EQ(errno_of(joiner.get()).value_or(0),
            GetParam().joiner_fails ? ENOSPC : 0);
  image.file().clear_failures();

  EXPECT_TRUE(image.reads_as(sector(0), GetParam().owner_fails ? 0 : 1));
  EXPECT_TRUE(image.reads_as(sector(512), GetParam().joiner_fails ? 0 : 2));
  EXPECT_TRUE(image.reads_as({1024, kCluster - 1024}, 0));
  const bool both_fail = GetParam().owner_fails && GetParam().joiner_fails;
  EXPECT_EQ(image.host_of(0).has_value(), !both_fail);
  // The cluster is free again only if nobody published it.
  EXPECT_TRUE(image.write(cluster(2), 3).ok());
  EXPECT_EQ(image.host_of(2 * kCluster) == host, both_fail);
  EXPECT_TRUE(image.reads_as(cluster(2), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// The joiner has published, so a discard can free what the owner still writes.
TEST_P(LostData, OwnerOfAJoinedWriteKeepsItsCluster) {
  MemoryImage image(image_options(GetParam()));
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto owner = in_background([&] { return image.write(sector(0), 1); });
  stop->wait_until_reached();
  EXPECT_TRUE(image.write(sector(512), 2).ok());
  const auto host = image.host_of(0);
  EXPECT_TRUE(image.discard(cluster(0)).ok());
  EXPECT_TRUE(image.flush().ok());
  EXPECT_TRUE(image.write(cluster(1), 3).ok());
  EXPECT_NE(image.host_of(kCluster), host);
  stop->resume();
  EXPECT_TRUE(owner.get().ok());
  EXPECT_TRUE(image.reads_as(cluster(0), 0));
  EXPECT_TRUE(image.reads_as(cluster(1), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// What changes a mapping waits for a first write there, and for no other.
TEST(FirstWrites, DiscardsAndZeroesOfTheSameClusterComeBeforeOrAfter) {
  for (const bool discards : {true, false}) {
    MemoryImage image(with_backing());
    const auto change = [&](ByteRange range) {
      return discards ? image.discard(range)
                      : image.driver().write_zeroes(range, {});
    };
    const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
    auto write = in_background([&] { return image.write(sector(0), 1); });
    stop->wait_until_reached();
    auto changed = in_background([&] { return change(cluster(0)); });
    EXPECT_TRUE(change(cluster(1)).ok());
    EXPECT_TRUE(image.reads_as(cluster(1), 0));
    stop->resume();
    EXPECT_TRUE(write.get().ok());
    EXPECT_TRUE(changed.get().ok());
    // The change was admitted second, whenever it came.
    EXPECT_TRUE(image.reads_as(cluster(0), 0));
    EXPECT_TRUE(image.reads_as(cluster(2), 'b'));
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// Zeroes keep the host cluster, and the next first write would use it; but a
// write from before the zeroes is still on its way there.  What was zero once
// all of these had completed must not change by itself.
TEST(FirstWrites, ZeroedClusterIsNotReusedUnderAWriteInFlight) {
  MemoryImage image(image_options());
  ASSERT_TRUE(image.write(cluster(0), 1).ok());
  const auto old_stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto old_write = in_background([&] { return image.write(sector(0), 2); });
  old_stop->wait_until_reached();
  EXPECT_TRUE(image.driver().write_zeroes(cluster(0), {}).ok());
  EXPECT_TRUE(image.write(sector(512), 3).ok());
  EXPECT_TRUE(image.reads_as(sector(0), 0));
  EXPECT_TRUE(image.flush().ok());
  old_stop->resume();
  EXPECT_TRUE(old_write.get().ok());
  EXPECT_TRUE(image.reads_as(sector(0), 0));
  EXPECT_TRUE(image.reads_as(sector(512), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- Nobody waits for what is not his ---------------------------------------

TEST(NoWaiting, RequestsProceedWhileAFlushSyncs) {
  MemoryImage image(image_options());
  ASSERT_TRUE(image.write(cluster(0), 1).ok());
  for (const int nth : {1, 2}) {
    ASSERT_TRUE(image.write(cluster(static_cast<uint64_t>(nth)), 2).ok());
    const auto stop =
        image.file().stop_at({.purpose = Purpose::kFlushToDisk}, nth);
    auto flush = in_background([&] { return image.flush(); });
    stop->wait_until_reached();
    EXPECT_TRUE(image.reads_as(cluster(0), 1));
    EXPECT_TRUE(image.write(cluster(0), 1).ok());
    const auto fresh = uint64_t{10} + static_cast<uint64_t>(nth);
    EXPECT_TRUE(image.write(cluster(fresh), 3).ok());
    EXPECT_TRUE(image.reads_as(cluster(fresh), 3));
    EXPECT_TRUE(image.discard(cluster(fresh)).ok());
    EXPECT_TRUE(image.reads_as(cluster(fresh), 0));
    stop->resume();
    EXPECT_TRUE(flush.get().ok());
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(NoWaiting, RequestsProceedWhileAnotherTableIsRead) {
  constexpr uint64_t kSmall = 512;
  constexpr uint64_t kTableCovers = 64 * kSmall;
  MemoryImage image(image_options("lazy", kSmall));
  ASSERT_TRUE(image.write(sector(0), 1).ok());
  ASSERT_TRUE(image.write(sector(kTableCovers), 2).ok());
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open().ok());

  const auto stop = image.file().stop_at({.purpose = Purpose::kL2Load});
  auto read = in_background(
      [&] { return read_bytes(image.driver(), sector(0)).status(); });
  stop->wait_until_reached();
  EXPECT_TRUE(image.reads_as(sector(kTableCovers), 2));
  EXPECT_TRUE(image.write(sector(kTableCovers), 3).ok());
  EXPECT_TRUE(image.write(sector(kTableCovers + kSmall), 4).ok());
  EXPECT_TRUE(image.flush().ok());
  EXPECT_TRUE(image.reads_as(sector(kTableCovers), 3));
  stop->resume();
  EXPECT_TRUE(read.get().ok());
  EXPECT_TRUE(image.reads_as(sector(0), 1));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(NoWaiting, AFlushDuringARoundIsServedByTheNext) {
  MemoryImage image(image_options());
  ASSERT_TRUE(image.write(cluster(0), 1).ok());
  const auto stop = image.file().stop_at({.purpose = Purpose::kFlushToDisk});
  auto first = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  // Not in the round that is under way.
  ASSERT_TRUE(image.write(cluster(1), 2).ok());
  auto second = in_background([&] { return image.flush(); });
  auto third = in_background([&] { return image.flush(); });
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_TRUE(third.get().ok());
  const auto copy = image.open_copy(image.memory().content());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE(reads_as(**copy, cluster(0), 1));
  EXPECT_TRUE(reads_as(**copy, cluster(1), 2));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::testing
