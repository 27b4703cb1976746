#include "engine/image_opener.h"

#include <errno.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/byte_channel.h"
#include "engine/errors.h"
#include "engine/image_name.h"
#include "engine/node_options.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

// What a directory holds, and what was opened in it and how.
struct Disk {
  std::map<std::string, std::shared_ptr<MemoryDriver>> files;
  std::vector<std::pair<std::string, OpenOptions>> opened;
  uint64_t last_inode = 0;

  void add(const std::string& name, absl::string_view content) {
    MemoryDriver::Options options;
    options.filename = name;
    options.identity = StorageIdentity{1, ++last_inode};
    files[name] = std::make_shared<MemoryDriver>(options);
    files[name]->set_content(0, content);
  }
};

class DiskProtocol : public StorageProtocol {
 public:
  DiskProtocol(Disk* disk, absl::string_view name, absl::string_view prefix)
      : disk_(disk), name_(name), prefix_(prefix) {}
  absl::string_view name() const override { return name_; }
  bool claims(const std::string& filename) const override {
    return absl::StartsWith(filename, prefix_);
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::string& filename, const OpenOptions& options) const override {
    const auto found = disk_->files.find(filename);
    if (found == disk_->files.end()) {
      return errno_status(ENOENT, absl::StrCat("open of '", filename, "'"));
    }
    absl::Status status =
        refuse_left_options("protocol", name_, options.driver_options);
    if (!status.ok()) return status;
    disk_->opened.emplace_back(filename, options);
    return std::static_pointer_cast<BlockDriver>(found->second);
  }
  absl::Status create(const std::string& filename, uint64_t length_bytes,
                      const OptionMap& options, const LogSink&) const override {
    for (const auto& [name, value] : options) {
      if (name != "nocow") return absl::InvalidArgumentError(name);
    }
    disk_->add(filename, std::string(length_bytes, '\0'));
    return absl::OkStatus();
  }
  std::vector<OptionHelp> create_options() const override {
    return {{"nocow", "<bool (on/off)>", ""}};
  }

 private:
  Disk* const disk_;
  const absl::string_view name_;
  const absl::string_view prefix_;
};

// An open "link" image: passes its file through and keeps what it names.
class LinkDriver : public testing::ObservingDriver {
 public:
  LinkDriver(std::shared_ptr<BlockDriver> file,
             std::shared_ptr<BlockDriver> backing)
      : ObservingDriver(std::move(file)), backing_(std::move(backing)) {}
  absl::string_view format_name() const override { return "link"; }
  std::shared_ptr<BlockDriver> backing() const override { return backing_; }

 private:
  const std::shared_ptr<BlockDriver> backing_;
};

// Its content is "LINK <backing filename> <backing format>"; with a format of
// "?" it is one that has no place for that.
class LinkFormat : public ImageFormat {
 public:
  absl::string_view name() const override { return "link"; }
  int probe(absl::Span<const uint8_t> head, absl::string_view) const override {
    const std::string text(head.begin(), head.end());
    return absl::StartsWith(text, "LINK") ? 100 : 0;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext& context) const override {
    seen.push_back(options.driver_options);
    std::string text(file->length_bytes(), '\0');
    absl::Status status = ByteChannel(file).read(Purpose::kHeaderLoad,
                                                 text.data(), text.size(), 0);
    if (!status.ok()) return status;
    const std::vector<std::string> words = absl::StrSplit(text, ' ');
    if (words[0] != "LINK") return absl::DataLossError("not a link");
    std::shared_ptr<BlockDriver> backing;
    if (words.size() > 1 && options.open_backing) {
      const std::string stated = words.size() > 2 ? words[2] : "";
      const ChildRequest request{.filename = words[1],
                                 .format = stated == "?" ? "" : stated,
                                 .format_can_be_stated = stated != "?",
                                 .role = ChildRole::kBacking,
                                 .read_only = true,
                                 .parent_filename = file->filename(),
                                 .depth = context.depth + 1};
      auto opened = context.open_child(request);
      if (!opened.ok()) return opened.status();
      backing = *std::move(opened);
    }
    return std::make_shared<LinkDriver>(std::move(file), std::move(backing));
  }
  absl::Status create(std::shared_ptr<BlockDriver> file,
                      const CreateOptions& options,
                      const OpenContext&) const override {
    const std::string text =
        absl::StrCat("LINK ", options.backing_filename, " ",
                     options.backing_format, " ", *options.size_bytes);
    for (const auto& [name, value] : options.options) {
      if (name != "colour") return absl::InvalidArgumentError(name);
    }
    return ByteChannel(file).write(Purpose::kHeaderUpdate, text.data(),
                                   text.size(), 0);
  }
  std::vector<OptionHelp> create_options() const override {
    return {{"colour", "<str>", ""}};
  }
  bool supports_backing() const override { return true; }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }

  // The options of each open().
  mutable std::vector<OptionMap> seen;
};

