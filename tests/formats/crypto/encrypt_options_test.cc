#include "formats/crypto/encrypt_options.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "gtest/gtest.h"

namespace spindle::crypto {
namespace {

TEST(EncryptOptions, FindsTheSecretOfAnImage) {
  SecretStore secrets;
  ASSERT_TRUE(secrets.add("s", SecretBytes::copy_of("hunter2")).ok());
  const struct {
    OptionMap options;
    const char* format;
    const char* says;  // null: it is found
  } kCases[] = {
      {{{"encrypt.key-secret", "s"}}, "luks", nullptr},
      {{{"encrypt.key-secret", "s"}, {"encrypt.format", "aes"}},
       "aes",
       nullptr},
      {{}, "aes", "'encrypt.key-secret' is required"},
      {{{"encrypt.key-secret", "gone"}}, "luks", "'gone'"},
      {{{"encrypt.key-secret", "s"}, {"encrypt.format", "aes"}},
       "luks",
       "Header reported 'luks'"},
      {{{"encrypt.format", "luks"}}, "", "No encryption in image header"},
  };
  for (const auto& c : kCases) {
    const auto found = find_open_secret(c.options, c.format, &secrets);
    EXPECT_EQ(found.ok(), c.says == nullptr) << found.status();
    if (c.says != nullptr) {
      EXPECT_TRUE(absl::StrContains(found.status().message(), c.says))
          << found.status();
    } else if (found.ok()) {
      EXPECT_EQ((*found)->size(), 7U);
    }
  }
  const auto none =
      find_open_secret({{"encrypt.key-secret", "gone"}}, "", nullptr);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(*none, nullptr);
  EXPECT_TRUE(absl::IsNotFound(
      find_open_secret({{"encrypt.key-secret", "s"}}, "aes", nullptr)
          .status()));
}

TEST(EncryptOptions, FindsTheFormatOfANewImage) {
  const struct {
    OptionMap options;
    const char* format;  // null: refused
    const char* says;
  } kCases[] = {
      {{}, "", nullptr},
      {{{"encryption", "off"}}, "", nullptr},
      {{{"encryption", "on"}, {"encrypt.key-secret", "s"}}, "aes", nullptr},
      {{{"encrypt.format", "luks"}, {"encrypt.iter-time", "1"}},
       "luks",
       nullptr},
      {{{"encrypt.format", "luks"}, {"encryption", "off"}}, "luks", nullptr},
      {{{"encryption", "perhaps"}}, nullptr, "encryption"},
      {{{"encrypt.format", "aes"}, {"encryption", "on"}}, nullptr, "alias"},
      {{{"encrypt.key-secret", "s"}}, nullptr, "'encrypt.format' is missing"},
      {{{"encrypt.format", "aes"}, {"encrypt.cipher-alg", "aes-256"}},
       nullptr,
       "'encrypt.cipher-alg' is unexpected"},
      {{{"encryption", "on"}, {"encrypt.iter-time", "1"}},
       nullptr,
       "'encrypt.iter-time' is unexpected"},
  };
  for (const auto& c : kCases) {
    const auto format = find_create_format(c.options);
    ASSERT_EQ(format.ok(), c.format != nullptr) << format.status();
    if (format.ok()) {
      EXPECT_EQ(*format, c.format);
    } else {
      EXPECT_TRUE(absl::StrContains(format.status().message(), c.says))
          << format.status();
    }
  }
}

}  // namespace
}  // namespace spindle::crypto
