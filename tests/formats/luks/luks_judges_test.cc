// LUKS images beside qemu-img and cryptsetup, both ways.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/qemu_tools.h"

namespace spindle {
namespace {

using ::spindle::testing::run_tool;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::ToolResult;

constexpr char kSecret[] = " --object secret,id=s,data=opensesame ";

struct Algorithms {
  const char* cipher;
  const char* mode;
  const char* vectors;  // and the hash of essiv
  const char* hash;
};

std::string options_of(const Algorithms& a) {
  std::string options = absl::StrCat(
      "key-secret=s,iter-time=10,cipher-alg=", a.cipher,
      ",cipher-mode=", a.mode, ",hash-alg=", a.hash, ",ivgen-alg=", a.vectors);
  if (absl::StartsWith(a.vectors, "essiv"))
    absl::StrAppend(&options, ",ivgen-hash-alg=sha256");
  return options;
}

class LuksJudges : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = tmpfs_path("luks");
    must(absl::StrCat("mkdir -p ", folder_));
    must(
        "head -c 300032 /dev/urandom > data; printf opensesame > password; "
        "printf another > other");
  }
  void TearDown() override { must(absl::StrCat("rm -r ", folder_)); }

  ToolResult shell(const std::string& command) const {
    const std::string enter = absl::StrCat(
        "cd ", folder_, " 2>/dev/null; PATH=$PATH:/usr/sbin; ours=", program_,
        "; ");
    const auto result = run_tool({"sh", "-c", enter + command});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ToolResult();
  }
  void must(const std::string& command) const {
    const ToolResult result = shell(command);
    EXPECT_EQ(result.exit_code, 0) << command << "\n" << result.output;
  }
  // qemu-img gives up where a short measurement finds no processor time used:
  // on a busy machine, often.
  void must_measured(const std::string& command) const {
    ToolResult result;
    for (int i = 0; i < 200; ++i) {
      result = shell(command);
      if (!absl::StrContains(result.output, "accurate CPU usage")) break;
    }
    EXPECT_EQ(result.exit_code, 0) << command << "\n" << result.output;
  }
  void qemu_finds_the_data_in(const std::string& image) const {
    must(absl::StrCat("qemu-img compare", kSecret,
                      "--image-opts driver=raw,file.filename=data "
                      "driver=luks,key-secret=s,file.filename=",
                      image));
  }
  void we_find_the_data_in(const std::string& image) const {
    must(absl::StrCat("$ours convert", kSecret,
                      "-O raw --image-opts "
                      "driver=luks,key-secret=s,file.filename=",
                      image, " back && cmp data back"));
  }

  const std::string program_ =
      absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                   std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
  std::string folder_;
};

// 192 bits in modes but xts are beyond QEMU, which asserts.
constexpr Algorithms kAll[] = {
    {"aes-128", "xts", "plain64", "sha256"},
    {"aes-192", "xts", "plain64", "sha256"},
    {"aes-256", "xts", "plain64", "sha256"},
    {"aes-256", "xts", "plain", "sha1"},
    {"aes-256", "xts", "essiv", "sha512"},
    {"aes-128", "cbc", "essiv", "ripemd160"},
    {"aes-256", "cbc", "plain64", "sha512"},
    {"aes-256", "cbc", "essiv", "sha1"},
    {"aes-128", "ecb", "plain", "sha256"},
    {"aes-256", "ecb", "plain64", "sha224"},
    {"serpent-128", "xts", "plain64", "sha384"},
    {"serpent-192", "xts", "plain", "sha256"},
    {"serpent-256", "xts", "plain64", "sha256"},
    {"serpent-256", "xts", "essiv", "sha256"},
    {"serpent-128", "cbc", "plain", "sha1"},
    {"serpent-256", "cbc", "essiv", "ripemd160"},
    {"serpent-256", "ecb", "plain64", "sha256"},
    {"twofish-128", "xts", "plain64", "ripemd160"},
    {"twofish-256", "xts", "plain64", "sha256"},
    {"twofish-256", "xts", "plain", "sha512"},
    {"twofish-128", "cbc", "essiv", "sha1"},
    {"twofish-256", "cbc", "plain64", "sha256"},
    {"twofish-256", "ecb", "plain64", "sha256"},
};

TEST_F(LuksJudges, QemuReadsOursWithEveryCipher) {
  for (const Algorithms& a : kAll) {
    SCOPED_TRACE(options_of(a));
    must(absl::StrCat("$ours convert", kSecret, "-f raw -O luks -o ",
                      options_of(a), " data x"));
    qemu_finds_the_data_in("x");
    we_find_the_data_in("x");
  }
}

TEST_F(LuksJudges, WeReadQemusWithEveryCipher) {
  for (const Algorithms& a : kAll) {
    SCOPED_TRACE(options_of(a));
    must_measured(absl::StrCat("qemu-img convert", kSecret,
                               "-f raw -O luks -o ", options_of(a), " data x"));
    we_find_the_data_in("x");
  }
}

TEST_F(LuksJudges, InfoSaysWhatQemuSays) {
  must_measured(absl::StrCat("qemu-img create -q", kSecret,
                             "-f luks -o key-secret=s,iter-time=10 x 8M"));
  must("qemu-img info x > theirs; $ours info x > ours; diff theirs ours");
  must(
      "qemu-img info --output=json x > theirs; "
      "$ours info --output=json x > ours; diff theirs ours");
  must_measured(absl::StrCat("qemu-img create -q", kSecret,
                             "-f luks -o key-secret=s,iter-time=10,",
                             "cipher-mode=cbc,ivgen-alg=essiv y 8M"));
  must("qemu-img info y > theirs; $ours info y > ours; diff theirs ours");
}