class PlainFormat : public ImageFormat {
 public:
  absl::string_view name() const override { return "plain"; }
  int probe(absl::Span<const uint8_t>, absl::string_view) const override {
    return 1;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions& options,
      const OpenContext&) const override {
    was_probed = options.probed;
    seen = options.driver_options;
    return file;
  }
  absl::Status create(std::shared_ptr<BlockDriver>, const CreateOptions&,
                      const OpenContext&) const override {
    return absl::OkStatus();
  }
  std::vector<OptionHelp> create_options() const override { return {}; }
  uint64_t initial_file_length(const CreateOptions& options) const override {
    return *options.size_bytes;
  }

  mutable bool was_probed = false;
  mutable OptionMap seen;
};

// Under a name that file names may begin with; keeps what it was opened with.
class NotingFilter : public DriverFilter {
 public:
  absl::string_view name() const override { return "blkdebug"; }
  absl::string_view child_option() const override { return "image"; }
  bool is_storage() const override { return true; }
  // "blkdebug:RULES:FILENAME".
  absl::StatusOr<NameMeaning> parse_name(
      const std::string& name) const override {
    const std::vector<std::string> parts =
        absl::StrSplit(name, absl::MaxSplits(':', 2));
    if (parts.size() < 3) return absl::InvalidArgumentError("no image path");
    return NameMeaning{{{"rules", parts[1]}}, parts[2]};
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child,
      const OpenOptions& options) const override {
    noted.push_back(options.driver_options);
    return std::make_shared<testing::ObservingDriver>(std::move(child));
  }

  mutable std::vector<OptionMap> noted;
};

class ImageOpenerTest : public ::testing::Test {
 protected:
  ImageOpener opener(ImageOpener::Policy policy = {}) {
    DriverRegistry registry;
    registry.protocols = {&device_, &file_};
    registry.formats = {&plain_, &link_};
    registry.filters = {&filter_};
    return ImageOpener(registry, std::move(policy));
  }
  absl::Status open(const std::string& filename, const std::string& format,
                    ImageOpener::Policy policy = {}) {
    auto driver = opener(std::move(policy)).open(filename, format, {});
    if (!driver.ok()) return driver.status();
    driver_ = *std::move(driver);
    return absl::OkStatus();
  }
  // "A says B" in a failure message.
  static void expect_says(const absl::Status& status,
                          std::initializer_list<absl::string_view> parts) {
    EXPECT_FALSE(status.ok());
    for (absl::string_view part : parts) {
      EXPECT_TRUE(absl::StrContains(status.message(), part))
          << status << " does not name " << part;
    }
  }

  Disk disk_;
  DiskProtocol device_{&disk_, "host_device", "/dev/"};
  DiskProtocol file_{&disk_, "file", ""};
  PlainFormat plain_;
  LinkFormat link_;
  NotingFilter filter_;
  std::shared_ptr<BlockDriver> driver_;
};

TEST_F(ImageOpenerTest, FollowsAChainRelativeToEachImage) {
  disk_.add("/vm/a", "LINK base/b link");
  disk_.add("/vm/base/b", "LINK c plain");
  disk_.add("/vm/base/c", "data");
  ASSERT_TRUE(open("/vm/a", "link").ok());
  ASSERT_EQ(disk_.opened.size(), 3u);
  EXPECT_EQ(disk_.opened[1].first, "/vm/base/b");
  EXPECT_EQ(disk_.opened[2].first, "/vm/base/c");
  EXPECT_FALSE(disk_.opened[0].second.read_only);
  EXPECT_TRUE(disk_.opened[1].second.read_only);
  EXPECT_TRUE(disk_.opened[2].second.read_only);
  EXPECT_NE(driver_->backing(), nullptr);
}

