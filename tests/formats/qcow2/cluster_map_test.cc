#include "formats/qcow2/cluster_map.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "tests/formats/qcow2/open_image.h"

namespace spindle::qcow2 {
namespace {

using testing::get_big64;
using testing::OpenImage;
using testing::qemu_image_bytes;
using testing::set_big64;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;
constexpr uint64_t kL2 = 4 * kCluster;  // in an image whose start is written

TEST(ClusterMap, ARunEndsWhereTheKindOrThePlaceChanges) {
  std::string bytes =
      qemu_image_bytes(64 * kMib, "", {"write 0 256k", "write -z 256k 128k"});
  // The third data cluster moves away: it no longer follows the second.
  const uint64_t third = get_big64(bytes, kL2 + 16);
  const uint64_t fourth = get_big64(bytes, kL2 + 24);
  set_big64(&bytes, kL2 + 16, fourth);
  set_big64(&bytes, kL2 + 24, third);
  OpenImage open(bytes);
  const struct {
    uint64_t guest;
    uint64_t max_bytes;
    ClusterKind kind;
    uint64_t length;
  } cases[] = {
      {0, 64 * kMib, ClusterKind::kNormal, 2 * kCluster},
      {0, 512, ClusterKind::kNormal, 512},
      {512, 64 * kMib, ClusterKind::kNormal, 2 * kCluster - 512},
      {2 * kCluster, 64 * kMib, ClusterKind::kNormal, kCluster},
      {3 * kCluster, 64 * kMib, ClusterKind::kNormal, kCluster},
      {4 * kCluster, 64 * kMib, ClusterKind::kZeroPlain, 2 * kCluster},
      // To the end of the slice: 512 entries.
      {6 * kCluster, 64 * kMib, ClusterKind::kUnallocated,
       (512 - 6) * kCluster},
      {512 * kCluster, 1024, ClusterKind::kUnallocated, 1024},
  };
  for (const auto& c : cases) {
    for (bool blocking : {true, false}) {
      MappedRun run;
      if (blocking) {
        ASSERT_TRUE(
            open.image->map().lookup({c.guest}, c.max_bytes, &run).ok());
      } else {
        ASSERT_TRUE(open.image->map().try_lookup({c.guest}, c.max_bytes, &run));
      }
      EXPECT_EQ(run.kind, c.kind) << c.guest;
      EXPECT_EQ(run.bytes, c.length) << c.guest;
      if (c.kind != ClusterKind::kNormal) continue;
      EXPECT_TRUE(run.writable_in_place);
      EXPECT_TRUE(open.image->in_flight().is_pinned(
          run.host.bytes / kCluster + (run.bytes - 1) / kCluster));
    }
  }
  for (uint64_t cluster = 0; cluster < 20; ++cluster)
    EXPECT_FALSE(open.image->in_flight().is_pinned(cluster));
}

// Subclusters of 2 KiB; runs go on into the next cluster where it follows in
// kind and place.
TEST(ClusterMap, LookupDescribesRunsOfSubclusters) {
  OpenImage open(
      qemu_image_bytes(64 * kMib, "extended_l2=on",
                       {"write 0 128k", "write 132k 4k", "write -z 140k 8k",
                        "write -z 192k 64k", "write -z 2k 2k"}));
  constexpr uint64_t kSub = 2048;
  const struct {
    uint64_t guest;
    uint64_t max_bytes;
    ClusterKind kind;
    uint64_t length;
  } cases[] = {
      {0, kMib, ClusterKind::kNormal, kSub},
      {512, 1024, ClusterKind::kNormal, 1024},
      {kSub, kMib, ClusterKind::kZeroAllocated, kSub},
      {2 * kSub, kMib, ClusterKind::kNormal, 2 * kCluster - 2 * kSub},
      {2 * kCluster, kMib, ClusterKind::kUnallocated, 2 * kSub},
      {2 * kCluster + 2 * kSub, kMib, ClusterKind::kNormal, 2 * kSub},
      {2 * kCluster + 6 * kSub, kMib, ClusterKind::kZeroAllocated, 4 * kSub},
      // What has a place is not in line with what has none.
      {2 * kCluster + 10 * kSub, kMib, ClusterKind::kUnallocated, 22 * kSub},
      {3 * kCluster + 512, kMib, ClusterKind::kZeroPlain, kCluster - 512},
      // To the end of the slice: 256 entries.
      {4 * kCluster, 64 * kMib, ClusterKind::kUnallocated,
       (256 - 4) * kCluster},
  };
  for (const auto& c : cases) {
    MappedRun run;
    ASSERT_TRUE(open.image->map().lookup({c.guest}, c.max_bytes, &run).ok());
    EXPECT_EQ(run.kind, c.kind) << c.guest;
    EXPECT_EQ(run.bytes, c.length) << c.guest;
    EXPECT_EQ(run.writable_in_place, c.kind == ClusterKind::kNormal);
    EXPECT_EQ(run.entry.is_own(), c.guest < 3 * kCluster) << c.guest;
  }
}

TEST(ClusterMap, ABitmapThatContradictsItselfIsDamage) {
  const std::string good = qemu_image_bytes(64 * kMib, "extended_l2=on",
                                            {"write 0 64k", "write -z 64k 2k"});
  const struct {
    uint64_t guest;
    uint64_t bitmap;
  } cases[] = {
      // Data and zeroes at once; data without a place.
      {0, 0x00000001ffffffff},
      {kCluster, 0x0000000100000002},
  };
  for (const auto& c : cases) {
    std::string bytes = good;
    set_big64(&bytes, kL2 + c.guest / kCluster * 16 + 8, c.bitmap);
    OpenImage open(bytes);
    MappedRun run;
    // Wherever in the cluster.
    const absl::Status status =
        open.image->map().lookup({c.guest + 60 * 1024}, 512, &run);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "subcluster bitmap"))
        << status;
    EXPECT_FALSE(open.image->corruption().writes_allowed().ok());
  }
}

