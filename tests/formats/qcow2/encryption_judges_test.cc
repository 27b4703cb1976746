// Encrypted qcow2 images beside qemu-img and qemu-io, both ways.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "formats/luks/layout.h"
#include "formats/qcow2/layout.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::read_file;
using ::spindle::testing::run_tool;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::ToolResult;
using Bytes = std::vector<uint8_t>;

constexpr char kSecrets[] =
    " --object secret,id=s,data=opensesame --object secret,id=o,data=other ";
constexpr char kLuks[] =
    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=0";
constexpr char kAes[] = "encrypt.format=aes,encrypt.key-secret=s";
constexpr char kImage[] =
    " --image-opts driver=qcow2,file.filename=x,encrypt.key-secret=s ";

class EncryptionJudges : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = tmpfs_path("encryption");
    must(absl::StrCat("mkdir -p ", folder_));
    must("head -c 3000320 /dev/urandom > data");
  }
  void TearDown() override { must(absl::StrCat("rm -r ", folder_)); }

  ToolResult shell(const std::string& command) const {
    const std::string enter =
        absl::StrCat("cd ", folder_, " 2>/dev/null; ours=", program_, "; ");
    const auto result = run_tool({"sh", "-c", enter + command});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : ToolResult();
  }
  void must(const std::string& command) const {
    const ToolResult result = shell(command);
    ASSERT_EQ(result.exit_code, 0) << command << "\n" << result.output;
  }
  // qemu-img gives up where a short measurement finds no processor time used:
  // on a busy machine, often.
  void must_measured(const std::string& command) const {
    ToolResult result;
    for (int i = 0; i < 200; ++i) {
      result = shell(command);
      if (!absl::StrContains(result.output, "accurate CPU usage")) break;
    }
    ASSERT_EQ(result.exit_code, 0) << command << "\n" << result.output;
  }
  void qemu_finds_the_data() const {
    must(absl::StrCat("qemu-img check -q", kSecrets, kImage));
    must(absl::StrCat("qemu-img compare", kSecrets,
                      "--image-opts driver=raw,file.filename=data "
                      "driver=qcow2,file.filename=x,encrypt.key-secret=s"));
  }
  void we_find_the_data() const {
    must(absl::StrCat("$ours convert", kSecrets, kImage,
                      "-O raw back && cmp data back"));
    must("$ours check -q x");
  }

  const std::string program_ =
      absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                   std::getenv("TEST_WORKSPACE"), "/tools/spindle-img");
  std::string folder_;
};

// What is drawn by chance, or measured, is cleared: the LUKS header's key
// digest and its salt, iterations and UUID, and the first slot's iterations,
// salt and key material.
void clear_chance(Bytes* image) {
  constexpr uint8_t kType[] = {0x05, 0x37, 0xbe, 0x77};
  const auto extension = std::search(image->begin(), image->begin() + 512,
                                     std::begin(kType), std::end(kType));
  if (extension == image->begin() + 512) return;
  const auto place = extension + kExtensionHeaderBytes;
  const auto at = [&](uint64_t offset) {
    return image->begin() + static_cast<ptrdiff_t>(offset);
  };
  const uint64_t area = load_big64(&*place);
  std::fill(at(area + luks::kKeyDigestOffset), at(area + luks::kSlotsOffset),
            uint8_t{0});
  const uint64_t slot = area + luks::kSlotsOffset;
  std::fill(at(slot + luks::kSlotIterationsOffset),
            at(slot + luks::kSlotMaterialOffset), uint8_t{0});
  const uint64_t key_bytes = load_big32(&*at(area + luks::kKeyLengthOffset));
  const uint64_t material = area + luks::kAlignmentBytes;
  std::fill(at(material), at(material + key_bytes * luks::kStripes),
            uint8_t{0});
}