TEST_F(ImageOpenerTest, ChoosesTheProtocolThatClaimsTheName) {
  disk_.add("/dev/sda", "data");
  EXPECT_TRUE(open("/dev/sda", "plain").ok());
  EXPECT_TRUE(open("/dev/sda", "host_device").ok());
  expect_says(open("/vm/none", "plain"), {"/vm/none"});
}

TEST_F(ImageOpenerTest, GuessesOnlyWhenAllowed) {
  disk_.add("a", "LINK");
  expect_says(open("a", ""), {"'a'", "not stated", "plain, link"});
  ASSERT_TRUE(open("a", "", {.probe_image = true}).ok());
  EXPECT_EQ(driver_->format_name(), "link");
  disk_.add("b", "data");
  ASSERT_TRUE(open("b", "", {.probe_image = true}).ok());
  EXPECT_TRUE(plain_.was_probed);
  ASSERT_TRUE(open("b", "plain").ok());
  EXPECT_FALSE(plain_.was_probed);
  const auto probed = opener().probe("a");
  ASSERT_TRUE(probed.ok());
  EXPECT_EQ(*probed, "link");
}

TEST_F(ImageOpenerTest, GuessesABackingFileOnlyWhenAllowed) {
  disk_.add("a", "LINK b");
  disk_.add("b", "data");
  expect_says(open("a", "link", {.probe_image = true}),
              {"'b'", "'a'", "number 1", "does not state its format"});
  EXPECT_TRUE(open("a", "link", {.probe_backing = true}).ok());
}

TEST_F(ImageOpenerTest, AFormatThatCannotBeStatedIsGuessedForWhoAllowsIt) {
  disk_.add("a", "LINK b ?");
  disk_.add("b", "data");
  expect_says(open("a", "link"), {"'b'", "does not state its format"});
  const ImageOpener::Policy policy{.probe_unstatable_backing = true};
  ASSERT_TRUE(open("a", "link", policy).ok());
  EXPECT_EQ(driver_->backing()->format_name(), "memory");
  // Where it can be, it must be.
  disk_.add("c", "LINK b");
  expect_says(open("c", "link", policy), {"'b'", "does not state its format"});
}

// Perhaps a guest wrote it.
TEST_F(ImageOpenerTest, WhatAGuessedBackingFileNamesIsNotOpened) {
  disk_.add("a", "LINK b ?");
  disk_.add("b", "LINK secret plain");
  disk_.add("secret", "data");
  const ImageOpener::Policy policy{.probe_unstatable_backing = true};
  const absl::Status status = open("a", "link", policy);
  EXPECT_TRUE(absl::IsPermissionDenied(status));
  expect_says(status, {"'secret'", "'b' was guessed", "backing.driver"});
  EXPECT_EQ(disk_.opened.size(), 2u);
  // It may be guessed, if it names nothing.
  disk_.add("b", "LINK");
  ASSERT_TRUE(open("a", "link", policy).ok());
  EXPECT_EQ(driver_->backing()->format_name(), "link");
}

TEST_F(ImageOpenerTest, OptionsOfTheCallerReachTheBackingFile) {
  disk_.add("a", "LINK b ?");
  disk_.add("b", "LINK c plain");
  disk_.add("c", "data");
  OpenOptions options;
  options.driver_options = {{"backing.driver", "link"},
                            {"backing.backing.x", "y"},
                            {"backing.z", "w"}};
  auto driver = opener().open("a", "link", options);
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->backing()->format_name(), "link");
  EXPECT_EQ(link_.seen, (std::vector<OptionMap>{{}, {{"z", "w"}}}));
  EXPECT_EQ(plain_.seen, (OptionMap{{"x", "y"}}));
  // What the image says is overridden.
  disk_.add("a", "LINK b plain");
  options.driver_options = {{"backing.driver", "link"}};
  driver = opener().open("a", "link", options);
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->backing()->format_name(), "link");
}

TEST_F(ImageOpenerTest, UnknownFormatsAreNamed) {
  disk_.add("a", "LINK b vdi");
  disk_.add("b", "data");
  expect_says(open("a", "qcow9"), {"'qcow9'", "plain, link"});
  expect_says(open("a", "link"), {"'vdi'", "'b'", "number 1"});
}

