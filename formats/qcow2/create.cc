#include "formats/qcow2/create.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/luks/header.h"
#include "formats/qcow2/create_allocator.h"
#include "formats/qcow2/preallocation.h"

namespace spindle::qcow2 {
namespace {

// ---- Options -> CreatePlan --------------------------------------------------

// A header of 64 KiB clusters, 16-bit refcounts and version 3 is QEMU's
// default.
constexpr uint64_t kDefaultClusterSizeBytes = 65536;
constexpr uint64_t kDefaultRefcountBits = 16;
// QEMU names the features only where the table does not crowd a small cluster:
// where so much is left behind the extensions before it.
constexpr uint64_t kFeatureNamesNeedBytes = 4096;

absl::Status no_such_value(absl::string_view name, absl::string_view value) {
  return absl::InvalidArgumentError(absl::StrCat(
      "Parameter '", name, "' does not accept value '", value, "'"));
}

// Takes options out of the map by name, so that what is left is unknown.
class OptionReader {
 public:
  explicit OptionReader(const OptionMap& options) : left_(options) {}

  std::optional<std::string> take(const std::string& name) {
    auto node = left_.extract(name);
    if (node.empty()) return std::nullopt;
    return std::move(node.mapped());
  }
  absl::StatusOr<bool> take_bool(const std::string& name) {
    const std::optional<std::string> value = take(name);
    return value.has_value() ? parse_bool_option(name, *value) : false;
  }
  absl::Status expect_empty() const {
    if (left_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid parameter '", left_.begin()->first, "'"));
  }

 private:
  OptionMap left_;
};

absl::Status read_version(OptionReader* reader, Header* header) {
  const std::string compat = reader->take("compat").value_or("1.1");
  const std::string value = reader->take("version").value_or(compat);
  if (value == "0.10" || value == "v2") {
    header->version = kVersion2;
    header->header_length = kVersion2HeaderBytes;
  } else if (value == "1.1" || value == "v3") {
    header->version = kVersion3;
    header->header_length = kVersion3HeaderBytes;
  } else {
    return with_qemu_words(
        no_such_value("compat", value),
        absl::StrCat("Parameter 'version' does not accept value '", value,
                     "'"));
  }
  return absl::OkStatus();
}

absl::Status read_cluster_size(OptionReader* reader, Header* header) {
  uint64_t size = kDefaultClusterSizeBytes;
  if (const std::optional<std::string> value = reader->take("cluster_size");
      value.has_value()) {
    const absl::StatusOr<uint64_t> parsed =
        parse_size_option("cluster_size", *value);
    if (!parsed.ok()) return parsed.status();
    size = *parsed;
  }
  constexpr uint64_t kMin = uint64_t{1} << kMinClusterBits;
  constexpr uint64_t kMax = uint64_t{1} << kMaxClusterBits;
  constexpr uint64_t kMinExtended = uint64_t{1} << kMinExtendedL2ClusterBits;
  if (!is_power_of_two(size) || size < kMin || size > kMax) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("cluster_size is ", size,
                         ": must be a power of two from ", kMin, " to ", kMax)),
        absl::StrCat("Cluster size must be a power of two between ", kMin,
                     " and ", kMax / 1024, "k"));
  }
  if (header->extended_l2() && size < kMinExtended) {
    const std::string words = absl::StrCat(
        "Extended L2 entries are only supported with cluster sizes of at "
        "least ",
        kMinExtended, " bytes");
    return with_qemu_words(absl::InvalidArgumentError(absl::StrCat(
                               "cluster_size is ", size, ": ", words)),
                           words);
  }
  header->cluster_bits = static_cast<uint32_t>(std::countr_zero(size));
  return absl::OkStatus();
}

absl::Status read_extended_l2(OptionReader* reader, Header* header) {
  const absl::StatusOr<bool> extended = reader->take_bool("extended_l2");
  if (!extended.ok()) return extended.status();
  if (!*extended) return absl::OkStatus();
  if (header->version == kVersion2) {
    return absl::InvalidArgumentError(
        "Extended L2 entries are only supported with compatibility level 1.1 "
        "and above (use version=v3 or greater)");
  }
  header->incompatible_features |= kIncompatibleExtendedL2;
  return absl::OkStatus();
}

