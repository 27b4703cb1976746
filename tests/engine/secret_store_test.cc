#include "engine/secret_store.h"

#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

std::string text_of(const SecretStore& store, const std::string& id) {
  const auto secret = store.find(id);
  if (!secret.ok()) return absl::StrCat("none: ", secret.status().message());
  return {reinterpret_cast<const char*>((*secret)->data()), (*secret)->size()};
}

TEST(SecretStore, TakesDataAsItIs) {
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=sec0,data=pass word").ok());
  EXPECT_EQ(text_of(store, "sec0"), "pass word");
}

TEST(SecretStore, TwoCommasAreOne) {
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=a,data=x,,y=z").ok());
  EXPECT_EQ(text_of(store, "a"), "x,y=z");
}

TEST(SecretStore, DecodesBase64) {
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=a,data=YWJj,format=base64").ok());
  EXPECT_EQ(text_of(store, "a"), "abc");
}

TEST(SecretStore, ReadsAWholeFile) {
  const std::string filename = ::testing::TempDir() + "/secret";
  std::ofstream(filename) << "from a file\n";
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=a,file=" + filename).ok());
  EXPECT_EQ(text_of(store, "a"), "from a file\n");
}

TEST(SecretStore, ReadsTheEnvironment) {
  ASSERT_EQ(setenv("SPINDLE_TEST_SECRET", "environs", 1), 0);
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=a,env=SPINDLE_TEST_SECRET").ok());
  EXPECT_EQ(text_of(store, "a"), "environs");
}

TEST(SecretStore, RefusesWhatMakesNoSense) {
  const struct {
    const char* text;
    const char* says;
  } kCases[] = {
      {"rng,id=a", "rng"},
      {"secret,data=x", "'id'"},
      {"secret,id=a", "0 of them"},
      {"secret,id=a,data=x,file=y", "2 of them"},
      {"secret,id=a,data=x,colour=red", "'colour'"},
      {"secret,id=a,data=x,format=hex", "'hex'"},
      {"secret,id=a,data=!hidden!,format=base64", "base64"},
      {"secret,id=1,data=x", "'1'"},
      {"secret,id=a,hidden", "no value"},
      {"secret,id=a,file=/nowhere/at/all", "/nowhere/at/all"},
      {"secret,id=a,env=SPINDLE_NO_SUCH", "SPINDLE_NO_SUCH"},
      {"secret,id=a,data=x,keyid=b,iv=c", "encrypted"},
  };
  for (const auto& c : kCases) {
    SecretStore store;
    const absl::Status status = store.add_object(c.text);
    EXPECT_FALSE(status.ok()) << c.text;
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "hidden")) << status;
  }
}

TEST(SecretStore, AnIdNamesOneSecret) {
  SecretStore store;
  ASSERT_TRUE(store.add_object("secret,id=a,data=x").ok());
  EXPECT_EQ(store.add_object("secret,id=a,data=y").code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(text_of(store, "a"), "x");
  EXPECT_EQ(store.find("b").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace spindle