TEST_F(ImageOpenerTest, RefusesLoops) {
  disk_.add("a", "LINK b link");
  disk_.add("b", "LINK c link");
  disk_.add("c", "LINK b link");
  const absl::Status status = open("a", "link");
  EXPECT_TRUE(absl::IsDataLoss(status));
  expect_says(status, {"loop", "'b'", "number 3"});
  disk_.add("self", "LINK self link");
  EXPECT_TRUE(absl::IsDataLoss(open("self", "link")));
}

TEST_F(ImageOpenerTest, RefusesChainsThatAreTooDeep) {
  const int limit = ImageOpener::kMaxChainDepth;
  for (int i = 0; i <= limit; ++i) {
    disk_.add(absl::StrCat(i), absl::StrCat("LINK ", i + 1, " link"));
  }
  disk_.add(absl::StrCat(limit + 1), "LINK");
  expect_says(open("0", "link"), {"201", "limit of 200"});
  EXPECT_TRUE(open("1", "link").ok());
}

TEST_F(ImageOpenerTest, RefusesProtocolPrefixesInNamesFromImages) {
  for (absl::string_view name : {"json:{\"driver\":\"file\"}", "nbd:localhost",
                                 "NBD+unix:///x", "file:b", "vvfat:."}) {
    disk_.add("a", absl::StrCat("LINK ", name, " plain"));
    disk_.add(std::string(name), "data");
    expect_says(open("a", "link"), {name, "protocol prefix", "'a'"});
  }
  // A colon behind a slash, or behind a word that is no protocol, is a name.
  for (absl::string_view name : {"./nbd:b", "12:30", "/x/json:y"}) {
    disk_.add("a", absl::StrCat("LINK ", name, " plain"));
    disk_.add(std::string(name), "data");
    EXPECT_TRUE(open("a", "link").ok()) << name;
  }
}

TEST_F(ImageOpenerTest, ThePolicyIsAskedForEveryFileThatAnImageNames) {
  disk_.add("a", "LINK b link");
  disk_.add("b", "LINK secret plain");
  disk_.add("secret", "data");
  std::vector<std::string> asked;
  ImageOpener::Policy policy;
  policy.child_policy = [&asked](const ChildRequest& request) {
    asked.push_back(request.filename);
    return request.filename == "secret"
               ? absl::PermissionDeniedError("not yours")
               : absl::OkStatus();
  };
  const absl::Status status = open("a", "link", policy);
  EXPECT_TRUE(absl::IsPermissionDenied(status));
  expect_says(status, {"not yours", "'secret'", "number 2", "'b'"});
  EXPECT_EQ(asked, (std::vector<std::string>{"b", "secret"}));
  ASSERT_EQ(disk_.opened.size(), 2u);
}

TEST_F(ImageOpenerTest, AnErrorBelowNamesTheWayToIt) {
  disk_.add("a", "LINK b link");
  disk_.add("b", "LINK gone plain");
  const absl::Status status = open("a", "link");
  EXPECT_EQ(errno_of(status), ENOENT);
  expect_says(status, {"'b'", "number 1", "'gone'", "number 2"});
}

TEST_F(ImageOpenerTest, CreatesAnImage) {
  CreateOptions options;
  expect_says(opener().create("new", "link", options), {"'new'", "size"});
  options.size_bytes = 100;
  options.options = {{"colour", "red"}, {"nocow", "on"}};
  ASSERT_TRUE(opener().create("new", "link", options).ok());
  EXPECT_EQ(disk_.files["new"]->content(), "LINK   100");
  options.options = {{"shape", "round"}};
  expect_says(opener().create("other", "link", options),
              {"'shape'", "'link'", "'round'"});
  EXPECT_EQ(disk_.files.count("other"), 0u);
  options.options = {};
  ASSERT_TRUE(opener().create("flat", "plain", options).ok());
  EXPECT_EQ(disk_.files["flat"]->length_bytes(), 100u);
}