absl::Status read_refcount_bits(OptionReader* reader, Header* header) {
  uint64_t bits = kDefaultRefcountBits;
  if (const std::optional<std::string> value = reader->take("refcount_bits");
      value.has_value()) {
    const absl::StatusOr<uint64_t> parsed =
        parse_number_option("refcount_bits", *value);
    if (!parsed.ok()) return parsed.status();
    bits = *parsed;
  }
  constexpr uint64_t kMax = uint64_t{1} << kMaxRefcountOrder;
  if (!is_power_of_two(bits) || bits > kMax) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("refcount_bits is ", bits,
                         ": must be a power of two up to ", kMax)),
        absl::StrCat(
            "Refcount width must be a power of two and may not exceed ", kMax,
            " bits"));
  }
  if (header->version == kVersion2 && bits != kDefaultRefcountBits) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat("refcount_bits is ", bits,
                                                ": compat=0.10 has ",
                                                kDefaultRefcountBits, " only")),
        absl::StrCat("Different refcount widths than ", kDefaultRefcountBits,
                     " bits require compatibility level 1.1 or above (use "
                     "version=v3 or greater)"));
  }
  header->refcount_order = static_cast<uint32_t>(std::countr_zero(bits));
  return absl::OkStatus();
}

absl::Status read_lazy_refcounts(OptionReader* reader, Header* header) {
  const absl::StatusOr<bool> lazy = reader->take_bool("lazy_refcounts");
  if (!lazy.ok()) return lazy.status();
  if (!*lazy) return absl::OkStatus();
  if (header->version == kVersion2) {
    return with_qemu_words(
        absl::InvalidArgumentError("lazy_refcounts=on needs compat=1.1"),
        "Lazy refcounts only supported with compatibility level 1.1 and above "
        "(use version=v3 or greater)");
  }
  header->compatible_features |= kCompatibleLazyRefcounts;
  return absl::OkStatus();
}

absl::Status read_encryption(const CreateOptions& options, OptionReader* reader,
                             CreatePlan* plan) {
  const absl::StatusOr<std::string> format =
      crypto::find_create_format(options.options);
  if (!format.ok()) return format.status();
  reader->take("encryption");
  if (format->empty()) return absl::OkStatus();
  for (const OptionHelp& option : encryption_options())
    reader->take(option.name);
  if (*format == crypto::kFormatAes) {
    plan->header.crypt_method = kCryptAes;
  } else if (*format == crypto::kFormatLuks) {
    plan->header.crypt_method = kCryptLuks;
    absl::StatusOr<luks::CreatePlan> luks =
        luks::plan_create(options.options, crypto::kEncryptPrefix);
    if (!luks.ok()) return luks.status();
    plan->luks = *std::move(luks);
    // Where it lies shows later.
    plan->header.extensions.push_back(
        {kExtensionEncryption, std::string(kEncryptionExtensionBytes, '\0')});
  } else {
    return no_such_value("format", *format);
  }
  absl::StatusOr<std::shared_ptr<const SecretBytes>> secret =
      crypto::find_secret(options.options, "encrypt.key-secret",
                          options.secrets.get());
  if (!secret.ok()) return secret.status();
  plan->passphrase = *std::move(secret);
  return absl::OkStatus();
}

absl::Status read_data_file(OptionReader* reader, Header* header) {
  const std::optional<std::string> name = reader->take("data_file");
  const absl::StatusOr<bool> raw = reader->take_bool("data_file_raw");
  if (!raw.ok()) return raw.status();
  if (!name.has_value()) {
    if (!*raw) return absl::OkStatus();
    return absl::InvalidArgumentError("data-file-raw requires data-file");
  }
  if (header->version == kVersion2) {
    return absl::InvalidArgumentError(
        "External data files are only supported with compatibility level 1.1 "
        "and above (use version=v3 or greater)");
  }
  if (name->empty() || name->size() > kMaxDataFilenameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data_file has a name of ", name->size(),
                     " bytes: it must have 1 to ", kMaxDataFilenameBytes));
  }
  header->incompatible_features |= kIncompatibleDataFile;
  if (*raw) header->autoclear_features |= kAutoclearDataFileRaw;
  header->extensions.push_back({kExtensionDataFile, *name});
  return absl::OkStatus();
}

