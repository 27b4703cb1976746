#include "engine/format.h"

#include "gtest/gtest.h"

namespace spindle {
namespace {

class NamedFormat : public ImageFormat {
 public:
  explicit NamedFormat(absl::string_view name) : name_(name) {}
  absl::string_view name() const override { return name_; }
  int probe(absl::Span<const uint8_t>, absl::string_view) const override {
    return 0;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const OpenOptions&,
      const OpenContext&) const override {
    return file;
  }
  absl::Status create(std::shared_ptr<BlockDriver>, const CreateOptions&,
                      const OpenContext&) const override {
    return absl::OkStatus();
  }
  std::vector<OptionHelp> create_options() const override { return {}; }
  uint64_t initial_file_length(const CreateOptions&) const override {
    return 0;
  }

 private:
  const absl::string_view name_;
};

TEST(DriverRegistry, FindsByName) {
  const NamedFormat a("a");
  const NamedFormat b("b");
  DriverRegistry registry;
  EXPECT_EQ(registry.format_names(), "");
  registry.formats = {&a, &b};
  EXPECT_EQ(registry.find_format("b"), &b);
  EXPECT_EQ(registry.find_format("c"), nullptr);
  EXPECT_EQ(registry.find_protocol("a"), nullptr);
  EXPECT_EQ(registry.format_names(), "a, b");
}

}  // namespace
}  // namespace spindle