TEST_F(ImageOpenerTest, AnOverlayIsAsLongAsItsBackingFile) {
  disk_.add("dir/base", "LINK");
  CreateOptions options;
  options.backing_filename = "base";
  expect_says(opener().create("dir/new", "link", options),
              {"'base'", "format is not stated"});
  options.backing_format = "plain";
  ASSERT_TRUE(opener().create("dir/new", "link", options).ok());
  EXPECT_EQ(disk_.files["dir/new"]->content(), "LINK base plain 4");
  expect_says(opener().create("x", "plain", options), {"'plain'", "'base'"});
  options.backing_filename = "none";
  expect_says(opener().create("dir/y", "link", options), {"'dir/none'"});
  EXPECT_EQ(disk_.files.count("dir/y"), 0u);
  options.unsafe_backing = true;
  options.size_bytes = 7;
  EXPECT_TRUE(opener().create("dir/y", "link", options).ok());
}

TEST_F(ImageOpenerTest, AnOverlayDoesNotOverwriteItsOwnChain) {
  disk_.add("top", "LINK base plain");
  disk_.add("base", "data");
  CreateOptions options;
  options.backing_filename = "top";
  options.backing_format = "link";
  for (const std::string name : {"top", "base"}) {
    expect_says(opener().create(name, "link", options), {name, "own backing"});
  }
  EXPECT_EQ(disk_.files["base"]->content(), "data");
}

TEST(ResolveBackingFilename, StartsAtTheDirectoryOfTheImage) {
  EXPECT_EQ(resolve_backing_filename("a", "b"), "b");
  EXPECT_EQ(resolve_backing_filename("dir/a", "b"), "dir/b");
  EXPECT_EQ(resolve_backing_filename("/dir/a", "../b"), "/dir/../b");
  EXPECT_EQ(resolve_backing_filename("/dir/a", "/b"), "/b");
  EXPECT_EQ(resolve_backing_filename("dir/a", ""), "");
}

// ---- From options -----------------------------------------------------------