absl::Status read_compression_type(OptionReader* reader, Header* header) {
  const std::string value = reader->take("compression_type").value_or("zlib");
  if (value == "zlib") return absl::OkStatus();
  if (value != "zstd") {
    return with_qemu_words(
        no_such_value("compression_type", value),
        absl::StrCat("Parameter 'compression-type' does not accept value '",
                     value, "'"));
  }
  if (header->version == kVersion2) {
    return with_qemu_words(
        absl::InvalidArgumentError("compression_type=zstd needs compat=1.1"),
        "Non-zlib compression type is only supported with compatibility level "
        "1.1 and above (use version=v3 or greater)");
  }
  header->compression_type = kCompressionZstd;
  header->incompatible_features |= kIncompatibleCompressionType;
  return absl::OkStatus();
}

absl::StatusOr<Preallocation> read_preallocation(OptionReader* reader) {
  const std::string value = reader->take("preallocation").value_or("off");
  const std::optional<Preallocation> parsed = parse_preallocation(value);
  if (parsed.has_value()) return *parsed;
  return no_such_value("preallocation", value);
}

absl::Status read_size(uint64_t size_bytes, Header* header) {
  const std::optional<uint64_t> rounded =
      checked_align_up(size_bytes, kSectorSizeBytes);
  if (!rounded.has_value() || *rounded > kMaxSizeBytes) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat(
            "size is ", size_bytes, ": the limit is ", kMaxSizeBytes)),
        "Could not resize image: Image size cannot be negative");
  }
  constexpr uint64_t kMaxEntries = kMaxL1TableBytes / kL1EntryBytes;
  const uint64_t entries =
      divide_round_up(*rounded, header->l1_entry_coverage_bytes());
  if (entries > kMaxEntries) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("size is ", size_bytes, ": with clusters of ",
                         header->cluster_size_bytes(), " bytes the limit is ",
                         kMaxEntries * header->l1_entry_coverage_bytes(),
                         " (an L1 table of ", kMaxL1TableBytes,
                         " bytes); use a larger cluster size")),
        "The image size is too large for file format 'qcow2' (try using a "
        "larger cluster size)");
  }
  header->size_bytes = *rounded;
  header->l1_entry_count = static_cast<uint32_t>(entries);
  return absl::OkStatus();
}

absl::Status read_backing(const CreateOptions& options, Header* header) {
  const std::string& name = options.backing_filename;
  const std::string& format = options.backing_format;
  if (name.empty()) {
    if (format.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "Backing format cannot be used without backing file");
  }
  if (format.empty()) {
    return absl::InvalidArgumentError(
        "Backing file specified without backing format");
  }
  if (name.size() > kMaxBackingFilenameBytes) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("the backing file's name has ", name.size(),
                         " bytes; the limit is ", kMaxBackingFilenameBytes)),
        absl::StrCat("Could not assign backing file '", name, "' with format '",
                     format, "': ", std::strerror(EINVAL)));
  }
  if (header->data_file_is_raw()) {
    return absl::InvalidArgumentError(
        "Backing file and data-file-raw cannot be used at the same time");
  }
  if (format.size() > kMaxBackingFormatBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("backing format '", format, "' has ", format.size(),
                     " bytes; the limit is ", kMaxBackingFormatBytes));
  }
  header->backing_filename = name;
  header->backing_format = format;
  return absl::OkStatus();
}

absl::Status name_does_not_fit(const absl::Status& status,
                               const Header& header) {
  return with_qemu_words(
      status,
      absl::StrCat("Could not assign backing file '", header.backing_filename,
                   "' with format '", header.backing_format,
                   "': ", std::strerror(ENOSPC)));
}

void add_feature_names(Header* header) {
  if (header->version == kVersion2) return;
  uint64_t used = header->header_length;
  if (!header->backing_format.empty()) {
    used += kExtensionHeaderBytes +
            align_up(header->backing_format.size(), kExtensionAlignment);
  }
  for (const HeaderExtension& extension : header->extensions) {
    used += kExtensionHeaderBytes +
            align_up(extension.data.size(), kExtensionAlignment);
  }
  if (header->cluster_size_bytes() - used >= kFeatureNamesNeedBytes) {
    header->extensions.push_back(default_feature_names());
  }
}

// ---- CreatePlan -> image ----------------------------------------------------