TEST(ClusterMap, TryLookupReadsNothing) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write 0 64k"}));
  MappedRun run;
  EXPECT_FALSE(open.image->map().try_lookup({0}, 512, &run));
  EXPECT_EQ(open.file->total_count(), 0u);
}

TEST(ClusterMap, AMissingTableIsMadeOnceAndReadsAsNothing) {
  OpenImage open(qemu_image_bytes(2048 * kMib, ""));
  const GuestOffset guest{1024 * kMib};
  EXPECT_FALSE(*open.image->map().slice_for_update_if_present(guest));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto slice = open.image->map().slice_for_update(guest);
      ASSERT_TRUE(slice.ok() && *slice);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const HostOffset table = open.image->l1().l2_table(2);
  EXPECT_EQ(table.bytes, 4 * kCluster);
  EXPECT_EQ(open.refcount(4), 1u);
  EXPECT_EQ(open.refcount(5), 0u);
  EXPECT_EQ(open.image->extents().find_overlap({table.bytes, 1}),
            MetadataKind::kL2Table);
}

TEST(ClusterMap, ATableInAUsedClusterIsZeroedBeforeItIsNamed) {
  OpenImage open(qemu_image_bytes(2048 * kMib, ""));
  const auto used = open.image->allocator().allocate(1);
  ASSERT_TRUE(used.ok());
  const uint64_t host = used->clusters.first * kCluster;
  open.memory->set_content(host, std::string(kCluster, '\xff'));
  open.image->allocator().free_unpublished(used->clusters);
  // It fails first: nothing stays allocated, nothing is named.
  open.file->fail_at({.purpose = Purpose::kL2AllocWrite}, EIO);
  EXPECT_FALSE(open.image->map().slice_for_update({0}).ok());
  EXPECT_EQ(open.refcount(used->clusters.first), 0u);
  EXPECT_EQ(open.image->l1().l2_table(0).bytes, 0u);
  ASSERT_TRUE(open.image->map().slice_for_update({0}).ok());
  EXPECT_EQ(open.image->l1().l2_table(0).bytes, host);
  EXPECT_EQ(open.memory->content({host, kCluster}),
            std::string(kCluster, '\0'));
}

TEST(ClusterMap, AFailedLoadIsNoDamage) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write 0 64k"}));
  open.file->fail_at({.purpose = Purpose::kL2Load}, EIO);
  MappedRun run;
  EXPECT_FALSE(open.image->map().lookup({0}, 512, &run).ok());
  EXPECT_FALSE(open.image->corruption().is_set());
  EXPECT_TRUE(open.image->map().lookup({0}, 512, &run).ok());
}

}  // namespace
}  // namespace spindle::qcow2