TEST_F(EncryptionJudges, CreateGivesQemusBytes) {
  for (const std::string& encryption :
       {std::string(kLuks), std::string(kAes)}) {
    for (const char* more :
         {"", ",compat=0.10,backing_file=base,backing_fmt=raw",
          ",refcount_bits=64,cluster_size=512", ",cluster_size=2M",
          ",preallocation=metadata,cluster_size=4k,lazy_refcounts=on",
          ",preallocation=full,cluster_size=1k,refcount_bits=64",
          ",extended_l2=on,preallocation=metadata", ",preallocation=falloc",
          ",data_file=d,data_file_raw=on,compression_type=zstd"}) {
      SCOPED_TRACE(absl::StrCat(encryption, more));
      const std::string options = absl::StrCat(
          " create -q", kSecrets, "-f qcow2 -o ", encryption, more, " x 8M");
      must("truncate -s 8M base");
      must_measured(absl::StrCat("rm -f x d; qemu-img", options));
      must("mv x theirs");
      must(absl::StrCat("rm -f d; $ours", options));
      auto ours = read_file(folder_ + "/x");
      auto theirs = read_file(folder_ + "/theirs");
      ASSERT_TRUE(ours.ok() && theirs.ok());
      ASSERT_EQ(ours->size(), theirs->size());
      clear_chance(&*ours);
      clear_chance(&*theirs);
      const auto [a, b] =
          std::mismatch(ours->begin(), ours->end(), theirs->begin());
      ASSERT_TRUE(a == ours->end()) << "byte " << a - ours->begin();
    }
  }
}

TEST_F(EncryptionJudges, EachReadsTheOthersWithEveryCipher) {
  for (const char* cipher :
       {"",
        ",encrypt.cipher-alg=serpent-256,encrypt.ivgen-alg=plain,compat=0.10",
        ",encrypt.cipher-alg=twofish-256,encrypt.hash-alg=sha512,"
        "data_file=d,data_file_raw=on",
        ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
        "encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=ripemd160,"
        "extended_l2=on,cluster_size=2M",
        ",encrypt.cipher-mode=ecb,preallocation=metadata"}) {
    SCOPED_TRACE(cipher);
    const std::string convert = absl::StrCat(
        " convert", kSecrets, "-f raw -O qcow2 -o ", kLuks, cipher, " data x");
    must(absl::StrCat("rm -f x d; $ours", convert));
    qemu_finds_the_data();
    we_find_the_data();
    must_measured(absl::StrCat("rm -f x d; qemu-img", convert));
    we_find_the_data();
  }
}

TEST_F(EncryptionJudges, EachReadsTheOthersOldAes) {
  // 16 bytes of a passphrase count.
  for (const char* secret :
       {"opensesame", "0123456789abcdef", "0123456789abcdefghi", ""}) {
    SCOPED_TRACE(secret);
    const std::string object =
        absl::StrCat(" --object secret,id=s,data=", secret, " ");
    for (const char* options :
         {"encryption=on,encrypt.key-secret=s",
          "encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k"}) {
      const std::string convert = absl::StrCat(
          " convert", object, "-f raw -O qcow2 -o ", options, " data x");
      must(absl::StrCat("rm -f x; $ours", convert));
      must(absl::StrCat("qemu-img convert", object, kImage,
                        "-O raw back && cmp data back"));
      must(absl::StrCat("rm -f x; qemu-img", convert));
      must(absl::StrCat("$ours convert", object, kImage,
                        "-O raw back && cmp data back"));
    }
  }
}

TEST_F(EncryptionJudges, InfoSaysWhatQemuSays) {
  const auto compare = [this] {
    must("qemu-img info x > theirs; $ours info x > ours; diff theirs ours");
    must(
        "qemu-img info --output=json x > theirs; "
        "$ours info --output=json x > ours; diff theirs ours");
  };
  for (const char* more : {"", ",compat=0.10",
                           ",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
                           "encrypt.ivgen-hash-alg=sha256"}) {
    must(absl::StrCat("$ours create -q", kSecrets, "-f qcow2 -o ", kLuks, more,
                      " x 8M"));
    compare();
  }
  must(
      absl::StrCat("$ours create -q", kSecrets, "-f qcow2 -o ", kAes, " x 8M"));
  compare();
}