// QEMU maps at most this much in one go while it preallocates metadata, which
// decides where tables and data alternate.
constexpr uint64_t kMaxMappedAtOnceBytes = (uint64_t{1} << 31) - 1;
constexpr uint64_t kMaxRequestBytes =
    kMaxMappedAtOnceBytes & ~(kSectorSizeBytes - 1);

class ImageWriter {
 public:
  ImageWriter(const CreatePlan& plan, std::shared_ptr<BlockDriver> file)
      : plan_(plan),
        header_(plan.header),
        preallocation_(plan.preallocation),
        channel_(std::move(file)),
        allocator_(header_.cluster_bits, header_.refcount_order,
                   [this](uint64_t offset, absl::Span<const uint64_t> table) {
                     return write_entries(Purpose::kReftableGrow, offset,
                                          table);
                   }),
        l1_(header_.l1_entry_count) {}

  // The header goes last: before it, there is no image.
  absl::Status write() {
    absl::Status status = allocate_l1();
    if (status.ok()) status = preallocate();
    if (status.ok() && plan_.luks.has_value()) status = write_luks_header();
    if (status.ok()) status = write_l2();
    if (status.ok())
      status = write_entries(Purpose::kL1Update, header_.l1_table_offset, l1_);
    if (status.ok()) status = write_refcounts();
    if (status.ok()) status = channel_.flush();
    if (status.ok()) status = write_header();
    if (status.ok()) status = channel_.flush();
    return status;
  }

 private:
  uint64_t cluster_count() const {
    return divide_round_up(header_.size_bytes, header_.cluster_size_bytes());
  }

  absl::Status allocate_l1() {
    if (l1_.empty()) return absl::OkStatus();
    const absl::StatusOr<uint64_t> offset = allocator_.allocate(divide_round_up(
        header_.l1_table_bytes(), header_.cluster_size_bytes()));
    if (!offset.ok()) return offset.status();
    header_.l1_table_offset = *offset;
    return absl::OkStatus();
  }

  absl::Status preallocate() {
    if (header_.has_data_file() && preallocation_ != Preallocation::kOff)
      return map(0, 0, cluster_count());
    switch (preallocation_) {
      case Preallocation::kOff:
        return absl::OkStatus();
      case Preallocation::kMetadata:
        return map_all_clusters();
      case Preallocation::kFalloc:
      case Preallocation::kFull:
        return map_one_data_area();
    }
    return absl::InternalError("no such preallocation");
  }

  absl::Status write_luks_header() {
    const uint64_t length = plan_.luks->header_area_bytes();
    const uint64_t clusters =
        divide_round_up(length, header_.cluster_size_bytes());
    const absl::StatusOr<uint64_t> offset = allocator_.allocate(clusters);
    if (!offset.ok()) return offset.status();
    for (HeaderExtension& extension : header_.extensions) {
      if (extension.type != kExtensionEncryption) continue;
      store_big64(extension.data.data() + kEncryptionOffsetOffset, *offset);
      store_big64(extension.data.data() + kEncryptionLengthOffset, length);
    }
    luks::Header header;
    absl::Status status = luks::write_volume({&channel_, *offset}, *plan_.luks,
                                             plan_.passphrase->span(), &header)
                              .status();
    if (!status.ok()) return status;
    return channel_.set_length(*offset + (clusters << header_.cluster_bits),
                               SetLengthMode::kGrowOnly);
  }

  // preallocation=metadata: data clusters are allocated as a writer would.
  absl::Status map_all_clusters() {
    const uint64_t at_once = kMaxMappedAtOnceBytes >> header_.cluster_bits;
    for (uint64_t cluster = 0; cluster < cluster_count();) {
      const absl::StatusOr<uint64_t> mapped =
          map_adjacent(cluster, std::min(cluster_count() - cluster, at_once));
      if (!mapped.ok()) return mapped.status();
      cluster += *mapped;
    }
    // Sparse, as QEMU leaves it.
    const uint64_t end = data_end_ - unused_tail_bytes();
    return end > channel_.length_bytes()
               ? channel_.set_length(end, SetLengthMode::kExact)
               : absl::OkStatus();
  }

  // The subclusters at the end of the last cluster that lie behind the disk's
  // end: QEMU's file ends before them.
  uint64_t unused_tail_bytes() const {
    if (!header_.extended_l2()) return 0;
    const uint64_t cluster_bytes = header_.cluster_size_bytes();
    const uint64_t used = align_up(header_.size_bytes % cluster_bytes,
                                   cluster_bytes / kSubclustersPerCluster);
    return used == 0 ? 0 : cluster_bytes - used;
  }