TEST_F(ImageOpenerTest, OpensDriversOneOverTheOther) {
  disk_.add("a", "LINK b link");
  disk_.add("b", "LINK");
  const auto driver = opener().open_nodes({{"driver", "link"},
                                           {"file.driver", "blkdebug"},
                                           {"file.config", "c"},
                                           {"file.image.driver", "blkdebug"},
                                           {"file.image.deep", "d"},
                                           {"file.image.image.filename", "a"}},
                                          {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->format_name(), "link");
  EXPECT_EQ((*driver)->filename(), "a");
  EXPECT_EQ((*driver)->backing()->filename(), "b");
  EXPECT_EQ(filter_.noted,
            (std::vector<OptionMap>{{{"deep", "d"}}, {{"config", "c"}}}));
}

TEST_F(ImageOpenerTest, FindsOnlyWhatTheOptionsDescribe) {
  disk_.add("a", "LINK");
  const auto nodes = [this](const OptionMap& options) {
    return opener().open_nodes(options, {}).status();
  };
  EXPECT_TRUE(nodes({{"driver", "file"}, {"filename", "a"}}).ok());
  expect_says(nodes({}), {"not stated", "plain, link"});
  expect_says(nodes({{"driver", "nobody"}}), {"'nobody'", "plain, link"});
  expect_says(nodes({{"driver", "file"}}), {"'file'", "file name"});
  expect_says(nodes({{"driver", "file"}, {"filename", "a"}, {"x", "1"}}),
              {"'file'", "'x'"});
  expect_says(nodes({{"driver", "link"}, {"filename", "a"}}), {"\"file\""});
  expect_says(nodes({{"driver", "link"}}), {"\"file\""});
  expect_says(nodes({{"driver", "blkdebug"}, {"file.filename", "a"}}),
              {"\"image\""});
  expect_says(nodes({{"driver", "link"}, {"file", "a"}}), {"'a'"});
  expect_says(nodes({{"driver", "link"}, {"file", "a"}, {"file.x", "1"}}),
              {"Cannot reference"});
  std::string deep = "filename";
  for (int i = 0; i < 100; ++i) deep = absl::StrCat("file.", deep);
  expect_says(nodes({{"driver", "link"}, {deep, "a"}}), {"nested"});
}

TEST_F(ImageOpenerTest, NamesMeanMoreOnlyWhereThePolicySaysSo) {
  disk_.add("a", "LINK");
  disk_.add("file:a", "data");
  disk_.add("x:y", "data");
  const ImageOpener::Policy qemu = {.probe_image = true,
                                    .name_syntax = NameSyntax::kQemu};
  ASSERT_TRUE(open("file:a", "", {.probe_image = true}).ok());
  EXPECT_EQ(driver_->filename(), "file:a");
  ASSERT_TRUE(open("file:a", "", qemu).ok());
  EXPECT_EQ(driver_->filename(), "a");
  expect_says(open("x:y", "", qemu), {"Unknown protocol 'x'"});
  ASSERT_TRUE(
      open("json:{\"driver\": \"link\", \"file\": {\"filename\": \"a\"}}", "",
           qemu)
          .ok());
  EXPECT_EQ(driver_->format_name(), "link");
  // What is stated beside it counts more.
  expect_says(open("json:{\"driver\": \"link\"}", "nobody", qemu),
              {"'nobody'"});
}

TEST_F(ImageOpenerTest, NamesInImagesMeanMoreOnlyWhereThePolicySaysSo) {
  disk_.add("d/a", "LINK file:b plain");
  disk_.add("b", "data");
  disk_.add("d/j", "LINK json:{'file':{'filename':'b'}} plain");
  expect_says(open("d/a", "link"), {"protocol prefix 'file:'"});
  expect_says(open("d/j", "link"), {"protocol prefix 'json:'"});
  const ImageOpener::Policy qemu = {.image_name_syntax = NameSyntax::kQemu};
  for (const char* name : {"d/a", "d/j"}) {
    ASSERT_TRUE(open(name, "link", qemu).ok()) << name;
    EXPECT_EQ(driver_->backing()->filename(), "b");
  }
}

TEST_F(ImageOpenerTest, WhatAnImageNamesCanBeReplaced) {
  disk_.add("a", "LINK gone plain");
  disk_.add("b", "data");
  const auto backing_of = [this](OptionMap more) -> std::string {
    more.insert({{"driver", "link"}, {"file.filename", "a"}});
    const auto driver = opener().open_nodes(more, {});
    if (!driver.ok()) return std::string(driver.status().message());
    const auto backing = (*driver)->backing();
    return backing == nullptr ? "none" : backing->filename();
  };
  EXPECT_EQ(
      backing_of({{"backing.driver", "plain"}, {"backing.file.filename", "b"}}),
      "b");
  EXPECT_EQ(backing_of({{"backing", std::string(kNullOption)}}), "none");
  EXPECT_NE(backing_of({{"backing", "node0"}}).find("'node0'"),
            std::string::npos);
  EXPECT_NE(backing_of({}).find("'gone'"), std::string::npos);
}

TEST_F(ImageOpenerTest, EachNodeHasOptionsOfItsOwn) {
  disk_.add("a", "LINK b plain");
  disk_.add("b", "data");
  ASSERT_TRUE(opener()
                  .open_nodes({{"driver", "link"},
                               {"read-only", "on"},
                               {"cache.direct", "on"},
                               {"file.filename", "a"},
                               {"file.cache.no-flush", "on"},
                               {"backing.force-share", "on"}},
                              {})
                  .ok());
  ASSERT_EQ(disk_.opened.size(), 2u);
  const OpenOptions& top = disk_.opened[0].second;
  const OpenOptions& below = disk_.opened[1].second;
  EXPECT_TRUE(top.read_only && top.direct && top.no_flush);
  EXPECT_FALSE(top.force_share);
  EXPECT_TRUE(below.read_only && below.direct && below.force_share);
  EXPECT_FALSE(below.no_flush);
  expect_says(
      opener()
          .open_nodes({{"driver", "link"}, {"read-only", "perhaps"}}, {})
          .status(),
      {"'read-only'"});
}

TEST_F(ImageOpenerTest, ANameMayBeginWithBlkdebugUnlessAnImageGivesIt) {
  disk_.add("a", "LINK");
  ASSERT_TRUE(open("blkdebug:rules:a", "link").ok());
  ASSERT_TRUE(open("blkdebug::a", "link").ok());
  EXPECT_EQ(filter_.noted,
            (std::vector<OptionMap>{{{"rules", "rules"}}, {{"rules", ""}}}));
  expect_says(open("blkdebug:a", "link"), {"no image path"});
  disk_.add("b", "LINK blkdebug:rules:a link");
  expect_says(open("b", "link"), {"protocol prefix 'blkdebug:'"});
  EXPECT_EQ(filter_.noted.size(), 2u);
}

}  // namespace
}  // namespace spindle