TEST_F(EncryptionJudges, CreateAndHelpSayWhatQemuSays) {
  const std::string all =
      absl::StrCat(kLuks,
                   ",encrypt.ivgen-hash-alg=sha256,encrypt.ivgen-alg=essiv,"
                   "encrypt.hash-alg=sha1,encrypt.cipher-alg=aes-256,"
                   "encrypt.cipher-mode=cbc,encryption=off,preallocation=off");
  for (const std::string& options : {all, std::string(kAes)}) {
    const std::string create =
        absl::StrCat(" create", kSecrets, "-f qcow2 -o ", options, " x 8M");
    must_measured(absl::StrCat("qemu-img", create, " > theirs"));
    must(absl::StrCat("$ours", create, " > ours; diff theirs ours"));
  }
  for (const char* command : {"create", "amend"}) {
    const std::string names =
        " -f qcow2 -o help | grep = | sed 's/ *- .*//;s/^ *//'";
    must(absl::StrCat("qemu-img ", command, names, " > theirs"));
    must(absl::StrCat("$ours ", command, names, " > ours; diff theirs ours"));
  }
}

TEST_F(EncryptionJudges, RefusesWhatQemuRefuses) {
  must(absl::StrCat("$ours create -q", kSecrets, "-f qcow2 -o ", kLuks,
                    " x 1M; $ours create -q", kSecrets, "-f qcow2 -o ", kAes,
                    " a 1M; $ours create -q -f qcow2 p 1M; cp x before"));
  const std::string create =
      absl::StrCat(" create -q", kSecrets, "-f qcow2 -o ");
  const std::string amend = absl::StrCat(" amend", kSecrets, kImage, "-o ");
  const struct {
    std::string command;
    const char* says;
  } kCases[] = {
      {create + "encryption=on y 1M",
       "Parameter 'encrypt.key-secret' is required for cipher"},
      {create + "encrypt.format=luks y 1M",
       "Parameter 'encrypt.key-secret' is required for cipher"},
      {create + "encrypt.format=foo,encrypt.key-secret=s y 1M",
       "Parameter 'format' does not accept value 'foo'"},
      {create + "encrypt.key-secret=s y 1M",
       "Parameter 'encrypt.format' is missing"},
      {create + "encrypt.format=luks,encrypt.key-secret=nope y 1M",
       "No secret with id 'nope'"},
      {create + "encrypt.format=aes,encrypt.key-secret=s,"
                "encrypt.cipher-alg=aes-256 y 1M",
       "Parameter 'encrypt.cipher-alg' is unexpected"},
      {create + "encryption=on,encrypt.format=luks,encrypt.key-secret=s y 1M",
       "'encrypt.format' and its alias 'encryption' can't be used at the same "
       "time"},
      {create + "encrypt.format=luks,encrypt.key-secret=s,encrypt.foo=1 y 1M",
       "Invalid parameter 'encrypt.foo'"},
      {" convert -O raw x y",
       "Parameter 'encrypt.key-secret' is required for cipher"},
      {" convert -O raw a y",
       "Parameter 'encrypt.key-secret' is required for cipher"},
      {absl::StrCat(" convert", kSecrets,
                    "-O raw --image-opts driver=qcow2,file.filename=x,"
                    "encrypt.key-secret=o y"),
       "Invalid password, cannot unlock any keyslot"},
      {absl::StrCat(" convert", kSecrets,
                    "-O raw --image-opts driver=qcow2,file.filename=x,"
                    "encrypt.key-secret=nope y"),
       "No secret with id 'nope'"},
      {absl::StrCat(" convert", kSecrets,
                    "-O raw --image-opts driver=qcow2,file.filename=x,"
                    "encrypt.key-secret=s,encrypt.format=aes y"),
       "Header reported 'luks' encryption format but options specify 'aes'"},
      {absl::StrCat(" convert", kSecrets,
                    "-O raw --image-opts driver=qcow2,file.filename=p,"
                    "encrypt.key-secret=s,encrypt.format=luks y"),
       "No encryption in image header, but options specified format 'luks'"},
      {absl::StrCat(" convert -c", kSecrets, "-f raw -O qcow2 -o ", kLuks,
                    " data y"),
       "Compression and encryption not supported at the same time"},
      {amend + "encrypt.new-secret=o", "Parameter 'state' is missing"},
      {amend + "encrypt.format=luks", "Invalid parameter 'encrypt.format'"},
      {amend + "encrypt.foo=1", "Invalid parameter 'encrypt.foo'"},
      {amend + "encrypt.state=active,encrypt.new-secret=nope",
       "No secret with id 'nope'"},
      {" amend -o encrypt.state=active,encrypt.new-secret=o p",
       "Can't amend encryption options - encryption not present"},
      {absl::StrCat(" amend", kSecrets,
                    "-o encrypt.state=active,encrypt.new-secret=o "
                    "--image-opts driver=qcow2,file.filename=a,"
                    "encrypt.key-secret=s"),
       "Only LUKS encryption options can be amended"},
  };
  for (const auto& c : kCases) {
    SCOPED_TRACE(c.command);
    const ToolResult theirs = shell("qemu-img" + c.command);
    EXPECT_NE(theirs.exit_code, 0);
    EXPECT_TRUE(absl::StrContains(theirs.output, c.says)) << theirs.output;
    must("rm -f y");
    const ToolResult ours = shell("$ours" + c.command);
    EXPECT_NE(ours.exit_code, 0);
    EXPECT_TRUE(absl::StrContains(ours.output, c.says)) << ours.output;
    must("test ! -e y");
  }
  must("cmp x before");
}