  // Maps clusters from `first` on to adjacent host clusters, as many of `count`
  // as stay adjacent; returns how many.
  absl::StatusOr<uint64_t> map_adjacent(uint64_t first, uint64_t count) {
    const uint64_t table_entries = header_.l2_entry_count();
    uint64_t done = 0;
    uint64_t host_offset = 0;
    while (done < count) {
      const uint64_t cluster = first + done;
      if (absl::Status status = open_l2(cluster); !status.ok()) return status;
      const uint64_t run =
          std::min({count - done, table_entries - cluster % table_entries,
                    kMaxRequestBytes >> header_.cluster_bits});
      uint64_t allocated = run;
      if (done == 0) {
        const absl::StatusOr<uint64_t> offset = allocator_.allocate(run);
        if (!offset.ok()) return offset.status();
        host_offset = *offset;
      } else {
        const absl::StatusOr<uint64_t> free =
            allocator_.allocate_at(host_offset, run);
        if (!free.ok()) return free.status();
        allocated = *free;
        if (allocated == 0) break;
      }
      if (absl::Status status = map(cluster, host_offset, allocated);
          !status.ok())
        return status;
      host_offset += allocated << header_.cluster_bits;
      done += allocated;
    }
    data_end_ = std::max(data_end_, host_offset);
    return done;
  }

  // preallocation=falloc and =full: all data lies in one piece.
  absl::Status map_one_data_area() {
    const uint64_t count = cluster_count();
    const uint64_t tables = divide_round_up(count, header_.l2_entry_count());
    const absl::StatusOr<uint64_t> start =
        allocator_.reserve_behind_end(count + tables);
    if (!start.ok()) return start.status();
    const absl::StatusOr<uint64_t> allocated =
        allocator_.allocate_at(*start, count);
    if (!allocated.ok()) return allocated.status();
    if (*allocated != count)
      return absl::InternalError("the data area is not free");
    if (absl::Status status = map(0, *start, count); !status.ok())
      return status;
    return reserve_zeroes(&channel_, {*start, count << header_.cluster_bits},
                          preallocation_);
  }

  absl::Status map(uint64_t cluster, uint64_t host_offset, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (absl::Status status = open_l2(cluster + i); !status.ok())
        return status;
      // An extended entry's bitmap stays empty: there is a place, and no data.
      l2_[(cluster + i) % header_.l2_entry_count() *
          (header_.l2_entry_size_bytes() / sizeof(uint64_t))] =
          (host_offset + (i << header_.cluster_bits)) | kEntryCopied;
    }
    return absl::OkStatus();
  }

  // Makes l2_ the table that maps `cluster`; clusters come in order, so the
  // table before it is complete.
  absl::Status open_l2(uint64_t cluster) {
    uint64_t& l1_entry = l1_[cluster / header_.l2_entry_count()];
    if (l1_entry != 0) return absl::OkStatus();
    if (absl::Status status = write_l2(); !status.ok()) return status;
    const absl::StatusOr<uint64_t> offset = allocator_.allocate(1);
    if (!offset.ok()) return offset.status();
    l1_entry = *offset | kEntryCopied;
    l2_offset_ = *offset;
    l2_.assign(header_.cluster_size_bytes() / sizeof(uint64_t), 0);
    return absl::OkStatus();
  }

  absl::Status write_l2() {
    if (l2_.empty()) return absl::OkStatus();
    return write_entries(Purpose::kL2AllocWrite, l2_offset_, l2_);
  }

  absl::Status write_refcounts() {
    const absl::Span<const uint64_t> table = allocator_.refcount_table();
    std::vector<uint8_t> block;
    for (uint64_t i = 0; i < table.size(); ++i) {
      if (table[i] == 0) continue;
      allocator_.render_block(i, &block);
      absl::Status status = channel_.write(
          Purpose::kRefblockAlloc, block.data(), block.size(), table[i]);
      if (!status.ok()) return status;
    }
    header_.refcount_table_offset = allocator_.refcount_table_offset();
    header_.refcount_table_clusters = static_cast<uint32_t>(
        (table.size() * kRefcountTableEntryBytes) >> header_.cluster_bits);
    return write_entries(Purpose::kReftableGrow, header_.refcount_table_offset,
                         table);
  }

  absl::Status write_header() {
    absl::StatusOr<std::vector<uint8_t>> bytes = serialize_header(header_);
    if (!bytes.ok()) return name_does_not_fit(bytes.status(), header_);
    bytes->resize(header_.cluster_size_bytes());
    return channel_.write(Purpose::kHeaderUpdate, bytes->data(), bytes->size(),
                          0);
  }

  absl::Status write_entries(Purpose purpose, uint64_t offset,
                             absl::Span<const uint64_t> entries) {
    if (entries.empty()) return absl::OkStatus();
    std::vector<uint8_t> bytes(entries.size() * sizeof(uint64_t));
    for (size_t i = 0; i < entries.size(); ++i) {
      store_big64(&bytes[i * sizeof(uint64_t)], entries[i]);
    }
    return channel_.write(purpose, bytes.data(), bytes.size(), offset);
  }

  const CreatePlan& plan_;
  Header header_;
  const Preallocation preallocation_;
  ByteChannel channel_;
  CreateAllocator allocator_;
  std::vector<uint64_t> l1_;
  std::vector<uint64_t> l2_;  // the table being filled; empty: none yet
  uint64_t l2_offset_ = 0;
  uint64_t data_end_ = 0;
};

}  // namespace