TEST_F(LuksJudges, SlotsGoBothWaysWithQemu) {
  const std::string two = absl::StrCat(kSecret,
                                       "--object "
                                       "secret,id=o,file=other ");
  const std::string opts = " --image-opts driver=luks,file.filename=x,";
  const std::string add =
      " -o state=active,new-secret=o,keyslot=5,iter-time=10";
  // We add, QEMU opens and erases.
  must(absl::StrCat("$ours convert", kSecret,
                    "-f raw -O luks -o key-secret=s,iter-time=10 data x"));
  must(absl::StrCat("$ours amend", two, opts, "key-secret=s", add));
  must(absl::StrCat("qemu-img amend", two, opts,
                    "key-secret=o -o state=inactive,old-secret=s"));
  EXPECT_NE(shell(absl::StrCat("$ours convert", two, "-O raw", opts,
                               "key-secret=s back"))
                .exit_code,
            0);
  must(absl::StrCat("$ours convert", two, "-O raw", opts,
                    "key-secret=o back && cmp data back"));
  // QEMU adds, we open and erase.
  must_measured(absl::StrCat("qemu-img amend", two, opts,
                             "key-secret=o -o "
                             "state=active,new-secret=s,iter-time=10"));
  must(absl::StrCat("$ours amend", two, opts,
                    "key-secret=s -o state=inactive,keyslot=5"));
  qemu_finds_the_data_in("x");
  const ToolResult last = shell(absl::StrCat(
      "$ours amend", two, opts, "key-secret=s -o state=inactive,keyslot=0"));
  EXPECT_NE(last.exit_code, 0);
  EXPECT_TRUE(absl::StrContains(last.output, "--force")) << last.output;
  must(absl::StrCat("$ours amend --force", two, opts,
                    "key-secret=s -o state=inactive,keyslot=0"));
  EXPECT_NE(shell(absl::StrCat("$ours convert", two, "-O raw", opts,
                               "key-secret=s back"))
                .exit_code,
            0);
}

TEST_F(LuksJudges, CryptsetupOpensOurs) {
  for (const Algorithms& a : kAll) {
    // Its other ciphers and modes are the kernel's.
    const std::string cipher = a.cipher;
    const bool in_program = (cipher == "aes-128" || cipher == "aes-256") &&
                            std::string(a.mode) != "ecb";
    if (!in_program) continue;
    SCOPED_TRACE(options_of(a));
    must(absl::StrCat("$ours create -q", kSecret, "-f luks -o ", options_of(a),
                      " x 1M"));
    must("cryptsetup luksDump x");
    must("cryptsetup open --test-passphrase --key-file password x");
    EXPECT_NE(
        shell("cryptsetup open --test-passphrase --key-file other x").exit_code,
        0);
  }
}

TEST_F(LuksJudges, SlotsGoBothWaysWithCryptsetup) {
  // 192 bits: key material that does not fill its last sector.
  for (const char* options :
       {"--cipher aes-xts-plain64 --key-size 512 --hash sha512",
        "--cipher aes-cbc-essiv:sha256 --key-size 192 --hash ripemd160"}) {
    SCOPED_TRACE(options);
    must("rm -f x; truncate -s 8M x");
    must(absl::StrCat("cryptsetup luksFormat --batch-mode --type luks1 ",
                      options, " --pbkdf-force-iterations 1000 ",
                      "--key-file password x"));
    must(absl::StrCat("$ours amend", kSecret,
                      "--object secret,id=o,file=other --image-opts "
                      "driver=luks,file.filename=x,key-secret=s -o "
                      "state=active,new-secret=o,iter-time=10"));
    must("cryptsetup open --test-passphrase --key-file other --key-slot 1 x");
    must(
        "cryptsetup luksAddKey --pbkdf-force-iterations 1000 --key-slot 6 "
        "--key-file other x password");
    must("cryptsetup luksKillSlot --batch-mode --key-file other x 0");
    must(absl::StrCat("$ours amend", kSecret, "--image-opts ",
                      "driver=luks,file.filename=x,key-secret=s -o "
                      "state=inactive,keyslot=1"));
    must("cryptsetup open --test-passphrase --key-file password x");
    EXPECT_NE(
        shell("cryptsetup open --test-passphrase --key-file other x").exit_code,
        0);
  }
}

TEST_F(LuksJudges, AWrongPasswordChangesNothing) {
  must(absl::StrCat("$ours create -q", kSecret,
                    "-f luks -o key-secret=s,iter-time=10 x 1M; cp x y"));
  const ToolResult result = shell(
      "$ours amend --object secret,id=o,file=other --image-opts "
      "driver=luks,file.filename=x,key-secret=o -o "
      "state=inactive,keyslot=0");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(result.output, "Invalid password"))
      << result.output;
  must("cmp x y");
}

TEST_F(LuksJudges, ZeroesAreWrittenToo) {
  must("truncate -s 1M data");
  must(absl::StrCat("$ours convert", kSecret,
                    "-f raw -O luks -o key-secret=s,iter-time=10 data x"));
  qemu_finds_the_data_in("x");
}

TEST_F(LuksJudges, AMissingSecretKeepsTheOlderFile) {
  must("cp data x");
  const ToolResult result =
      shell("$ours create -f luks -o key-secret=nowhere,iter-time=10 x 1M");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(absl::StrContains(result.output, "nowhere")) << result.output;
  must("cmp data x");
}

}  // namespace
}  // namespace spindle