TEST_F(EncryptionJudges, SlotsGoBothWays) {
  const std::string x =
      absl::StrCat(" amend", kSecrets,
                   "--image-opts driver=qcow2,file.filename=x,"
                   "encrypt.key-secret=");
  // We add, QEMU opens and erases.
  must(absl::StrCat("$ours convert", kSecrets, "-f raw -O qcow2 -o ", kLuks,
                    " data x"));
  must(absl::StrCat("$ours", x,
                    "s -o encrypt.state=active,encrypt.new-secret=o,"
                    "encrypt.keyslot=5,encrypt.iter-time=0"));
  must(absl::StrCat("qemu-img", x,
                    "o -o encrypt.state=inactive,encrypt.old-secret=s"));
  EXPECT_NE(
      shell(absl::StrCat("$ours convert", kSecrets, kImage, "-O raw back"))
          .exit_code,
      0);
  // QEMU adds, we open and erase.
  must_measured(absl::StrCat("qemu-img", x,
                             "o -o encrypt.state=active,encrypt.new-secret=s,"
                             "encrypt.iter-time=0"));
  must(absl::StrCat("$ours", x,
                    "s -o encrypt.state=inactive,encrypt.keyslot=5"));
  qemu_finds_the_data();
  we_find_the_data();
}

// One is amended in all that can be, and stays what it is.
TEST_F(EncryptionJudges, OtherAmendmentsKeepTheHeader) {
  for (const char* encryption : {kLuks, kAes}) {
    must(absl::StrCat("$ours convert", kSecrets, "-f raw -O qcow2 -o ",
                      encryption, " data x"));
    for (const char* change :
         {"lazy_refcounts=on", "lazy_refcounts=off", "compat=0.10",
          "compat=1.1", "refcount_bits=64"}) {
      SCOPED_TRACE(change);
      must(absl::StrCat("$ours amend", kSecrets, kImage, "-o ", change));
      qemu_finds_the_data();
      we_find_the_data();
    }
  }
}

TEST_F(EncryptionJudges, SnapshotsAndResizesAgree) {
  must(absl::StrCat("$ours convert", kSecrets, "-f raw -O qcow2 -o ", kLuks,
                    " data x"));
  must(absl::StrCat("qemu-img snapshot", kSecrets, kImage, "-c s"));
  must(absl::StrCat("qemu-io", kSecrets, kImage, "-c 'write -P 5 64k 100k'"));
  must(absl::StrCat("$ours convert", kSecrets, kImage,
                    "-l s -O raw back && cmp data back"));
  must(absl::StrCat("qemu-img snapshot", kSecrets, kImage, "-a s"));
  we_find_the_data();
  must("truncate -s 4M data");
  must(absl::StrCat("$ours amend", kSecrets, kImage, "-o size=4M"));
  qemu_finds_the_data();
  we_find_the_data();
}

}  // namespace
}  // namespace spindle::qcow2