std::vector<OptionHelp> encryption_options() {
  std::vector<OptionHelp> options = {
      {"format", "<str>", "Encrypt the image, format choices: 'aes', 'luks'"}};
  for (OptionHelp& option : luks::create_options()) {
    if (option.name == "key-secret")
      option.help = "ID of secret providing qcow AES key or LUKS passphrase";
    if (option.name != "size") options.push_back(std::move(option));
  }
  for (OptionHelp& option : options)
    option.name.insert(0, crypto::kEncryptPrefix);
  return options;
}

absl::StatusOr<CreatePlan> plan_create(const CreateOptions& options) {
  CreatePlan plan;
  OptionReader reader(options.options);
  absl::Status status = read_version(&reader, &plan.header);
  if (status.ok()) status = read_data_file(&reader, &plan.header);
  if (status.ok()) status = read_encryption(options, &reader, &plan);
  if (status.ok()) status = read_extended_l2(&reader, &plan.header);
  if (status.ok()) status = read_compression_type(&reader, &plan.header);
  if (status.ok()) status = read_cluster_size(&reader, &plan.header);
  if (status.ok()) status = read_refcount_bits(&reader, &plan.header);
  if (status.ok()) status = read_lazy_refcounts(&reader, &plan.header);
  if (status.ok())
    status = read_size(options.size_bytes.value_or(0), &plan.header);
  if (status.ok()) status = read_backing(options, &plan.header);
  if (!status.ok()) return status;
  const absl::StatusOr<Preallocation> preallocation =
      read_preallocation(&reader);
  if (!preallocation.ok()) return preallocation.status();
  plan.preallocation = *preallocation;
  // Without tables that map it all, nothing would say that it is there.
  if (plan.header.data_file_is_raw() &&
      plan.preallocation == Preallocation::kOff) {
    plan.preallocation = Preallocation::kMetadata;
  }
  if (plan.preallocation != Preallocation::kOff &&
      !plan.header.backing_filename.empty() && !plan.header.extended_l2()) {
    return absl::InvalidArgumentError(
        "Backing file and preallocation can only be used at the same time if "
        "extended_l2 is on");
  }
  if (status = reader.expect_empty(); !status.ok()) return status;
  add_feature_names(&plan.header);
  // Finds out whether the backing file's name fits.
  const absl::StatusOr<std::vector<uint8_t>> bytes =
      serialize_header(plan.header);
  if (!bytes.ok()) return name_does_not_fit(bytes.status(), plan.header);
  return plan;
}

absl::Status write_image(const CreatePlan& plan,
                         const std::shared_ptr<BlockDriver>& file) {
  absl::Status status = ImageWriter(plan, file).write();
  // Half an image is of no use, and takes space.
  if (!status.ok() && file->capabilities().has(Capability::kSetLength)) {
    file->set_length(0, SetLengthMode::kExact)
        .IgnoreError();  // the first error counts
  }
  return status;
}

}  // namespace spindle::qcow2
